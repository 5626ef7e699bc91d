"""Calls over connections of our own: as many as there are calls at once, each kept for the next one."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping

from .header_blocks import call_fields, metadata_fields, timeout_field
from .http2 import Connection, Untouched
from .status_codes import CallFailed

#: A connection that was of use so lately is taken as it is: looking at it costs more than it would tell.
_FRESH_S = 0.05

_ADDRESS = re.compile(r"(\[[^\]]+\]|[^\[\]:/,]+):([0-9]{1,5})")


def host_and_port(url: str) -> tuple[str, int] | None:
    """Return what ``host:port`` says, or None where an address has another form."""
    found = _ADDRESS.fullmatch(url)
    if found is None or not 0 < int(found[2]) < 65_536:
        return None
    return found[1].strip("[]"), int(found[2])


class DirectChannel:
    """Unary gRPC calls in plain text to one server, by the threads that make them. Survives a fork.

    Parameters
    ----------
    host, port
        Of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._closed = False
        self._begin()

    def unary(
        self, method: str, message: bytes, timeout_s: float, metadata: Mapping[str, str | bytes]
    ) -> bytes:
        """Make a call.

        Parameters
        ----------
        method
            Its path.
        message
            What is asked, serialised.
        timeout_s
            Seconds until the answer must be there.
        metadata
            Of the call.

        Returns
        -------
        bytes
            What is answered, serialised.

        Raises
        ------
        CallFailed
            It failed, with gRPC's status.
        """
        ends = time.monotonic() + timeout_s
        fields = call_fields(method, self._authority) + timeout_field(timeout_s)
        if metadata:
            fields += metadata_fields(metadata)
        try:
            try:
                return self._call(self._take(ends), fields, message, ends)
            except Untouched:
                return self._call(self._connect(ends), fields, message, ends)
        except CallFailed:
            if self._closed:
                raise CallFailed("CANCELLED", "Channel closed") from None
            raise

    def close(self) -> None:
        """Close all connections; calls under way fail, and so do later ones."""
        with self._lock:
            self._closed = True
            connections = [*self._open]
        for connection in connections:
            connection.close()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []

    def _call(self, connection: Connection, fields: bytes, message: bytes, ends: float) -> bytes:
        try:
            return connection.call(fields, message, ends)
        finally:
            if connection.spent:
                self._drop(connection)
            else:
                connection.used_at = time.monotonic()
                self._idle.append(connection)

    def _take(self, ends: float) -> Connection:
        """Return the connection that was used last and still stands, or a new one."""
        if os.getpid() != self._process:
            self._begin()  # the parent's connections are the parent's
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if connection.used_at > time.monotonic() - _FRESH_S or connection.stands():
                return connection
            self._drop(connection)
        return self._connect(ends)

    def _connect(self, ends: float) -> Connection:
        connection = Connection(self._host, self._port, ends)
        with self._lock:
            if not self._closed:
                self._open.add(connection)
                return connection
        connection.close()
        raise CallFailed("CANCELLED", "Channel closed")

    def _drop(self, connection: Connection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()
