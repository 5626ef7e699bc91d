"""The client's end of an HTTP/2 connection, for one unary gRPC call at a time; without the connection.

Whoever has a connection sends what is to be sent and hands over what comes: :mod:`.direct` for threads, and
:mod:`.direct_async` for asyncio. How a gRPC call lies in HTTP/2:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

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


class Http2:
    """What is said on one connection.

    Parameters
    ----------
    where
        The server's ``host:port``, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        #: What is to be sent; whoever has sent it says so by :meth:`sent`.
        self.unsent = bytearray(GREETING)
        #: Whether the last call has been sent whole, and whether it has been answered.
        self.asked = self.ended = True
        self._rest = b""  # of a frame that has not come whole
        self._greeted = self._leaving = False
        # The call: its stream, what is not yet written of its body, and its answer as far as it has come.
        self._stream = -1
        self._body = b""
        self._data: list[bytes] = []
        self._fields: dict[str, str] = {}
        self._block: tuple[bytes, bool] | None = None  # the beginning of one, and whether it ends the stream
        # How much may be sent, on the connection, in this stream, in a new one; and how much came since we
        # last made room.
        self._window = self._room = self._new_room = frames.WINDOW
        self._taken = 0

    @property
    def spent(self) -> bool:
        """Whether it takes no more calls: it is lost, the server leaves, or the streams are used up."""
        return self._leaving or self._stream > frames.LARGEST - 2

    @property
    def free(self) -> bool:
        """Whether it takes another call now."""
        return self.ended and not self.spent

    @property
    def late(self) -> bool:
        """Whether the call was sent whole and can still be answered."""
        return self.asked and not self.ended and not self.spent

    def begin(self, fields: bytes, message: bytes) -> None:
        """Begin a call, of a header block and a serialised message."""
        self._stream += 2
        self.asked = self.ended = False
        self._data, self._fields, self._room = [], {}, self._new_room
        kind = frames.HEADERS
        while len(fields) > frames.FRAME_SIZE:
            self.unsent += written(kind, 0, self._stream, fields[: frames.FRAME_SIZE])
            kind, fields = frames.CONTINUATION, fields[frames.FRAME_SIZE :]
        self.unsent += written(kind, frames.END_HEADERS, self._stream, fields)
        self._body = b"\x00" + len(message).to_bytes(4, "big") + message
        self._write_body()

    def sent(self) -> None:
        """Hear that what was to be sent is sent."""
        self.unsent.clear()
        self.asked = not self._body

    def take(self, came: bytes) -> None:
        """Take what came.

        Raises
        ------
        CallFailed
            The call was broken off, or this is no gRPC.
        """
        try:
            whole, self._rest = split(self._rest + came if self._rest else came)
            if whole and not self._greeted and whole[0][0] != frames.SETTINGS:
                raise ValueError("it does not begin with its settings")
            for kind, flags, stream, payload, size in whole:
                if kind == frames.DATA:
                    self._taken += size
                    if stream == self._stream:
                        self._data.append(payload)
                        self.ended = self.ended or flags & frames.END_STREAM != 0
                elif kind == frames.HEADERS and flags & frames.END_HEADERS:
                    if stream == self._stream:
                        self._fields.update(read_fields(payload))
                        self.ended = self.ended or flags & frames.END_STREAM != 0
                else:
                    self._heed(kind, flags, stream, payload)
        except (ValueError, HPACKError) as error:
            self._leaving = True
            raise self._no_http2(error) from None
        if self._taken > _REFILL:
            self.unsent += written(frames.WINDOW_UPDATE, 0, 0, self._taken.to_bytes(4, "big"))
            self._taken = 0
        if self._body and self.ended:  # answered before all was asked: the stream stays half open
            self._leaving = True

    def answer(self) -> bytes:
        """Return what the ended call was answered; CallFailed if it ended with another status than OK."""
        status = self._fields.get("grpc-status")
        if status != "0":
            raise self._failed(status)
        body = b"".join(self._data)
        if body[:1] != b"\x00" or int.from_bytes(body[1:5], "big") != len(body) - 5:
            raise CallFailed(
                "INTERNAL",
                f"expected one message without compression, got {len(body)} bytes of another form",
            )
        return body[5:]

    def lost(self, error: object) -> CallFailed:
        """Return what it means for a call that the connection is no more."""
        self._leaving = True
        if not self._greeted:
            return CallFailed("UNAVAILABLE", f"failed to connect to {self._where}: {error}")
        # What could not be sent whole is nothing that a server begins with.
        kind = CallFailed if self.asked else Untouched
        return kind("UNAVAILABLE", f"Socket closed: {error}")

    def _write_body(self) -> None:
        """Write as much of the call's body as the server has room for."""
        body, sent, size = self._body, 0, len(self._body)
        while sent < size:
            now = min(size - sent, self._window, self._room, frames.FRAME_SIZE)
            if now <= 0:
                break
            last = frames.END_STREAM if sent + now == size else 0
            self.unsent += written(frames.DATA, last, self._stream, body[sent : sent + now])
            self._window, self._room, sent = self._window - now, self._room - now, sent + now
        self._body = body[sent:]

    def _heed(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Do what a frame asks for that not every answer consists of."""
        if kind == frames.SETTINGS:
            self._heed_settings(flags, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._window += 0 if stream else number(payload)
            self._room += number(payload) if stream == self._stream else 0
            if self._body:
                self._write_body()
        elif kind == frames.PING and not flags & frames.ACK:
            self.unsent += written(frames.PING, frames.ACK, 0, payload)
        elif kind == frames.GOAWAY:
            self._leaving = True
            if not self.ended and number(payload) < self._stream:
                raise Untouched("UNAVAILABLE", "Server is stopping: it takes no more calls")
        elif kind == frames.HEADERS or kind == frames.CONTINUATION:
            self._heed_part_of_fields(flags, stream, payload)
        elif kind == frames.RST_STREAM and stream == self._stream and not self.ended:
            self._leaving = True
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
        self.unsent += written(frames.SETTINGS, frames.ACK, 0, b"")
        if self._body:
            self._write_body()

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
            self.ended = self.ended or ends_stream

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
