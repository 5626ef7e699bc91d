"""Our own connections against a server that uses all that HTTP/2 allows, and some that it does not."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hpack import Decoder, Encoder, HPACKError
from http2_server import Http2Server, Way, framed
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel_client.wire import direct, direct_async, frames
from tiercel_client.wire.direct import DirectChannel, host_and_port
from tiercel_client.wire.direct_async import AsyncDirectChannel
from tiercel_client.wire.header_blocks import call_fields, metadata_fields, read_fields, timeout_field
from tiercel_client.wire.status_codes import CallFailed
from waiting import wait_until

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def server() -> Iterator[Http2Server]:
    server = Http2Server()
    yield server
    server.close()


class OnLoop:
    """An :class:`AsyncDirectChannel` on an event loop in a thread, for blocking callers."""

    def __init__(self, host: str, port: int) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.channel = AsyncDirectChannel(host, port)
        self._open, self._idle = self.channel._open, self.channel._idle

    @property
    def may_cancel(self) -> bool:
        return self.channel.may_cancel

    @may_cancel.setter
    def may_cancel(self, value: bool) -> None:
        self.channel.may_cancel = value

    @property
    def _late(self) -> Any:
        return self.channel._late

    def wait(self, made: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(made, self.loop).result()

    def unary(self, *asked: Any) -> bytes:
        return self.wait(self.channel.unary(*asked))  # type: ignore[no-any-return]

    def close(self) -> None:
        self.wait(self.channel.close())


@pytest.fixture(params=[DirectChannel, OnLoop], ids=["threads", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[[str, int], Any]]:
    made = []

    def connect(host: str, port: int) -> Any:
        made.append(request.param(host, port))
        return made[-1]

    yield connect
    for channel in made:
        channel.close()
        if isinstance(channel, OnLoop):
            channel.loop.call_soon_threadsafe(channel.loop.stop)


@pytest.fixture
def channel(server: Http2Server, connect: Any) -> Any:
    return connect(server.host, server.port)


def ask(channel: Any, message: bytes = b"hello", timeout_s: float = 5.0, **metadata: Any) -> bytes:
    return channel.unary(METHOD, message, timeout_s, metadata)


def failure(channel: Any, message: bytes = b"hello", timeout_s: float = 5.0) -> tuple[str, str]:
    with pytest.raises(CallFailed) as error:
        ask(channel, message, timeout_s)
    return error.value.status, error.value.text


# Contents of a call


def test_what_a_server_reads(server: Http2Server, channel: Any) -> None:
    channel.may_cancel = True
    assert channel.unary(
        METHOD, b"\x00\xff", 1.5, {"authorization": "Bearer x", "trace-bin": b"\x01\x02"}
    ) == (b"\x00\xff")
    [(fields, message)] = server.calls
    assert message == b"\x00\xff"
    assert fields == {
        ":method": "POST",
        ":scheme": "http",
        ":path": METHOD,
        ":authority": f"{server.host}:{server.port}",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "tiercel-client",
        "grpc-timeout": "1500m",
        "authorization": "Bearer x",
        "trace-bin": "AQI",
    }


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,200}", fullmatch=True), st.text("az ~", max_size=20_000))
)
@settings(max_examples=50, deadline=None)
def test_fields_are_read_as_they_were_written(metadata: dict[str, str]) -> None:
    read = Decoder(max_header_list_size=1 << 24).decode(metadata_fields(metadata))
    assert dict(read) == metadata


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,40}", fullmatch=True), st.text("azÜ✓~ ", max_size=300))
)
@settings(max_examples=50, deadline=None)
def test_fields_of_a_server_are_read(fields: dict[str, str]) -> None:
    for huffman in (True, False):
        encoder = Encoder()
        encoder.header_table_size = 0
        block = encoder.encode([(name.encode(), text.encode()) for name, text in fields.items()], huffman)
        assert read_fields(block) == fields


def test_a_block_that_needs_a_table_is_refused() -> None:
    with pytest.raises(HPACKError):
        read_fields(b"\xbe")  # the first entry of the dynamic table, which we keep empty
    with pytest.raises(HPACKError):
        read_fields(b"\x3f\xe1\x1f\x88")  # a table of 4,096 bytes


@pytest.mark.parametrize(
    ("timeout_s", "said"),
    [
        (0.0001, b"1m"),
        (1.0, b"1000m"),
        (99_999.999, b"99999999m"),
        (100_001.0, b"100001S"),
        (1e8, b"99999999S"),
    ],
)
def test_a_timeout_has_eight_digits_at_most(timeout_s: float, said: bytes) -> None:
    [(name, value)] = Decoder().decode(timeout_field(timeout_s), raw=True)
    assert (name, value) == (b"grpc-timeout", said)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8001", ("localhost", 8001)),
        ("[::1]:8001", ("::1", 8001)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("localhost", None),
        ("localhost:0", None),
        ("localhost:65536", None),
        ("localhost:http", None),
        ("unix:/run/triton.sock", None),
        ("ipv4:127.0.0.1:8001", None),
        ("dns:///tritons:8001", None),
        ("::1", None),
        ("a:1,b:2", None),
    ],
)
def test_addresses(url: str, said: tuple[str, int] | None) -> None:
    assert host_and_port(url) == said


@given(
    st.lists(
        st.tuples(st.integers(2, 20), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=40))
    ),
    st.data(),
)
def test_frames_come_whole_however_they_are_cut(sent: list[Any], data: st.DataObject) -> None:
    stream = b"".join(frames.written(*one) for one in sent)
    came, rest = [], b""
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        whole, rest = frames.split(rest + stream[:cut])
        came += whole
        stream = stream[cut:]
    assert rest == b""
    assert came == [(*one, len(one[3])) for one in sent]


# Everything that HTTP/2 allows


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 70_000, 3_000_000])
def test_messages_of_any_size(server: Http2Server, channel: Any, size: int) -> None:
    """Messages larger than a frame, and larger than the server's flow control windows."""
    message = os.urandom(size)
    server.script.append(Way(body=framed(message[::-1])))
    assert ask(channel, message) == message[::-1]
    assert server.calls[-1][1] == message
    assert ask(channel) == b"hello"
    assert len(server.connections) == 1


@pytest.mark.parametrize("window", [1, 1000, 1 << 20])
def test_a_server_that_changes_its_windows(window: int, connect: Any) -> None:
    server = Http2Server({SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: 20_000})
    channel = connect(server.host, server.port)
    try:
        assert ask(channel, b"first") == b"first"  # before the server's settings have arrived
        assert ask(channel, b"x" * (30 * window if window < 10_000 else 90_000))
        server.script.append(
            Way(before=lambda conn, stream: conn.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 50_000}))
        )
        assert ask(channel, b"y" * 300) == b"y" * 300
        assert ask(channel, b"z" * 200_000) == b"z" * 200_000
        assert len(server.connections) == 1
    finally:
        channel.close()
        server.close()


@pytest.mark.parametrize("pieces", [1, 7, 1 << 20])
@pytest.mark.parametrize("padding", [None, 0, 255])
def test_padding_and_frames_that_come_in_pieces(
    server: Http2Server, channel: Any, pieces: int, padding: int | None
) -> None:
    server.script.append(Way(pieces=pieces, padding=padding))
    assert ask(channel, b"m" * 12_000) == b"m" * 12_000


def test_header_blocks_of_many_frames_both_ways(server: Http2Server, channel: Any) -> None:
    long = "ü" + "v" * 40_000
    server.script.append(
        Way(headers={**Way().headers, "x-long": long}, trailers={"grpc-status": "0", "x-too": long})
    )
    assert ask(channel, **{"x-token": "t" * 50_000}) == b"hello"
    assert server.calls[-1][0]["x-token"] == "t" * 50_000


def test_pings_settings_and_priorities_within_an_answer(server: Http2Server, channel: Any) -> None:
    def unasked(conn: H2Connection, stream: int) -> None:
        conn.ping(b"12345678")
        conn.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 7})
        conn._data_to_send += frames.written(2, 0, stream, b"\0\0\0\0\7") + frames.written(
            99, 255, 0, b"new kind"
        )

    server.script += [Way(before=unasked)] * 3
    for _ in range(4):
        assert ask(channel) == b"hello"
    assert len(server.connections) == 1


def test_room_is_made_for_what_comes(channel: Any, server: Http2Server) -> None:
    """A connection can receive more than one window of answers."""
    server.script += [Way(body=framed(b"a" * 9_000_000))] * 3
    for _ in range(3):
        assert len(ask(channel)) == 9_000_000
    [connection] = channel._open
    assert connection.http2._taken < 1 << 24


# Endings of calls


@pytest.mark.parametrize(
    ("way", "status", "said"),
    [
        (
            Way(trailers={"grpc-status": "3", "grpc-message": "k%3A 0 %E2%9C%93"}),
            "INVALID_ARGUMENT",
            "k: 0 ✓",
        ),
        (Way(trailers={"grpc-status": "14"}, body=b""), "UNAVAILABLE", ""),
        (Way(headers={":status": "200", "grpc-status": "5"}, body=b"", trailers=None), "NOT_FOUND", ""),
        (Way(trailers={"grpc-status": "99"}), "UNKNOWN", ""),
        (Way(headers={":status": "404"}, body=b"<html>", trailers=None), "UNIMPLEMENTED", "HTTP status 404"),
        (Way(headers={":status": "401"}, body=b"", trailers=None), "UNAUTHENTICATED", "HTTP status 401"),
        (Way(headers={":status": "503"}, body=b"", trailers=None), "UNAVAILABLE", "HTTP status 503"),
        (Way(headers={":status": "418"}, body=b"", trailers=None), "UNKNOWN", "HTTP status 418"),
        (Way(trailers=None), "INTERNAL", "no gRPC status"),
        (Way(body=b""), "INTERNAL", "expected one message"),
        (Way(body=framed(b"zz", compressed=1)), "INTERNAL", "expected one message"),
        (Way(body=framed(b"a") + framed(b"b")), "INTERNAL", "expected one message"),
        (Way(body=framed(b"abc")[:-1]), "INTERNAL", "expected one message"),
        (Way(instead=lambda conn, stream: conn.reset_stream(stream, 8)), "CANCELLED", "error 8"),
        (Way(instead=lambda conn, stream: conn.reset_stream(stream, 11)), "RESOURCE_EXHAUSTED", "error 11"),
        (Way(instead=lambda conn, stream: conn.reset_stream(stream, 2)), "INTERNAL", "error 2"),
        (Way(instead=lambda conn, stream: None, then_close=True), "UNAVAILABLE", "Socket closed"),
    ],
)
def test_how_a_call_may_end(server: Http2Server, channel: Any, way: Way, status: str, said: str) -> None:
    server.script.append(way)
    came = failure(channel)
    assert came[0] == status
    assert said in came[1]
    assert len(server.calls) == 1
    assert ask(channel) == b"hello"  # the next call is answered
    given_up = way.instead is not None
    assert len(server.connections) == 1 + given_up


@pytest.mark.parametrize(
    "raw",
    [
        frames.written(frames.DATA, frames.PADDED, 1, b"\xff1"),
        frames.written(frames.HEADERS, frames.END_HEADERS, 1, b"\xbe"),
        (1 << 20).to_bytes(3, "big") + b"\0\0\0\0\0\1",
        frames.written(frames.CONTINUATION, 0, 1, b"x" * 16_000) * 70,
    ],
    ids=["padding", "table", "frame", "block"],
)
def test_a_server_that_breaks_the_rules(server: Http2Server, channel: Any, raw: bytes) -> None:
    def broken(conn: H2Connection, stream: int) -> None:
        conn._data_to_send += raw[:5] + stream.to_bytes(4, "big") + raw[9:]

    assert ask(channel) == b"hello"
    server.script.append(Way(instead=broken))
    status, text = failure(channel)
    assert status == "INTERNAL"
    assert "breaks HTTP/2's rules" in text
    assert ask(channel) == b"hello"


@pytest.mark.parametrize(
    "refuse",
    [
        lambda conn, stream: conn.reset_stream(stream, frames.REFUSED_STREAM),
        lambda conn, stream: conn.close_connection(last_stream_id=max(stream - 2, 0)),
    ],
    ids=["stream", "connection"],
)
def test_a_call_that_was_not_begun_with_is_made_again_once(
    server: Http2Server, channel: Any, refuse: Any
) -> None:
    assert ask(channel) == b"hello"
    server.script.append(Way(instead=refuse))
    assert ask(channel) == b"hello"
    assert len(server.connections) == 2
    server.script += [Way(instead=refuse)] * 2
    assert failure(channel)[0] == "UNAVAILABLE"
    assert len(server.calls) == 5


def test_a_server_on_its_way_out_finishes_its_calls(server: Http2Server, channel: Any) -> None:
    def leave(conn: H2Connection, stream: int) -> None:
        conn._data_to_send += frames.written(frames.GOAWAY, 0, 0, stream.to_bytes(4, "big") + bytes(4))

    server.script.append(Way(before=leave))
    assert ask(channel) == b"hello"
    assert ask(channel) == b"hello"
    assert len(server.connections) == 2


def wait_for(connection: Any, state: Callable[[Any], bool]) -> None:
    """Wait until what a server did has come: to the socket, where a later call reads it, or to the state."""
    if isinstance(connection, direct.Connection):
        waiting = select.poll()  # unlike select() it knows descriptors beyond 1,024
        waiting.register(connection._socket, select.POLLIN)
        wait_until(lambda waiting=waiting: waiting.poll(0))
    else:
        wait_until(lambda: state(connection.http2))


def test_connections_that_were_closed_meanwhile(server: Http2Server, channel: Any) -> None:
    assert ask(channel) == b"hello"
    server.break_off()
    for connection in channel._open:
        wait_for(connection, lambda http2: http2.spent)
    time.sleep(2 * direct._FRESH_S)
    assert ask(channel) == b"hello"
    assert len(server.calls) == 2


def held(server: Http2Server) -> threading.Event:
    """Hold the next call until the returned event is set."""
    go_on = threading.Event()
    server.script.append(Way(before=lambda conn, stream: go_on.wait(20)))
    return go_on


def test_a_deadline(server: Http2Server, channel: Any) -> None:
    """If the deadline may be sent, the call contains it and the connection is closed when it passes."""
    channel.may_cancel = True
    go_on = held(server)
    begun = time.perf_counter()
    assert failure(channel, timeout_s=0.3)[0] == "DEADLINE_EXCEEDED"
    assert 0.29 < time.perf_counter() - begun < 10
    assert not channel._open
    assert not channel._late
    wait_until(lambda: server.calls)
    assert server.calls[0][0]["grpc-timeout"] == "300m"
    go_on.set()
    assert ask(channel) == b"hello"
    assert server.closed.wait(5)


def test_a_deadline_of_which_the_server_is_not_told(server: Http2Server, channel: Any) -> None:
    """The connection waits for the late answer, drops it, and can be used again."""
    go_on = held(server)
    assert failure(channel, b"late", timeout_s=0.3)[0] == "DEADLINE_EXCEEDED"
    wait_until(lambda: server.calls)
    assert "grpc-timeout" not in server.calls[0][0]
    assert len(channel._late) == 1
    assert ask(channel, b"meanwhile") == b"meanwhile"
    assert len(server.connections) == 2
    go_on.set()
    wait_for(channel._late[0], lambda http2: not http2.late)
    channel._idle.clear()  # so that a connection is wanted
    assert ask(channel, b"later") == b"later"
    assert not channel._late
    assert len(server.connections) == 2
    assert not server.closed.is_set()


def test_late_answers_that_never_come(
    server: Http2Server, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (direct, direct_async):
        monkeypatch.setattr(module, "MOST_LATE", 2)
    server.script += [Way(instead=lambda conn, stream: None)] * 3
    for late in (1, 2, 2):
        assert failure(channel, timeout_s=0.2)[0] == "DEADLINE_EXCEEDED"
        assert len(channel._late) == late
    wait_until(lambda: len(server.calls) == 3)
    server.break_off()
    for connection in channel._late:
        wait_for(connection, lambda http2: http2.spent)
    assert ask(channel) == b"hello"
    assert not channel._late
    assert len(channel._open) == 1


def test_a_deadline_while_bytes_trickle_in(server: Http2Server, channel: Any) -> None:
    given_up = threading.Event()

    def trickle(conn: H2Connection, stream: int) -> None:
        [sock] = server.connections
        for _ in range(1000):  # who waits for the end of them is answered
            sock.sendall(frames.written(frames.PING, frames.ACK, 0, bytes(8)))
            if given_up.wait(0.01):
                return

    server.script.append(Way(before=trickle))
    assert failure(channel, timeout_s=0.2)[0] == "DEADLINE_EXCEEDED"
    given_up.set()


def test_a_deadline_while_a_server_takes_nothing_more(connect: Any) -> None:
    """The server's flow control window stays closed."""
    server = Http2Server()
    server._heed = lambda conn, event, asked: None  # type: ignore[method-assign]
    channel = connect(server.host, server.port)
    try:
        assert failure(channel, b"x" * 1_000_000, timeout_s=0.2)[0] == "DEADLINE_EXCEEDED"
    finally:
        channel.close()
        server.close()


@pytest.mark.parametrize("told", [False, True])
async def test_who_cancels_a_call_gives_it_up(server: Http2Server, told: bool) -> None:
    channel = AsyncDirectChannel(server.host, server.port)
    channel.may_cancel = told
    server.script.append(Way(instead=lambda conn, stream: None))
    call = asyncio.ensure_future(channel.unary(METHOD, b"hello", 5.0, {}))
    while not server.calls:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await channel.unary(METHOD, b"hello", 5.0, {}) == b"hello"
    assert len(channel._late) == (0 if told else 1)
    assert server.closed.wait(20.0 if told else 0.1) == told
    await channel.close()


# Servers that are not gRPC in plain text


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"",
        b"\0" * 18,
    ],
    ids=["http1", "tls", "nothing", "zeros"],
)
def test_another_protocol(said: bytes, connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(said)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        channel = connect("127.0.0.1", listener.getsockname()[1])
        status, text = failure(channel)
        thread.join()
        assert status == "UNAVAILABLE"
        assert "failed to connect" in text


def test_nobody_and_no_such_name(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    status, text = failure(connect("127.0.0.1", port))
    assert status == "UNAVAILABLE"
    assert "failed to connect" in text
    status, text = failure(connect("nowhere.invalid", 8001))
    assert status == "UNAVAILABLE"
    assert "nowhere.invalid" in text


# Threads, processes, closing


def test_threads_have_a_connection_each(server: Http2Server, channel: Any) -> None:
    def work(number: int) -> bool:
        return all(ask(channel, b"%d-%d" % (number, turn)) == b"%d-%d" % (number, turn) for turn in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert len(server.connections) <= 8
    assert len(channel._open) == len(server.connections) == len(channel._idle)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_connections_of_its_own(server: Http2Server) -> None:
    channel = DirectChannel(server.host, server.port)
    assert ask(channel, b"parent") == b"parent"
    child = os.fork()
    if not child:
        right = ask(channel, b"child") == b"child"
        channel.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ask(channel, b"parent") == b"parent"
    assert len(server.connections) == 2
    channel.close()


def test_a_call_some_time_after_closing(server: Http2Server, connect: Any) -> None:
    channel = connect(server.host, server.port)
    assert ask(channel) == b"hello"
    channel.close()
    time.sleep(0.06)  # a connection that was of use just now is not looked at
    assert failure(channel) == ("CANCELLED", "Channel closed")


def test_closing(server: Http2Server, connect: Any) -> None:
    channel = connect(server.host, server.port)
    assert ask(channel) == b"hello"
    server.script.append(Way(instead=lambda conn, stream: threading.Timer(0.1, channel.close).start()))
    for _ in range(2):  # the call in progress, and a later one
        assert failure(channel) == ("CANCELLED", "Channel closed")
    channel.close()
    assert call_fields(METHOD, "a:1") == call_fields(METHOD, "a:1")
