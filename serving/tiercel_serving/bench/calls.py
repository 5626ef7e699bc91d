"""Many unary gRPC calls at once over one HTTP/2 connection, from one thread.

gRPC's Python library takes some 0.3 ms of processor time for a call, on several threads that wait for one
another. A load generator that competes with the server for the processors, and is itself late when it should
send, would measure mostly itself. Here a call takes about a tenth of that. Responses are not decoded.
"""

from __future__ import annotations

import collections
import select
import socket
import time
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import unquote

from hpack import HPACKError

from tiercel_client.wire import frames
from tiercel_client.wire.direct import authority, host_and_port
from tiercel_client.wire.frames import number, settings, split, written
from tiercel_client.wire.header_blocks import header_block, read_fields
from tiercel_client.wire.http2 import GREETING
from tiercel_client.wire.status_codes import status_name

from ..errors import BenchError

#: Seconds in which a connection must be made.
CONNECT_S = 5.0

#: Calls that have waited too long are looked for at least as often.
_LONGEST_WAIT_S = 0.5

#: select(2) takes files up to this number; a process with many open files has higher ones.
_SELECTABLE = 1024

#: The flow-control window of received bytes is refilled after as many.
_REFILL = 1 << 24

Mark = TypeVar("Mark")


@dataclass(frozen=True)
class Ended(Generic[Mark]):
    """A call that ended.

    Parameters
    ----------
    mark
        What the caller gave with it.
    status
        Name of its gRPC status; that of a call whose connection was lost is UNAVAILABLE.
    details
        The server's message with the status.
    at
        When the end was read, in ``time.perf_counter()``.
    """

    mark: Mark
    status: str
    details: str
    at: float


@dataclass
class _Call(Generic[Mark]):
    """A call, when it was begun, and how much of its body was sent, on which stream, in which window."""

    mark: Mark
    body: bytes
    begun: float
    stream: int = 0
    room: int = 0
    sent: int = 0


class Calls(Generic[Mark]):
    """Calls of one method of one server; not safe to use from several threads.

    A lost connection ends the calls in flight, and the next call makes another.

    Parameters
    ----------
    url
        ``host:port`` of gRPC.
    method
        Path of the method.
    timeout_s
        Seconds after which a call without an answer ends with DEADLINE_EXCEEDED. The server is not told.

    Raises
    ------
    BenchError
        The address has another form, or the server cannot be reached.
    """

    def __init__(self, url: str, method: str, timeout_s: float) -> None:
        where = host_and_port(url)
        if where is None:
            raise BenchError(f"cannot call {url!r}: expected host:port")
        self._where, self._timeout_s = where, timeout_s
        self._fields = header_block(method, authority(*where), None, {})
        self._ended: list[Ended[Mark]] = []  # and not yet returned
        try:
            self._connect()
        except OSError as error:
            raise BenchError(f"cannot connect to {url}: {error}") from error

    def __len__(self) -> int:
        """Return the number of calls whose end was not returned yet."""
        return len(self._open) + len(self._waiting) + len(self._ended)

    def __enter__(self) -> Calls[Mark]:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def begin(self, message: bytes, mark: Mark) -> None:
        """Begin a call; it is sent by the next :meth:`ended`."""
        if self._closed:
            try:
                self._connect()
            except OSError as error:
                self._end(mark, "UNAVAILABLE", str(error))
                return
        body = b"\x00" + len(message).to_bytes(4, "big") + message
        self._waiting.append(_Call(mark, body, time.perf_counter()))

    def ended(self, until: float) -> list[Ended[Mark]]:
        """Send what is pending; return the calls that have ended, as soon as there are any.

        Parameters
        ----------
        until
            Return an empty list at this time, in ``time.perf_counter()``.
        """
        while not self._ended and (left_s := until - time.perf_counter()) > 0:
            if self._closed:
                time.sleep(min(left_s, _LONGEST_WAIT_S))
            else:
                self._exchange(until)
                self._give_up()
        ended, self._ended = self._ended, []
        return ended

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._where, CONNECT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._closed = self._leaving = False
        self._unsent, self._rest = bytearray(GREETING), b""
        self._stream, self._taken, self._most = -1, 0, frames.LARGEST
        self._window = self._new_room = frames.WINDOW
        self._waiting: collections.deque[_Call[Mark]] = collections.deque()
        self._open: dict[int, _Call[Mark]] = {}  # completely sent, by stream

    def _exchange(self, until: float) -> None:
        """Send, wait for data, and take them."""
        try:
            self._write_calls()
            if self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            return self._lose()
        if not self._ended:
            self._wait(min(max(until - time.perf_counter(), 0), _LONGEST_WAIT_S))
        try:
            self._take(self._socket.recv(1 << 18))
        except BlockingIOError:
            pass
        except (OSError, ValueError, HPACKError):
            self._lose()

    def _wait(self, wait_s: float) -> None:
        """Wait until the socket can be read, or written if something is unsent."""
        if self._socket.fileno() < _SELECTABLE:
            select.select([self._socket], [self._socket] if self._unsent else [], [], wait_s)
        else:  # as good, but up to a millisecond late
            poll = select.poll()
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            poll.poll(wait_s * 1000)

    def _write_calls(self) -> None:
        """Write waiting calls in their order, as far as the windows of flow control allow."""
        while self._waiting and len(self._open) < self._most:
            call = self._waiting[0]
            if self._leaving:
                self._end(self._waiting.popleft().mark, "UNAVAILABLE")
                continue
            if not call.stream:
                self._stream += 2
                call.stream, call.room, call.sent = self._stream, self._new_room, 0
                self._unsent += written(frames.HEADERS, frames.END_HEADERS, call.stream, self._fields)
            while (left := len(call.body) - call.sent) > 0:
                now = min(left, self._window, call.room, frames.FRAME_SIZE)
                if now <= 0:
                    return
                part = call.body[call.sent : call.sent + now]
                last = frames.END_STREAM if now == left else 0
                self._unsent += written(frames.DATA, last, call.stream, part)
                self._window, call.room, call.sent = self._window - now, call.room - now, call.sent + now
            self._open[call.stream] = call
            self._waiting.popleft()

    def _take(self, came: bytes) -> None:
        if not came:
            raise ValueError("it was closed")
        whole, self._rest = split(self._rest + came if self._rest else came)
        for kind, flags, stream, payload, size in whole:
            if kind == frames.DATA:
                self._taken += size
            if kind <= frames.HEADERS:
                if flags & frames.END_STREAM:
                    fields = read_fields(payload if kind == frames.HEADERS else b"")
                    status = status_name(fields.get("grpc-status", ""))
                    self._close_stream(stream, status, unquote(fields.get("grpc-message", "")))
            else:
                self._heed(kind, flags, stream, payload)
        if self._taken > _REFILL:
            self._unsent += written(frames.WINDOW_UPDATE, 0, 0, self._taken.to_bytes(4, "big"))
            self._taken = 0

    def _close_stream(self, stream: int, status: str, details: str) -> None:
        """End the call of a stream; one that is answered before it is completely sent is not sent on."""
        if stream in self._open:
            self._end(self._open.pop(stream).mark, status, details)
        elif self._waiting and self._waiting[0].stream == stream:
            self._end(self._waiting.popleft().mark, status, details)
            self._unsent += written(frames.RST_STREAM, 0, stream, frames.CANCEL.to_bytes(4, "big"))

    def _break_off(self, stream: int, code: int) -> None:
        """End a call that the server broke off, or send it again if the server did not process it."""
        if code == frames.REFUSED_STREAM and stream in self._open:
            call = self._open.pop(stream)
            call.stream = 0
            self._waiting.append(call)
        else:
            self._close_stream(stream, "UNAVAILABLE", f"broken off with HTTP/2's error {code}")

    def _heed(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Process a frame that is no part of an answer."""
        if kind == frames.SETTINGS and not flags & frames.ACK:
            for name, value in settings(payload):
                if name == frames.INITIAL_WINDOW_SIZE:
                    if self._waiting:
                        self._waiting[0].room += value - self._new_room
                    self._new_room = value
                elif name == frames.MAX_CONCURRENT_STREAMS:
                    self._most = value
            self._unsent += written(frames.SETTINGS, frames.ACK, 0, b"")
        elif kind == frames.WINDOW_UPDATE:
            self._window += 0 if stream else number(payload)
            if stream and self._waiting and self._waiting[0].stream == stream:
                self._waiting[0].room += number(payload)
        elif kind == frames.PING and not flags & frames.ACK:
            self._unsent += written(frames.PING, frames.ACK, 0, payload)
        elif kind == frames.RST_STREAM:
            self._break_off(stream, number(payload))
        elif kind == frames.GOAWAY:
            self._leaving = True
            for late in [sent for sent in self._open if sent > number(payload)]:
                self._end(self._open.pop(late).mark, "UNAVAILABLE")

    def _give_up(self) -> None:
        """End calls that have waited too long; the oldest come first."""
        before = time.perf_counter() - self._timeout_s
        while self._open and (call := next(iter(self._open.values()))).begun < before:
            self._close_stream(call.stream, "DEADLINE_EXCEEDED", "")
        while self._waiting and (call := self._waiting[0]).begun < before:
            if call.stream:
                self._close_stream(call.stream, "DEADLINE_EXCEEDED", "")
            else:
                self._end(self._waiting.popleft().mark, "DEADLINE_EXCEEDED")

    def _lose(self) -> None:
        """End all calls, since the connection is lost."""
        self._closed = True
        self._socket.close()
        for call in (*self._open.values(), *self._waiting):
            self._end(call.mark, "UNAVAILABLE", "the connection was lost")
        self._open, self._waiting = {}, collections.deque()

    def _end(self, mark: Mark, status: str, details: str = "") -> None:
        self._ended.append(Ended(mark, status, details, time.perf_counter()))
