"""An HTTP/2 server, by the library h2, that does what gRPC's never does: padding, odd windows and endings.

``script`` holds one :class:`Way` for each of the next calls.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes


def framed(message: bytes, *, compressed: int = 0) -> bytes:
    """Return a message framed as gRPC does it in DATA."""
    return bytes((compressed,)) + len(message).to_bytes(4, "big") + message


@dataclass
class Way:
    """How to answer a call.

    ``body`` is the raw DATA (None echoes the request's message); ``before`` and ``instead`` are given the
    connection and the stream; ``pieces`` is the number of bytes sent at once.
    """

    headers: dict[str, str] = field(
        default_factory=lambda: {":status": "200", "content-type": "application/grpc"}
    )
    body: bytes | None = None
    trailers: dict[str, str] | None = field(default_factory=lambda: {"grpc-status": "0"})
    padding: int | None = None
    before: Callable[[H2Connection, int], None] | None = None
    instead: Callable[[H2Connection, int], None] | None = None
    then_close: bool = False
    pieces: int = 1 << 20


class Http2Server:
    """Listens on ``host`` and ``port``, with one thread per connection."""

    def __init__(self, settings: dict[SettingCodes, int] | None = None) -> None:
        self.script: deque[Way] = deque()
        self.settings = settings or {}
        self.calls: list[tuple[dict[str, str], bytes]] = []
        #: Whether a client has closed a connection.
        self.closed = threading.Event()
        self.connections: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self.listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and break open connections."""
        self.listener.close()
        self.break_off()

    def break_off(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        conn = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        conn.initiate_connection()
        if self.settings:
            conn.update_settings(self.settings)
        asked: dict[int, tuple[dict[str, str], bytearray]] = {}
        try:
            sock.sendall(conn.data_to_send())
            while came := sock.recv(65_536):
                for event in conn.receive_data(came):
                    way = self._heed(conn, event, asked)
                    if way is not None:
                        self._answer(sock, conn, event.stream_id, way)
                        if way.then_close:
                            sock.close()
                            return
                sock.sendall(conn.data_to_send())
            self.closed.set()
        except (OSError, ProtocolError):
            self.closed.set()
            sock.close()

    def _heed(self, conn: H2Connection, event: Any, asked: dict[int, Any]) -> Way | None:
        if isinstance(event, RequestReceived):
            asked[event.stream_id] = dict(event.headers), bytearray()
        elif isinstance(event, DataReceived):
            asked[event.stream_id][1].extend(event.data)
            conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            headers, body = asked.pop(event.stream_id)
            self.calls.append((headers, bytes(body[5:])))
            return self.script.popleft() if self.script else Way()
        return None

    def _answer(self, sock: socket.socket, conn: H2Connection, stream: int, way: Way) -> None:
        if way.before is not None:
            way.before(conn, stream)
        if way.instead is not None:
            way.instead(conn, stream)
        else:
            self._give(conn, stream, way)
        out = conn.data_to_send()
        for at in range(0, len(out), way.pieces):
            sock.sendall(out[at : at + way.pieces])

    def _give(self, conn: H2Connection, stream: int, way: Way) -> None:
        body = framed(self.calls[-1][1]) if way.body is None else way.body
        conn.send_headers(stream, list(way.headers.items()), end_stream=not body and way.trailers is None)
        for at in range(0, len(body), 10_000):
            last = at + 10_000 >= len(body) and way.trailers is None
            conn.send_data(stream, body[at : at + 10_000], end_stream=last, pad_length=way.padding)
        if way.trailers is not None:
            conn.send_headers(stream, list(way.trailers.items()), end_stream=True)
