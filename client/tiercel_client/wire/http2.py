"""One HTTP/2 connection in plain text, for one unary gRPC call at a time.

gRPC's own library hands each answer from thread to thread, which costs more than all the rest of this
client does (docs/performance.md, *The synchronous client*). Here a call leaves in one piece, and the thread
that asks reads the answer. How a gRPC call lies in HTTP/2:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from urllib.parse import unquote

from hpack import HPACKError

from . import frames
from .frames import number, split, written, written_settings
from .header_blocks import read_fields
from .status_codes import CallFailed, status_name

#: What a connection begins with: no table of header fields, no pushes, and room for any answer.
GREETING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + written_settings(
        {frames.HEADER_TABLE_SIZE: 0, frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: frames.LARGEST}
    )
    + written(frames.WINDOW_UPDATE, 0, 0, (frames.LARGEST - frames.WINDOW).to_bytes(4, "big"))
)

#: Data taken after which the server is told that there is room again.
_REFILL = 1 << 24
#: The longest header block that is read.
_LONGEST_BLOCK = 1 << 20

#: HTTP/2's error code of a stream that is broken off → gRPC's status; else INTERNAL.
_BROKEN_OFF = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}
#: HTTP's status, where whatever answers is not a gRPC server → gRPC's; else UNKNOWN.
_NO_GRPC = {
    "400": "INTERNAL",
    "401": "UNAUTHENTICATED",
    "403": "PERMISSION_DENIED",
    "404": "UNIMPLEMENTED",
    "429": "UNAVAILABLE",
    "502": "UNAVAILABLE",
    "503": "UNAVAILABLE",
    "504": "UNAVAILABLE",
}


class Untouched(CallFailed):
    """The server did not begin with a call: it may be made again."""


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
        self._where = f"{host}:{port}"
        try:
            self._socket = _connected(host, port, ends)
        except TimeoutError:
            raise CallFailed(
                "DEADLINE_EXCEEDED", f"Deadline Exceeded: no connection to {self._where}"
            ) from None
        except OSError as error:
            raise CallFailed("UNAVAILABLE", f"failed to connect to {self._where}: {error}") from None
        #: When it was last of use, by ``time.monotonic()``.
        self.used_at = 0.0
        self._unsent = bytearray(GREETING)
        self._rest = b""  # of a frame that has not come whole
        self._greeted = self._leaving = False
        # The call: its stream, and its answer as far as it has come. One that has not ended was given up.
        self._stream, self._ended = -1, True
        self._data: list[bytes] = []
        self._fields: dict[str, str] = {}
        self._block: tuple[bytes, bool] | None = None  # the beginning of one, and whether it ends the stream
        # How much may be sent, on the connection, in this stream, in a new one; and how much came since we
        # last made room.
        self._window = self._room = self._new_room = frames.WINDOW
        self._taken = 0

    def call(self, fields: bytes, message: bytes, ends: float) -> bytes:
        """Make a call.

        Parameters
        ----------
        fields
            Its header block.
        message
            What is asked, serialised.
        ends
            When the answer must be there, by ``time.monotonic()``.

        Returns
        -------
        bytes
            What is answered, serialised.

        Raises
        ------
        CallFailed
            It ended with another status than OK, was broken off, or the time is up.
        """
        self._stream += 2
        self._ended, self._data, self._fields, self._room = False, [], {}, self._new_room
        try:
            self._begin(fields, b"\x00" + len(message).to_bytes(4, "big") + message, ends)
            while not self._ended:
                self._exchange(ends)
        except TimeoutError:
            self._cancel()
            raise CallFailed("DEADLINE_EXCEEDED", "Deadline Exceeded") from None
        except OSError as error:
            if not self._greeted:
                raise CallFailed("UNAVAILABLE", f"failed to connect to {self._where}: {error}") from None
            # What could not be sent whole is nothing that a server begins with.
            kind = Untouched if self._unsent else CallFailed
            raise kind("UNAVAILABLE", f"Socket closed: {error}") from None
        except (ValueError, HPACKError) as error:
            self._leaving = True
            raise self._no_http2(error) from None
        return self._answer()

    @property
    def spent(self) -> bool:
        """Whether it takes no more calls: one was given up, the server leaves, or the streams are used up."""
        return self._leaving or not self._ended or self._stream > frames.LARGEST - 2

    def stands(self) -> bool:
        """Return whether it takes another call, after heeding what has come meanwhile."""
        self._socket.settimeout(0)
        try:
            while not self.spent:
                self._receive()
        except BlockingIOError:
            return True
        except (CallFailed, OSError, ValueError, HPACKError):
            pass  # whatever it is, the next connection need not have it
        return False

    def close(self) -> None:
        """Close it; a call under way in another thread fails."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _begin(self, fields: bytes, body: bytes, ends: float) -> None:
        """Write a call: in one piece, unless the server wants it in smaller ones."""
        kind, sent, size = frames.HEADERS, 0, len(body)
        while len(fields) > frames.FRAME_SIZE:
            self._unsent += written(kind, 0, self._stream, fields[: frames.FRAME_SIZE])
            kind, fields = frames.CONTINUATION, fields[frames.FRAME_SIZE :]
        self._unsent += written(kind, frames.END_HEADERS, self._stream, fields)
        while sent < size and not self._ended:
            now = min(size - sent, self._window, self._room, frames.FRAME_SIZE)
            if now <= 0:
                self._exchange(ends)
                continue
            last = frames.END_STREAM if sent + now == size else 0
            self._unsent += written(frames.DATA, last, self._stream, body[sent : sent + now])
            self._window, self._room, sent = self._window - now, self._room - now, sent + now
        if sent < size:  # answered before all was asked: the stream stays half open
            self._leaving = True

    def _exchange(self, ends: float) -> None:
        """Send what is to be sent, wait until something comes, and heed it."""
        left_s = ends - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)
        if self._unsent:
            self._socket.sendall(self._unsent)
            self._unsent.clear()
        self._receive()

    def _receive(self) -> None:
        came = self._socket.recv(65_536)
        if not came:
            raise ConnectionResetError("it was closed")
        whole, self._rest = split(self._rest + came if self._rest else came)
        if whole and not self._greeted and whole[0][0] != frames.SETTINGS:
            raise ValueError("it does not begin with its settings")
        for kind, flags, stream, payload, size in whole:
            if kind == frames.DATA:
                self._taken += size
                if stream == self._stream:
                    self._data.append(payload)
                    self._ended = self._ended or flags & frames.END_STREAM != 0
            elif kind == frames.HEADERS and flags & frames.END_HEADERS:
                if stream == self._stream:
                    self._fields.update(read_fields(payload))
                    self._ended = self._ended or flags & frames.END_STREAM != 0
            else:
                self._heed(kind, flags, stream, payload)
        if self._taken > _REFILL:
            self._unsent += written(frames.WINDOW_UPDATE, 0, 0, self._taken.to_bytes(4, "big"))
            self._taken = 0

    def _heed(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Do what a frame asks for that not every answer consists of."""
        if kind == frames.SETTINGS:
            self._heed_settings(flags, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._window += 0 if stream else number(payload)
            self._room += number(payload) if stream == self._stream else 0
        elif kind == frames.PING and not flags & frames.ACK:
            self._unsent += written(frames.PING, frames.ACK, 0, payload)
        elif kind == frames.GOAWAY:
            self._leaving = True
            if not self._ended and number(payload) < self._stream:
                raise Untouched("UNAVAILABLE", "Server is stopping: it takes no more calls")
        elif kind == frames.HEADERS or kind == frames.CONTINUATION:
            self._heed_part_of_fields(flags, stream, payload)
        elif kind == frames.RST_STREAM and stream == self._stream and not self._ended:
            code = number(payload)
            error = Untouched if code == frames.REFUSED_STREAM else CallFailed
            raise error(
                _BROKEN_OFF.get(code, "INTERNAL"), f"the server broke it off with HTTP/2's error {code}"
            )
        # The rest (priorities, pushes, which we forbade, kinds of later standards) may be ignored.

    def _heed_settings(self, flags: int, payload: bytes) -> None:
        self._greeted = True
        if flags & frames.ACK:
            return
        for name, value in frames.settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                self._room, self._new_room = self._room + value - self._new_room, value
        self._unsent += written(frames.SETTINGS, frames.ACK, 0, b"")

    def _heed_part_of_fields(self, flags: int, stream: int, payload: bytes) -> None:
        """Gather a block of header fields that comes in several frames."""
        before, ends_stream = self._block or (b"", flags & frames.END_STREAM != 0)
        block = before + payload
        if len(block) > _LONGEST_BLOCK:
            raise ValueError(f"a header block of over {_LONGEST_BLOCK} bytes")
        if not flags & frames.END_HEADERS:
            self._block = block, ends_stream
            return
        self._block = None
        if stream == self._stream:
            self._fields.update(read_fields(block))
            self._ended = self._ended or ends_stream

    def _answer(self) -> bytes:
        """Return what the answer holds; CallFailed if it ended with another status than OK."""
        status = self._fields.get("grpc-status")
        if status != "0":
            raise self._failed(status)
        body = b"".join(self._data)
        if body[:1] != b"\x00" or int.from_bytes(body[1:5], "big") != len(body) - 5:
            raise CallFailed(
                "INTERNAL",
                f"expected one message without compression, came {len(body)} bytes of another form",
            )
        return body[5:]

    def _failed(self, status: str | None) -> CallFailed:
        """Return what a status other than OK says; None is an answer of something that is no gRPC server."""
        if status is None:
            http = self._fields.get(":status", "none")
            kind = "INTERNAL" if http == "200" else _NO_GRPC.get(http, "UNKNOWN")
            return CallFailed(kind, f"no gRPC status, HTTP status {http}: {self._where} is no gRPC server")
        return CallFailed(status_name(status), unquote(self._fields.get("grpc-message", "")))

    def _no_http2(self, error: Exception) -> CallFailed:
        if self._greeted:
            return CallFailed("INTERNAL", f"{self._where} breaks HTTP/2's rules: {error}")
        return CallFailed(
            "UNAVAILABLE", f"failed to connect: {self._where} does not speak gRPC in plain text: {error}"
        )

    def _cancel(self) -> None:
        """Tell the server, if it listens, that nobody waits for the call any more."""
        if self._unsent:  # perhaps the half of a frame is sent
            return
        with suppress(OSError):
            self._socket.settimeout(0)
            self._socket.sendall(
                written(frames.RST_STREAM, 0, self._stream, frames.CANCEL.to_bytes(4, "big"))
            )


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
