"""The client side of HTTP/2 for one unary gRPC call at a time, without any input or output.

:mod:`.direct` (threads) and :mod:`.direct_async` (asyncio) own the connections; they send the pending bytes
and pass on the received ones. The mapping of gRPC calls to HTTP/2 is defined in
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

from urllib.parse import unquote

from hpack import HPACKError

from . import frames
from .frames import number, split, written, written_settings
from .header_blocks import read_fields
from .status_codes import CallFailed, status_name

#: The first bytes of a connection: no table of header fields, no pushes, and windows for answers of any size.
GREETING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + written_settings(
        {frames.HEADER_TABLE_SIZE: 0, frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: frames.LARGEST}
    )
    + written(frames.WINDOW_UPDATE, 0, 0, (frames.LARGEST - frames.WINDOW).to_bytes(4, "big"))
)

#: After this many received bytes, the connection's flow-control window is refilled.
_REFILL = 1 << 24
#: The longest header block that is accepted, in bytes.
_LONGEST_BLOCK = 1 << 20

#: HTTP/2 error code of a reset stream → gRPC status; any other is INTERNAL.
_BROKEN_OFF = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}
#: HTTP status of a peer that is not a gRPC server → gRPC status; any other is UNKNOWN.
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
    """The server did not process the call, so it can be safely repeated."""


class Http2:
    """The protocol state of one connection.

    Parameters
    ----------
    where
        The server's ``host:port``, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        #: The bytes to send; the sender then calls :meth:`sent`.
        self.unsent = bytearray(GREETING)
        #: Whether the last call has been sent completely, and whether it has been answered.
        self.asked = self.ended = True
        self._rest = b""  # the beginning of an incomplete frame
        self._greeted = self._leaving = False
        # The call: its stream, the part of its body that is not yet written, and its answer so far.
        self._stream = -1
        self._body = b""
        self._data: list[bytes] = []
        self._fields: dict[str, str] = {}
        self._block: tuple[bytes, bool] | None = None  # an incomplete one, and whether it ends the stream
        # The send windows of the connection, of this stream and of a new stream; and the number of bytes
        # received since the last WINDOW_UPDATE was sent.
        self._window = self._room = self._new_room = frames.WINDOW
        self._taken = 0

    @property
    def spent(self) -> bool:
        """Whether it takes no more calls, because it is lost or closing, or all stream ids are used."""
        return self._leaving or self._stream > frames.LARGEST - 2

    @property
    def free(self) -> bool:
        """Whether it takes another call now."""
        return self.ended and not self.spent

    @property
    def late(self) -> bool:
        """Whether the call was sent completely and can still be answered."""
        return self.asked and not self.ended and not self.spent

    def begin(self, fields: bytes, message: bytes) -> None:
        """Begin a call with a header block and a serialised message."""
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
        """Record that all of :attr:`unsent` was sent."""
        self.unsent.clear()
        self.asked = not self._body

    def take(self, came: bytes) -> None:
        """Process received bytes.

        Raises
        ------
        CallFailed
            The server aborted the call, or does not speak gRPC.
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
        if self._body and self.ended:  # answered before the request was complete: the stream stays half open
            self._leaving = True

    def answer(self) -> bytes:
        """Return the answer of the ended call; CallFailed if its status is not OK."""
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
        """Return the error of a call whose connection was lost."""
        self._leaving = True
        if not self._greeted:
            return CallFailed("UNAVAILABLE", f"failed to connect to {self._where}: {error}")
        # A server does not process a call that it has not received completely.
        kind = CallFailed if self.asked else Untouched
        return kind("UNAVAILABLE", f"Socket closed: {error}")

    def _write_body(self) -> None:
        """Write as much of the call's body as the flow-control windows allow."""
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
        """Process a frame of the less common kinds."""
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
        # Other frames (priorities, forbidden pushes, kinds of later standards) may be ignored.

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
        """Collect a header block that spans several frames."""
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
        """Return the error for a status other than OK; None means that the peer is not a gRPC server."""
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
