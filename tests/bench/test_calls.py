"""Many calls at once over one connection, as the load generator makes them, to real gRPC servers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from tiercel_serving.bench.calls import Calls, Ended
from tiercel_serving.bench.generator import Job, send
from tiercel_serving.errors import BenchError

METHOD = "/tests.Tests/Call"


class Server:
    """Answers with what it is sent, ``fail`` with an error, and ``hold`` when it is let go."""

    def __init__(self, port: int = 0, **options: int) -> None:
        self.held, self.go_on = threading.Event(), threading.Event()
        settings = [("grpc.so_reuseport", 0), *((f"grpc.{name}", value) for name, value in options.items())]
        self.server = grpc.server(ThreadPoolExecutor(16), options=settings)
        answering = {"Call": grpc.unary_unary_rpc_method_handler(self._answer)}
        handlers = grpc.method_handlers_generic_handler("tests.Tests", answering)
        self.server.add_generic_rpc_handlers((handlers,))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()
        self.url = f"127.0.0.1:{self.port}"

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such naïve thing, 100 %")
        if request == b"hold":
            self.held.set()
            self.go_on.wait(20)
        return request


@contextmanager
def running(**options: int) -> Iterator[Server]:
    server = Server(**options)
    try:
        yield server
    finally:
        server.go_on.set()
        server.server.stop(0).wait()


def ends(calls: Calls[int], count: int, within_s: float = 10.0) -> dict[int, Ended[int]]:
    """Return the ends of so many calls by their marks."""
    until, found = time.perf_counter() + within_s, dict[int, Ended[int]]()
    while len(found) < count:
        came = calls.ended(until)
        assert came, f"{len(found)} of {count} calls have ended"
        found |= {one.mark: one for one in came}
    return found


def test_calls_end_in_any_order_each_with_its_own_status() -> None:
    with running() as server, Calls[int](server.url, METHOD, 10) as calls:
        for mark, message in enumerate((b"hold", b"", b"fail", b"x")):
            calls.begin(message, mark)
        found = ends(calls, 3)
        assert {mark: one.status for mark, one in found.items()} == {1: "OK", 2: "NOT_FOUND", 3: "OK"}
        assert found[2].details == "no such naïve thing, 100 %"
        assert len(calls) == 1
        assert calls.ended(time.perf_counter() + 0.05) == []
        server.go_on.set()
        assert ends(calls, 1)[0].status == "OK"
        assert len(calls) == 0


def test_hundreds_of_calls_are_answered_whatever_their_sizes() -> None:
    # Beyond the windows of flow control, and beyond a frame; answers that refill the connection's own window.
    sizes = [0, 1, 16_378, 16_379, 65_530, 65_531, 200_000, 3_000_000] * 10 + [10] * 300
    with running() as server, Calls[int](server.url, METHOD, 30) as calls:
        for mark, size in enumerate(sizes):
            calls.begin(bytes(size), mark)
        assert {one.status for one in ends(calls, len(sizes), 30).values()} == {"OK"}


def test_a_process_with_many_open_files_can_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiercel_serving.bench.calls._SELECTABLE", 0)
    test_hundreds_of_calls_are_answered_whatever_their_sizes()


def test_a_server_that_takes_few_calls_at_once_gets_no_more() -> None:
    with running(max_concurrent_streams=2) as server, Calls[int](server.url, METHOD, 10) as calls:
        calls.begin(b"first", -1)  # the server tells its limit with its first bytes
        ends(calls, 1)
        for mark in range(50):
            calls.begin(b"hold" if mark < 2 else b"x", mark)
        assert calls.ended(time.perf_counter() + 0.2) == [], "two are held, so no other is taken"
        server.go_on.set()
        assert {one.status for one in ends(calls, 50).values()} == {"OK"}


def test_what_is_not_answered_in_time_ends() -> None:
    with running() as server, Calls[int](server.url, METHOD, 0.3) as calls:
        calls.begin(b"hold", 1)
        begun = time.perf_counter()
        assert ends(calls, 1)[1].status == "DEADLINE_EXCEEDED"
        assert 0.3 <= time.perf_counter() - begun < 3
        server.go_on.set()
        calls.begin(b"x", 2)
        assert ends(calls, 1)[2].status == "OK", "the late answer is nobody's"


def test_a_lost_connection_ends_its_calls_and_the_next_call_makes_another() -> None:
    with running() as server:
        with Calls[int](server.url, METHOD, 10) as calls:
            calls.begin(b"hold", 1)
            assert calls.ended(time.perf_counter() + 0.2) == []
            assert server.held.wait(5)
            server.go_on.set()
            server.server.stop(None).wait()
            assert ends(calls, 1)[1].status in ("OK", "UNAVAILABLE", "CANCELLED")
            while not calls._closed:
                calls.ended(time.perf_counter() + 0.05)
            calls.begin(b"x", 2)
            assert ends(calls, 1)[2].status == "UNAVAILABLE"
            assert len(calls) == 0
            again = Server(server.port)
            try:
                calls.begin(b"x", 3)
                assert ends(calls, 1)[3].status == "OK"
            finally:
                again.server.stop(0).wait()


def test_a_server_that_stops_answers_what_it_has_and_gets_no_more() -> None:
    with running() as server, Calls[int](server.url, METHOD, 10) as calls:
        calls.begin(b"hold", 1)
        assert calls.ended(time.perf_counter() + 0.1) == []
        assert server.held.wait(5)
        stopped = server.server.stop(10)
        while not calls._leaving:
            calls.ended(time.perf_counter() + 0.05)
        calls.begin(b"x", 2)
        assert ends(calls, 1)[2].status == "UNAVAILABLE"
        server.go_on.set()
        assert ends(calls, 1)[1].status == "OK"
        stopped.wait()


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100, b""])
def test_a_peer_that_speaks_something_else_ends_the_calls(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def speak() -> None:
            with listening.accept()[0] as connection:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1000)

        thread = threading.Thread(target=speak)
        thread.start()
        with Calls[int](f"127.0.0.1:{listening.getsockname()[1]}", METHOD, 10) as calls:
            calls.begin(b"x", 1)
            assert ends(calls, 1)[1].status == "UNAVAILABLE"
        thread.join()


def test_who_cannot_be_called_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(BenchError, match=f"cannot connect to 127.0.0.1:{port}: .*refused"):
        Calls(f"127.0.0.1:{port}", METHOD, 1)
    with pytest.raises(BenchError, match="cannot call 'nowhere': expected host:port"):
        send(Job("nowhere", (b"",), 0.1))
