"""Unary gRPC calls over connections of our own: as many as there are calls at once, each kept for the next.

gRPC's own library hands each answer from thread to thread, which costs more than all the rest of this client
does (docs/performance.md, *The client*). Here a call leaves in one piece, and the thread that asks reads the
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

from .header_blocks import header_block
from .http2 import Http2, Untouched
from .status_codes import CallFailed

#: How many connections may wait for late answers before further ones are closed, which the server notices.
MOST_LATE = 64

#: A connection that was of use so lately is taken as it is: looking at it costs more than it would tell.
_FRESH_S = 0.05

_ADDRESS = re.compile(r"(\[[^\]]+\]|[^\[\]:/,]+):([0-9]{1,5})")


def host_and_port(url: str) -> tuple[str, int] | None:
    """Return what ``host:port`` says, or None where an address has another form."""
    found = _ADDRESS.fullmatch(url)
    if found is None or not 0 < int(found[2]) < 65_536:
        return None
    return found[1].strip("[]"), int(found[2])


def authority(host: str, port: int) -> str:
    """Return an address as a call names it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class DirectChannel:
    """Calls to one server in plain text, by the threads that make them. Survives a fork.

    Parameters
    ----------
    host, port
        Of the server.

    Attributes
    ----------
    may_cancel
        Whether the server is told of deadlines, and that a call was given up. Otherwise the connection of
        such a call waits, of no other use, until the answer has come.
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
        self._late: list[Connection] = []  # their calls were given up, and not answered yet

    def _call(self, connection: Connection, fields: bytes, message: bytes, ends: float) -> bytes:
        try:
            return connection.call(fields, message, ends)
        finally:
            self._put_back(connection)

    def _put_back(self, connection: Connection) -> None:
        """Keep a connection for the next call, if it can take one, or will."""
        if connection.http2.free:
            connection.used_at = time.monotonic()
            self._idle.append(connection)
        elif connection.http2.late and not self.may_cancel and len(self._late) < MOST_LATE:
            self._late.append(connection)
        else:
            self._drop(connection)

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
        return self._answered_late() or self._connect(ends)

    def _answered_late(self) -> Connection | None:
        """Return a connection whose late answer has come meanwhile."""
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
        Of the server.
    ends
        When it must stand, by ``time.monotonic()``.

    Raises
    ------
    CallFailed
        Nobody listens there, or the time is up.
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
        #: When it was last of use, by ``time.monotonic()``.
        self.used_at = 0.0

    def call(self, fields: bytes, message: bytes, ends: float) -> bytes:
        """Make a call of a header block and a serialised message; see :meth:`DirectChannel.unary`."""
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
            pass  # whatever it is, the next connection need not have it
        return False

    def close(self) -> None:
        """Close it; a call under way in another thread fails."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exchange(self, ends: float) -> None:
        """Send what is to be sent, wait until something comes, and take it."""
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
    """Return a socket to one of a name's addresses; each has an equal share of the time that is left."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
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
