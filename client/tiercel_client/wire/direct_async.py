"""The calls of :mod:`.direct` for asyncio; the event loop reads the answers, without gRPC's threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from .direct import MOST_LATE, authority
from .header_blocks import header_block
from .http2 import Http2, Untouched
from .status_codes import CallFailed


class AsyncDirectChannel:
    """Plain-text calls to one server, in one event loop.

    Parameters
    ----------
    host, port
        Address of the server.

    Attributes
    ----------
    may_cancel
        As for :class:`~.direct.DirectChannel`.
    """

    def __init__(self, host: str, port: int) -> None:
        self.may_cancel = False
        self._host, self._port, self._where = host, port, authority(host, port)
        self._closed = False
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._late: list[_Connection] = []  # with abandoned calls that are not answered yet

    async def unary(
        self, method: str, message: bytes, timeout_s: float, metadata: Mapping[str, str | bytes]
    ) -> bytes:
        """Make a call; see :meth:`~.direct.DirectChannel.unary`. Cancelling it abandons the call."""
        ends = time.monotonic() + timeout_s
        fields = header_block(method, self._where, timeout_s if self.may_cancel else None, metadata)
        try:
            try:
                return await self._call(await self._take(ends), fields, message, ends)
            except Untouched:
                return await self._call(await self._connect(ends), fields, message, ends)
        except CallFailed:
            if self._closed:
                raise CallFailed("CANCELLED", "Channel closed") from None
            raise

    async def close(self) -> None:
        """Close all connections; calls in flight fail, and so do later ones."""
        self._closed = True
        for connection in [*self._open]:
            connection.close()

    async def _call(self, connection: _Connection, fields: bytes, message: bytes, ends: float) -> bytes:
        try:
            return await connection.call(fields, message, ends)
        finally:
            if connection.http2.free:
                self._idle.append(connection)
            elif connection.http2.late and not self.may_cancel and len(self._late) < MOST_LATE:
                self._late.append(connection)
            else:
                self._drop(connection)

    async def _take(self, ends: float) -> _Connection:
        """Return the most recently used connection that is still usable, or a new one."""
        # The event loop has already read all data that arrived.
        answered = [one for one in self._late if not one.http2.late]
        self._late = [one for one in self._late if one not in answered]
        self._idle += answered
        while self._idle:
            connection = self._idle.pop()
            if not connection.http2.spent:
                return connection
            self._drop(connection)
        return await self._connect(ends)

    async def _connect(self, ends: float) -> _Connection:
        loop, left_s = asyncio.get_running_loop(), ends - time.monotonic()
        made = loop.create_connection(lambda: _Connection(self._where), self._host, self._port)
        try:
            _, connection = await asyncio.wait_for(made, left_s)
        except asyncio.TimeoutError:  # the built-in TimeoutError from Python 3.11 on
            text = f"Deadline Exceeded: no connection to {self._where}"
            raise CallFailed("DEADLINE_EXCEEDED", text) from None
        except OSError as error:
            raise CallFailed("UNAVAILABLE", f"failed to connect to {self._where}: {error}") from None
        self._open.add(connection)
        if self._closed:
            self._drop(connection)
        return connection

    def _drop(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.close()


class _Connection(asyncio.Protocol):
    """A connection to a gRPC server, for one call at a time, as a protocol of asyncio."""

    def __init__(self, where: str) -> None:
        self.http2 = Http2(where)
        self._transport: Any = None
        self._answered: asyncio.Future[None] | None = None

    async def call(self, fields: bytes, message: bytes, ends: float) -> bytes:
        """Make a call with a header block and a serialised message; see :meth:`AsyncDirectChannel.unary`."""
        loop = asyncio.get_running_loop()
        answered = self._answered = loop.create_future()
        timer = loop.call_later(max(ends - time.monotonic(), 0), self._fail, TimeoutError())
        self.http2.begin(fields, message)
        self._send()
        try:
            await answered
        except TimeoutError:
            raise CallFailed("DEADLINE_EXCEEDED", "Deadline Exceeded") from None
        finally:
            timer.cancel()
            self._answered = None
        return self.http2.answer()

    def close(self) -> None:
        """Close it; a call in flight fails."""
        self._transport.close()

    def connection_made(self, transport: Any) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        try:
            self.http2.take(data)
        except CallFailed as error:
            self._fail(error)
            return
        self._send()
        if self.http2.ended and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._fail(self.http2.lost(exc or "it was closed"))

    def _send(self) -> None:
        if self.http2.unsent:
            self._transport.write(bytes(self.http2.unsent))
            self.http2.sent()

    def _fail(self, error: Exception) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)
