"""Unary gRPC calls over the client's own connections: one for each concurrent call, reused by later calls.

gRPC's library passes each answer between threads, which costs more than the rest of this client
(docs/performance.md, *The client*). Here, a call is sent in one piece, and the calling thread reads the
answer.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .header_blocks import header_block
from .http2 import Http2, Untouched
from .status_codes import CallFailed

#: Maximum number of connections that wait for late answers; others are closed, which the server notices.
MOST_LATE = 64

#: A connection that was used less than this many seconds ago is reused without a check, to save its cost.
_FRESH_S = 0.05

_ADDRESS = re.compile(r"(\[[^\]]+\]|[^\[\]:/,]+):([0-9]{1,5})")


def host_and_port(url: str) -> tuple[str, int] | None:
    """Return the parts of ``host:port``, or None if the address has another form."""
    found = _ADDRESS.fullmatch(url)
    if found is None or not 0 < int(found[2]) < 65_536:
        return None
    return found[1].strip("[]"), int(found[2])


def authority(host: str, port: int) -> str:
    """Return an address as the ``:authority`` of a call, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class DirectChannel:
    """Plain-text calls to one server, in the calling threads. Safe to use after a fork.

    Parameters
    ----------
    host, port
        Address of the server.

    Attributes
    ----------
    may_cancel
        Whether the server is told of deadlines and of abandoned calls. Otherwise the connection of an
        abandoned call is not reused until the answer has arrived.
    """

    def __init__(self, host: str, port: int) -> None:
        self.may_cancel = False
        self._host, self._port, self._where = host, port, authority(host, port)
        self._closed = False
        self._begin()

    def unary(
        self, method: str, message: bytes, timeout_s: float, metadata: Mapping[str, str | bytes]
    ) -> bytes:
        """Make a call.

        Parameters
        ----------
        method
            Path of the method.
        message
            The serialised request.
        timeout_s
            Seconds until the answer must have arrived.
        metadata
            Metadata of the call.

        Returns
        -------
        bytes
            The serialised response.

        Raises
        ------
        CallFailed
            It failed; contains the gRPC status.
        """
        ends = time.monotonic() + timeout_s
        fields = header_block(method, self._where, timeout_s if self.may_cancel else None, metadata)
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
        """Close all connections; calls in flight fail, and so do later ones."""
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
        self._late: list[Connection] = []  # with abandoned calls that are not answered yet

    def _call(self, connection: Connection, fields: bytes, message: bytes, ends: float) -> bytes:
        try:
            return connection.call(fields, message, ends)
        finally:
            self._put_back(connection)

    def _put_back(self, connection: Connection) -> None:
        """Keep a connection if it can take another call, now or after a late answer; else close it."""
        if connection.http2.free:
            connection.used_at = time.monotonic()
            self._idle.append(connection)
        elif connection.http2.late and not self.may_cancel and len(self._late) < MOST_LATE:
            self._late.append(connection)
        else:
            self._drop(connection)

    def _take(self, ends: float) -> Connection:
        """Return the most recently used connection that is still usable, or a new one."""
        if os.getpid() != self._process:
            self._begin()  # after a fork, the connections belong to the parent process
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if connection.used_at > time.monotonic() - _FRESH_S or connection.stands():
                return connection
            self._drop(connection)
        return self._answered_late() or self._connect(ends)

    def _answered_late(self) -> Connection | None:
        """Return a connection whose late answer has arrived in the meantime, or None."""
        with self._lock:
            for connection in [*self._late]:
                if connection.stands():
                    self._late.remove(connection)
                    return connection
                if connection.http2.spent:
                    self._late.remove(connection)
                    self._open.discard(connection)
                    connection.close()
        return None

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


class Connection:
    """A connection to a gRPC server, for one call at a time.

    Parameters
    ----------
    host, port
        Address of the server.
    ends
        Deadline for connecting, in ``time.monotonic()``.

    Raises
    ------
    CallFailed
        The connection was refused, or the deadline passed.
    """

    def __init__(self, host: str, port: int, ends: float) -> None:
        where = authority(host, port)
        try:
            self._socket = _connected(host, port, ends)
        except TimeoutError:
            raise CallFailed("DEADLINE_EXCEEDED", f"Deadline Exceeded: no connection to {where}") from None
        except OSError as error:
            raise CallFailed("UNAVAILABLE", f"failed to connect to {where}: {error}") from None
        self.http2 = Http2(where)
        #: When a call last ended on it, in ``time.monotonic()``.
        self.used_at = 0.0

    def call(self, fields: bytes, message: bytes, ends: float) -> bytes:
        """Make a call with a header block and a serialised message; see :meth:`DirectChannel.unary`."""
        http2 = self.http2
        http2.begin(fields, message)
        try:
            while not http2.ended:
                self._exchange(ends)
        except TimeoutError:
            raise CallFailed("DEADLINE_EXCEEDED", "Deadline Exceeded") from None
        except OSError as error:
            raise http2.lost(error) from None
        return http2.answer()

    def stands(self) -> bool:
        """Return whether it takes another call, after heeding what has come meanwhile."""
        try:
            self._socket.settimeout(0)
            while not self.http2.spent:
                self.http2.take(self._received())
        except BlockingIOError:
            return self.http2.ended
        except OSError as error:
            self.http2.lost(error)
        except CallFailed:
            pass  # the error concerns only this connection, which is not used again
        return False

    def close(self) -> None:
        """Close it; a call in flight in another thread fails."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exchange(self, ends: float) -> None:
        """Send the pending bytes, wait for data, and process it."""
        left_s = ends - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)
        if self.http2.unsent:
            self._socket.sendall(self.http2.unsent)
            self.http2.sent()
        self.http2.take(self._received())

    def _received(self) -> bytes:
        came = self._socket.recv(65_536)
        if not came:
            raise ConnectionResetError("it was closed")
        return came


def _connected(host: str, port: int, ends: float) -> socket.socket:
    """Return a socket connected to one of a host's addresses; each gets an equal share of the time left."""
    addresses = _addresses(host, port, ends)
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        connection = socket.socket(family, kind, protocol)
        try:
            left_s = ends - time.monotonic()
            connection.settimeout(max(left_s / (len(addresses) - tried), 1e-3))
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            failed = error
        else:
            return connection
    raise failed


def _addresses(host: str, port: int, ends: float) -> list[Any]:
    """Return a host's addresses as ``socket.getaddrinfo`` does; raise TimeoutError at the deadline."""
    if host == "localhost":
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with suppress(socket.gaierror):  # the host is a name
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    key = os.getpid(), host, port  # after a fork, the threads are the parent's
    new = _Lookup(key)
    lookup = _LOOKUPS.setdefault(key, new)  # atomic: a lock might be held during a fork
    if lookup is new:
        try:
            threading.Thread(target=lookup.run, name="tiercel-lookup", daemon=True).start()
        except RuntimeError:  # no more threads: later calls must not wait for one that never began
            del _LOOKUPS[key]
            raise
    lookup.done.wait(max(ends - time.monotonic(), 0))
    if lookup.found is None:
        raise TimeoutError
    if isinstance(lookup.found, Exception):
        raise lookup.found
    return lookup.found


class _Lookup:
    """A lookup of a name. It can't be interrupted, and may take longer than the calls that wait for it."""

    def __init__(self, key: tuple[int, str, int]) -> None:
        self._key, self.done = key, threading.Event()
        self.found: list[Any] | Exception | None = None

    def run(self) -> None:
        """Look it up; calls that come after the end begin another lookup."""
        _, host, port = self._key
        try:
            self.found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except Exception as error:
            self.found = error
        del _LOOKUPS[self._key]
        self.done.set()


#: Lookups in progress. Calls that wait for one name share one: a name server that is gone costs one thread.
_LOOKUPS: dict[tuple[int, str, int], _Lookup] = {}
