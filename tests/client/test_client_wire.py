"""The client over real gRPC: the error map, retries, deadlines, TLS and metadata."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from both_flavours import FLAVOURS, WIRES
from wire_server import HELD, WireServer

from tiercel_client import (
    TLS,
    AsyncRecommender,
    ClientError,
    Closed,
    DeadlineExceeded,
    InvalidInput,
    Item,
    KeepAlive,
    NotAuthorised,
    NotFound,
    ProtocolMismatch,
    Recommender,
    RequestColumn,
    RequestRefused,
    Retry,
    ServerFault,
    ServerFull,
    ServerUnavailable,
    Status,
)
from tiercel_client.testing import FakeTransport

QUICK = Retry(attempts=3, first_delay_s=0.001)
COLUMNS = (
    RequestColumn("age", "int64", False, "user"),
    RequestColumn("income", "float32", False, "user"),
    RequestColumn("speed", "float64", False, "user"),
    RequestColumn("rank", "int32", False, "user"),
    RequestColumn("genres", "bytes", True, "user"),
)


def fake() -> FakeTransport:
    items = {"a": "Heat", "é\x00": "Alien ✓", "": None}
    return FakeTransport(items=items, users={"ü": ["é\x00", "", "a"]}, columns=COLUMNS, max_batch_size=4)


@pytest.fixture
def server() -> Iterator[WireServer]:
    server = WireServer(fake())
    yield server
    server.stop()


@pytest.fixture(params=WIRES)
def recommender(request: pytest.FixtureRequest, server: WireServer) -> Iterator[Any]:
    with WIRES[request.param](server.url, retry=QUICK, timeout_s=5.0) as recommender:
        yield recommender


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_answer(recommender: Any) -> None:
    answer = recommender.recommend(
        "ü",
        k=2,
        exclude=["a", "zz"],
        history=[],
        features={"age": None, "income": 2.5, "speed": float("nan"), "rank": 3, "genres": ["x", "é"]},
    )
    assert answer.status is Status.KNOWN
    assert answer.items == (Item("é\x00", 1.0, "Alien ✓", 1), Item("", 0.5, None, 2))


def test_many_and_explained(recommender: Any) -> None:
    answers = recommender.recommend_many(["ü", "nobody"] * 5, exclude=[None, ["a"]] * 5)
    assert [answer.count for answer in answers] == [3, 2] * 5
    assert [answer.status for answer in answers[:2]] == [Status.KNOWN, Status.UNKNOWN]
    explained = recommender.explain("ü")
    assert [candidate.title for candidate in explained.candidates] == ["Alien ✓", None, "Heat"]
    assert explained.times_us["retrieval"] == 100.0
    assert recommender.health().build_id == "fake"
    info = recommender.server_info()
    assert (info.server, info.server_version) == ("wire", "9.9")
    assert [column.name for column in info.request_columns] == [column.name for column in COLUMNS]


def test_what_travels_beside_the_tensors(recommender: Any, server: WireServer) -> None:
    recommender.recommend("ü", request_id="r-1", headers={"Authorization": "Bearer x"}, timeout_s=2.0)
    first, second = server.requests
    assert (first.id, second.id) == ("r-1", "r-1/titles")
    assert 1_000_000 < first.parameters["timeout"].int64_param <= 2_000_000
    assert second.parameters["timeout"].int64_param < first.parameters["timeout"].int64_param
    assert all(metadata["authorization"] == "Bearer x" for metadata in server.metadata)
    assert [output.name for output in first.outputs] == ["item_id", "score", "count", "status"]


CODE = grpc.StatusCode
EXPECTED = [
    (CODE.UNAVAILABLE, "Request timeout expired", DeadlineExceeded, 1),
    (CODE.UNAVAILABLE, "[request id: x] Exceeds maximum queue size", ServerFull, 3),
    (CODE.UNAVAILABLE, "in ensemble 'recommend', Exceeds maximum queue size", ServerFull, 3),
    (CODE.UNAVAILABLE, "Server is stopping, scheduler has stopped accepting requests", ServerUnavailable, 3),
    (CODE.UNAVAILABLE, "failed to connect to all addresses", ServerUnavailable, 3),
    (CODE.UNAVAILABLE, "Socket closed", ServerUnavailable, 1),
    (CODE.UNAVAILABLE, "", ServerUnavailable, 1),
    (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded, 1),
    (CODE.INVALID_ARGUMENT, "stage ordering: k must be 1 to 12, got 0", RequestRefused, 1),
    (CODE.FAILED_PRECONDITION, "no", RequestRefused, 1),
    (CODE.OUT_OF_RANGE, "no", RequestRefused, 1),
    (CODE.NOT_FOUND, "Request for unknown model", NotFound, 1),
    (CODE.INTERNAL, "Stub process 'x' is not healthy.", ServerFault, 1),
    (CODE.UNKNOWN, "?", ServerFault, 1),
    (CODE.DATA_LOSS, "?", ServerFault, 1),
    (CODE.ABORTED, "?", ServerFault, 1),
    (CODE.CANCELLED, "?", ServerFault, 1),
    (CODE.UNIMPLEMENTED, "?", ProtocolMismatch, 1),
    (CODE.UNAUTHENTICATED, "who?", NotAuthorised, 1),
    (CODE.PERMISSION_DENIED, "not you", NotAuthorised, 1),
    (CODE.RESOURCE_EXHAUSTED, "rate limit", ServerFull, 3),
    (CODE.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)", RequestRefused, 1),
]


@pytest.mark.parametrize(("code", "message", "kind", "attempts"), EXPECTED)
def test_the_error_map(
    recommender: Any, server: WireServer, code: Any, message: str, kind: type[ClientError], attempts: int
) -> None:
    recommender.recommend("ü")
    server.requests.clear()
    server.script.extend([(code, message)] * attempts)
    with pytest.raises(kind) as error:
        recommender.recommend("ü", request_id="r-7", titles=False)
    assert type(error.value) is kind
    assert len(server.requests) == attempts
    assert error.value.status == code.name
    assert error.value.server_message == message
    assert error.value.request_id == "r-7"
    assert server.url in str(error.value)
    assert "model 'recommend'" in str(error.value)
    assert recommender.recommend("ü").count == 3  # the next request is served


def test_every_status_is_mapped() -> None:
    assert {code for code, *_ in EXPECTED} >= set(CODE) - {CODE.OK, CODE.ALREADY_EXISTS}


def test_a_full_queue_is_tried_again(recommender: Any, server: WireServer) -> None:
    server.script.extend([(CODE.UNAVAILABLE, "Exceeds maximum queue size")] * 2)
    assert recommender.recommend("ü", titles=False).count == 3
    assert len(server.requests) == 3


def test_a_slow_server(recommender: Any, server: WireServer) -> None:
    recommender.recommend("ü")
    server.script.append(HELD)
    begun = time.perf_counter()
    with pytest.raises(DeadlineExceeded):
        recommender.recommend("ü", timeout_s=0.1)
    assert time.perf_counter() - begun < 15  # and not when the server gives up
    server.go_on.set()
    assert recommender.recommend("ü").count == 3


@pytest.mark.parametrize("flavour", ["sync", "asyncio"])
@pytest.mark.parametrize(
    ("version", "told"), [("2.51.0", False), ("2.57.0", True), ("3.0.0", True), ("", False)]
)
def test_a_triton_that_dies_of_cancelled_calls_is_not_told_of_deadlines(
    server: WireServer, flavour: str, version: str, told: bool
) -> None:
    server.version = version
    with WIRES[flavour](server.url, retry=QUICK, timeout_s=5.0) as recommender:
        recommender.recommend("ü", titles=False)
        assert (server.time_remaining[-1] < 6) == told
        server.script.append(HELD)
        with pytest.raises(DeadlineExceeded):
            recommender.recommend("ü", titles=False, timeout_s=0.1)
        server.go_on.set()
        assert recommender.recommend("ü").count == 3


def test_health_has_a_deadline(recommender: Any, server: WireServer) -> None:
    server.script.append(HELD)
    with pytest.raises(DeadlineExceeded):
        recommender.health(timeout_s=0.2)
    server.go_on.set()
    assert recommender.health().build_id == "fake"


@pytest.mark.parametrize("flavour", WIRES)
def test_nobody_listens(flavour: str) -> None:
    with WIRES[flavour](f"127.0.0.1:{free_port()}", retry=QUICK, timeout_s=60.0) as recommender:
        begun = time.perf_counter()
        with pytest.raises(ServerUnavailable, match="is the server running") as error:
            recommender.recommend(1)
        assert time.perf_counter() - begun < 30  # and not when its time is up
    assert error.value.retryable


@pytest.mark.parametrize("flavour", WIRES)
def test_a_server_that_starts_meanwhile(flavour: str) -> None:
    port = free_port()
    started: list[WireServer] = []
    timer = threading.Timer(0.4, lambda: started.append(WireServer(fake(), port=port)))
    patient = Retry(attempts=50, first_delay_s=0.05, factor=1.2, max_delay_s=0.2)
    timer.start()
    try:
        with WIRES[flavour](f"127.0.0.1:{port}", retry=patient, timeout_s=8.0) as recommender:
            assert recommender.recommend("ü").count == 3
    finally:
        timer.join()
        started[0].stop()


@pytest.mark.parametrize("flavour", WIRES)
def test_a_server_that_dies_with_the_request_is_not_asked_again(flavour: str) -> None:
    """The request may have killed it, so it must not be sent to the next replica."""
    server = WireServer(fake())
    with WIRES[flavour](server.url, retry=QUICK, timeout_s=5.0) as recommender:
        recommender.recommend("ü")
        server.requests.clear()
        server.script.append(HELD)
        killer = threading.Thread(target=lambda: (server.entered.wait(5), server.stop()))
        killer.start()
        with pytest.raises((ServerUnavailable, ServerFault)) as error:
            recommender.recommend("ü")
        killer.join()
        assert len(server.requests) == 1
        assert not error.value.retryable


@pytest.mark.parametrize("flavour", ["sync", "sync, library"])
def test_closing_while_it_waits(flavour: str, server: WireServer) -> None:
    recommender = WIRES[flavour](server.url, timeout_s=10.0)
    recommender.recommend("ü")
    server.script.append(HELD)
    closer = threading.Thread(target=lambda: (server.entered.wait(5), recommender.close()))
    closer.start()
    with pytest.raises(Closed):
        recommender.recommend("ü")
    closer.join()
    with pytest.raises(Closed):
        recommender._transport.model_config("recommend", timeout_s=1, headers={})


async def test_a_cancelled_call_is_cancelled_on_the_wire(server: WireServer) -> None:
    async with AsyncRecommender(server.url, timeout_s=10) as recommender:
        server.script.append(HELD)
        call = asyncio.ensure_future(recommender.recommend("ü"))
        while not server.entered.is_set():
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.go_on.set()
        assert (await recommender.recommend("ü")).count == 3


def test_an_event_loop_of_its_own(server: WireServer) -> None:
    recommender = AsyncRecommender(server.url)  # outside of any loop

    async def ask() -> int:
        return (await recommender.recommend("ü")).count

    assert asyncio.run(ask()) == 3
    with pytest.raises(Closed, match="event loop"):
        asyncio.run(ask())


class WrongShape(WireServer):
    """Returns a shape that its bytes do not match."""

    def ModelInfer(self, request: Any, context: Any) -> Any:
        response = super().ModelInfer(request, context)
        response.outputs[0].shape[1] += 1
        return response


@pytest.mark.parametrize("flavour", WIRES)
def test_answers_that_cannot_be_read(flavour: str) -> None:
    server = WrongShape(fake())
    try:
        with WIRES[flavour](server.url, retry=QUICK, timeout_s=5.0) as recommender:
            with pytest.raises(ProtocolMismatch, match="can't be read"):
                recommender.recommend("ü")
    finally:
        server.stop()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an authority, and keys and certificates of a server and a client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    place = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout")
    openssl(*new, "ca.key", "-x509", "-days", "2", "-subj", "/CN=test authority", "-out", "ca.pem")
    (place / "names").write_text("subjectAltName=DNS:localhost,DNS:recommender.internal")
    for name in ("server", "client"):
        openssl(*new, f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2"),
            *("-CAcreateserial", "-extfile", "names", "-out", f"{name}.pem"),
        )
    return place


def credentials(place: Path, *, of_client: bool) -> grpc.ServerCredentials:
    pair = ((place / "server.key").read_bytes(), (place / "server.pem").read_bytes())
    authority = (place / "ca.pem").read_bytes()
    return grpc.ssl_server_credentials([pair], authority if of_client else None, of_client)


@pytest.fixture(params=[False, True], ids=["tls", "mutual"])
def secure(request: pytest.FixtureRequest, certificates: Path) -> Iterator[WireServer]:
    server = WireServer(fake(), credentials=credentials(certificates, of_client=request.param))
    server.mutual = request.param  # type: ignore[attr-defined]
    yield server
    server.stop()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_tls(flavour: str, secure: WireServer, certificates: Path) -> None:
    own = {"private_key": certificates / "client.key", "certificate_chain": str(certificates / "client.pem")}
    tls = TLS(root_certificates=certificates / "ca.pem", **(own if secure.mutual else {}))  # type: ignore[attr-defined]
    options = {"timeout_s": 5.0, "retry": QUICK, "keep_alive": KeepAlive()}
    with WIRES[flavour](secure.url, tls=tls, **options) as recommender:
        assert recommender.recommend("ü").count == 3
    with WIRES[flavour](secure.url, tls=TLS(), **options) as recommender:
        with pytest.raises(ServerUnavailable, match="TLS handshake failed") as error:
            recommender.recommend("ü")
        assert not error.value.retryable
    if secure.mutual:  # type: ignore[attr-defined]
        anonymous = TLS(root_certificates=certificates / "ca.pem")
        with WIRES[flavour](secure.url, tls=anonymous, **options) as recommender:
            with pytest.raises(ServerUnavailable):
                recommender.recommend("ü")


@pytest.mark.parametrize("secure", [False], ids=["tls"], indirect=True)
@pytest.mark.parametrize(("name", "answers"), [(None, False), ("recommender.internal", True)])
def test_the_name_in_the_certificate(
    secure: WireServer, certificates: Path, name: str | None, answers: bool
) -> None:
    """The address is not in the certificate, so the name must be given."""
    tls = TLS(root_certificates=certificates / "ca.pem", server_name=name)
    with Recommender(f"127.0.0.1:{secure.port}", tls=tls, timeout_s=5.0, retry=QUICK) as recommender:
        if answers:
            assert recommender.recommend("ü").count == 3
            return
        with pytest.raises(ServerUnavailable, match="TLS handshake failed"):
            recommender.recommend("ü")


@pytest.mark.parametrize("kind", [Recommender, AsyncRecommender])
def test_missing_certificates(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"root_certificates.*nowhere\.pem"):
        kind("localhost:1", tls=TLS(root_certificates=tmp_path / "nowhere.pem"))
