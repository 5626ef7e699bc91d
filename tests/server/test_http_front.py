"""Plain HTTP: how requests and answers are read and written, and that no body ends a real server."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.http
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from brief_server import brief_server
from drawing import examples
from tiercel_serving.errors import InvalidRequest, PortTaken
from tiercel_serving.supervise import http_front, start_server
from tiercel_serving.supervise.http_front import MAX_BODY
from tiercel_serving.supervise.kserve import DTYPES, read_request, write_answer
from tiercel_serving.supervise.ports import held_ports

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FP32": st.floats(width=32),
    "FP64": st.floats(),
    "BYTES": st.text(st.characters(codec="utf-8"), max_size=5),
}


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, list[int], list[Any]]:
    """Draw a data type, a shape, and the flat elements."""
    datatype = draw(st.sampled_from(list(VALUES)))
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    count = int(np.prod(shape))
    return datatype, shape, draw(st.lists(VALUES[datatype], min_size=count, max_size=count))


def nested(flat: list[Any], shape: list[int]) -> list[Any]:
    """Return the elements as nested lists."""
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape).tolist()


def same(mine: list[Any], theirs: list[Any]) -> bool:
    return len(mine) == len(theirs) and all(
        a == b or (a != a and b != b) for a, b in zip(mine, theirs, strict=True)
    )


@examples(25)
@given(sent=st.lists(tensors(), min_size=1, max_size=3), data=st.data())
def test_tensors_come_back_as_they_were_sent(sent: list[Any], data: st.DataObject) -> None:
    """As JSON, flat or nested, or as bytes appended to it; the answer likewise."""
    inputs, behind, answer = [], b"", service_pb2.ModelInferResponse(model_name="m", model_version="1")
    for place, (datatype, shape, flat) in enumerate(sent):
        entry: dict[str, Any] = {"name": f"t{place}", "datatype": datatype, "shape": shape}
        plain = {"inputs": [{**entry, "data": flat}]}
        raw = read_request("m", "", json.dumps(plain).encode(), None)[0].raw_input_contents[0]
        how = data.draw(st.sampled_from(["flat", "nested", "bytes"]))
        if how == "bytes":
            entry["parameters"], behind = {"binary_data_size": len(raw)}, behind + raw
        else:
            entry["data"] = flat if how == "flat" else nested(flat, shape)
        inputs.append(entry)
        answer.outputs.add(name=f"t{place}", datatype=datatype, shape=shape)
        answer.raw_output_contents.append(raw)
    as_bytes = {f"t{place}": data.draw(st.booleans()) for place in range(len(sent))}
    outputs = [{"name": name, "parameters": {"binary_data": flag}} for name, flag in as_bytes.items()]
    text = json.dumps({"id": "r", "inputs": inputs, "outputs": outputs}).encode()
    request, binary = read_request("m", "1", text + behind, len(text))
    assert (request.model_name, request.model_version, request.id) == ("m", "1", "r")
    assert [output.name for output in request.outputs] == list(as_bytes)
    assert list(request.raw_input_contents) == list(answer.raw_output_contents)
    body, size = write_answer(answer, binary)
    assert (size is not None) == any(as_bytes.values())
    document, rest = json.loads(body[:size]), body[len(body) if size is None else size :]
    for (datatype, shape, flat), tensor, entry in zip(sent, request.inputs, document["outputs"], strict=True):
        assert (
            (tensor.datatype, list(tensor.shape)) == (datatype, shape) == (entry["datatype"], entry["shape"])
        )
        if as_bytes[entry["name"]]:
            count = entry["parameters"]["binary_data_size"]
            mine, rest = rest[:count], rest[count:]
            assert mine in list(answer.raw_output_contents)
        elif datatype == "FP32":
            assert same(entry["data"], np.array(flat, np.float32).tolist())
        else:
            assert same(entry["data"], flat)
    assert rest == b""


GOOD = {"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [7]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"inputs": ' * 100_000, "nested too deeply"),
        (b"[1]", "expected a JSON object"),
        ({}, "list of objects as 'inputs'"),
        ({"inputs": [1]}, "list of objects as 'inputs'"),
        ({"inputs": [GOOD], "outputs": {}}, "list of objects as 'outputs'"),
        ({"inputs": [GOOD], "outputs": [{}]}, "an output: expected text as 'name'"),
        ({"inputs": [GOOD], "id": 3}, "the request: expected text as 'id'"),
        ({"inputs": [GOOD], "parameters": {"a": []}}, "parameter 'a': expected text, a number"),
        ({"inputs": [GOOD], "parameters": {"a": 2**80}}, "parameter 'a'"),
        ({"inputs": [{**GOOD, "name": "\ud800"}]}, "an input: expected text as 'name'"),
        ({"inputs": [{**GOOD, "datatype": "UINT7"}]}, "input x: expected one of BOOL, INT32"),
        ({"inputs": [{**GOOD, "shape": [1, 2**61]}]}, "expected a list of sizes as 'shape'"),
        ({"inputs": [{**GOOD, "shape": [2**31 - 1, 2**31 - 1]}]}, "elements, but its data 1"),
        ({"inputs": [{**GOOD, "shape": [-1, -1]}]}, "expected a list of sizes"),
        ({"inputs": [{**GOOD, "shape": [True, 1.0]}]}, "expected a list of sizes"),
        ({"inputs": [{**GOOD, "data": 7}]}, "expected a list as 'data'"),
        ({"inputs": [{**GOOD, "data": [7, 8]}]}, "its shape has 1 elements, but its data 2"),
        ({"inputs": [{**GOOD, "shape": [2, 1], "data": [[7], 8]}]}, "mixes lists and values"),
        ({"inputs": [{**GOOD, "data": [True]}]}, "expected whole numbers"),
        ({"inputs": [{**GOOD, "data": [2**63]}]}, "a value cannot travel"),
        ({"inputs": [{**GOOD, "datatype": "INT32", "data": [2**31]}]}, "a value cannot travel"),
        ({"inputs": [{**GOOD, "datatype": "FP64", "data": [10**400]}]}, "a value cannot travel"),
        ({"inputs": [{**GOOD, "datatype": "BYTES", "data": ["\ud800"]}]}, "a value cannot travel"),
        ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 8}}]}, "expected 'data', or"),
        ({"inputs": [{**GOOD, "parameters": {"binary_data_size": -1}}]}, "expected 'data', or"),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_words(body: Any, words: str) -> None:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InvalidRequest, match=words):
        read_request("m", "", text, None)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(list(DTYPES)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*GOOD, "inputs", "outputs", "parameters", "id"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@examples(50)
@given(
    document=anything,
    entry=st.dictionaries(st.sampled_from([*GOOD, "parameters"]), anything),
    size=st.integers(0, 90),
)
def test_anything_is_read_or_refused_and_never_an_accident(document: Any, entry: Any, size: int) -> None:
    for asked in (document, {"inputs": [{**GOOD, **entry}], "outputs": [{"name": "y", **entry}]}):
        for json_size in (None, size):
            with contextlib.suppress(InvalidRequest):
                request, _ = read_request("m", "", json.dumps(asked).encode(), json_size)
                assert len(request.inputs) == len(request.raw_input_contents)


INFER = "/v2/models/identity/infer"


def ask(port: int, body: bytes, headers: dict[str, str] | None = None, chunks: int = 0) -> int:
    """Return the status of the answer, or 0 if the connection broke."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    parts = (body[at : at + chunks] for at in range(0, len(body), chunks)) if chunks else body
    try:
        connection.request("POST", INFER, parts, headers or {}, encode_chunked=bool(chunks))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def whole(port: int, body: bytes) -> bytes:
    """Return the start of the answer to a request whose head and body are sent at once."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        head = (
            f"POST {INFER} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        return connection.recv(15)


def large(users: int, ids: int) -> bytes:
    tensor = {"name": "more", "shape": [users, ids], "datatype": "INT64", "data": [1234567] * (users * ids)}
    return json.dumps({"inputs": [GOOD, tensor]}).encode()


def mangled(seed: int) -> bytes:
    """Return a request with some bytes replaced, repeated or removed."""
    draw, text = random.Random(seed), bytearray(json.dumps({"inputs": [GOOD]}), "ascii")
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(text))
        text[at : at + draw.randint(0, 3)] = draw.choice(
            [b"", b"[", b"{", b"9" * 30, b"-", b"\xff", text[:at]]
        )
    return bytes(text)


def test_no_body_ends_the_server(
    repository: Path, canary: Callable[[str, float], None], nothing_left: Path
) -> None:
    good, much = json.dumps({"inputs": [GOOD]}).encode(), large(64, 10_000)
    assert 5_000_000 < len(much) < MAX_BODY
    packed = {"Content-Encoding": "gzip"}
    json_size = "Inference-Header-Content-Length"
    with brief_server(repository, canary=canary) as server:
        port = server.ports["http"]
        cases: list[tuple[int, Callable[[], int]]] = [
            (200, lambda: ask(port, good)),
            (200, lambda: ask(port, good, chunks=1)),
            (200, lambda: ask(port, gzip.compress(good), packed)),
            # Triton itself refuses more inputs than the model has.
            (400, lambda: ask(port, much)),
            (400, lambda: ask(port, much, chunks=100_000)),
            (400, lambda: ask(port, much, {json_size: str(len(much))})),
            (400, lambda: int(whole(port, much).split()[1])),
            (413, lambda: ask(port, b" " * (MAX_BODY + 1))),
            (413, lambda: ask(port, gzip.compress(b"[" * (2 * MAX_BODY)), packed)),
            (400, lambda: ask(port, good, packed)),
            (400, lambda: ask(port, b"[" * 1_000_000)),
            (400, lambda: ask(port, b'{"inputs":' * 300_000)),
            (400, lambda: ask(port, good.replace(b"[1, 1]", b"[1, 2305843009213693952]"))),
            (400, lambda: ask(port, good, {json_size: "-1"})),
            (400, lambda: ask(port, good, {json_size: str(len(good) + 1)})),
            (400, lambda: ask(port, good + b"1234", {json_size: str(len(good))})),
        ]
        for place, (status, send) in enumerate(cases):
            assert send() == status, place
            assert ask(port, good) == 200, place
        for seed in range(60):
            assert ask(port, mangled(seed)) in (200, 400), seed
        server.check()
        canary(server.grpc_url, 5.0)
        with pytest.raises(PortTaken, match=f"http port {port}"):
            start_server(repository, http_port=port)


#: Data sent over a connection, and the status of its answer; empty if the server waits for the rest.
STRANGE: list[tuple[bytes, bytes]] = [
    (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    (b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", b"400"),
    (b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{", b""),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\n{}\n\r\n0\r\n\r\n", b"400"),
    (b"Content-Length: 3\r\nContent-Length: 2\r\n\r\n{}\n", b"400"),
    (b"Content-Length: -1\r\n\r\n{}", b"400"),
    (b"Content-Length: 99999999999999999999\r\n\r\n{}", b"400"),
    (b"Content-Length: 2\r\n\r\n{}", b"400"),
    (b"Content-Length: 90\r\n\r\n{}", b""),
    (b"Content-Length: 67108864\r\nExpect: 100-continue\r\n\r\n", b"100"),
    (b"Content-Length: 2\r\nExpect: 200-perhaps\r\n\r\n{}", b"417"),
    (b"Content-Length: 2\r\nContent-Encoding: gzip, gzip\r\n\r\n{}", b"400"),
    (b"X: " + b"a" * 100_000 + b"\r\n\r\n", b"400"),
    (b"Content-Length: 2\r\n\r\n{}garbage \0\xff\r\n\r\n", b"400"),
]


def test_strange_heads_slow_senders_and_many_connections_harm_nobody_else(
    repository: Path,
    canary: Callable[[str, float], None],
    nothing_left: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, seconds in (("BODY_S", 1.5), ("IDLE_S", 1.5), ("LOOK_S", 0.1)):
        monkeypatch.setattr(http_front, name, seconds)
    good, start = json.dumps({"inputs": [GOOD]}).encode(), f"POST {INFER} HTTP/1.1\r\nHost: here\r\n".encode()
    one = start + f"Content-Length: {len(good)}\r\n\r\n".encode() + good
    with brief_server(repository, canary=canary) as server, contextlib.ExitStack() as stack:
        port = server.ports["http"]

        def send(said: bytes) -> socket.socket:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            connection.sendall(said)
            return connection

        waiting = []
        for place, (rest, status) in enumerate(STRANGE):
            connection = send(start + rest)
            if status:
                assert connection.recv(12)[-3:] == status, place
            else:
                waiting.append(connection)
            assert ask(port, good) == 200, place
        for nonsense in (
            random.Random(1).randbytes(5_000),
            b"\x16\x03\x01\0\xa5\x01",
            b"\r\n" * 3 + one,
            one * 50,
        ):
            send(nonsense)
            assert ask(port, good) == 200
        slow = [send(start + b"X: ") for _ in range(200)]
        assert ask(port, good) == 200
        canary(server.grpc_url, 5.0)
        # Connections that send nothing more get a timeout status, or are closed.
        assert {connection.recv(12) for connection in waiting} == {b"HTTP/1.1 408"}
        assert all(connection.recv(1) == b"" for connection in slow)
        assert ask(port, good) == 200
        server.check()
    assert "Traceback" not in capfd.readouterr().err


class Slow(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers without tensors, after some time."""

    def __init__(self, seconds: float) -> None:
        self.entered, self._seconds = threading.Event(), seconds

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.entered.set()
        time.sleep(self._seconds)
        return service_pb2.ModelInferResponse()


@pytest.mark.parametrize(
    ("takes_s", "grace_s", "status"), [(0.5, 10.0, 200), (3.0, 0.4, 503), (3.0, 0.0, 503)]
)
def test_a_shutdown_lets_requests_end_within_its_grace(takes_s: float, grace_s: float, status: int) -> None:
    triton, slow = grpc.server(ThreadPoolExecutor(2)), Slow(takes_s)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(slow, triton)
    behind = triton.add_insecure_port("127.0.0.1:0")
    triton.start()
    with held_ports("127.0.0.1", {"http": None}) as held:
        port = held["http"]
    front = http_front.HttpFront("127.0.0.1", port, f"127.0.0.1:{behind}")
    with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", port), 30) as sender:
        if status == 503:  # a request that never ends, too
            sender.sendall(f"POST {INFER} HTTP/1.1\r\nHost: here\r\nContent-Length: 90\r\n\r\n{{".encode())
        answered = pool.submit(ask, port, json.dumps({"inputs": [GOOD]}).encode())
        assert slow.entered.wait(10)
        begun = time.monotonic()
        left_s = front.close(grace_s)
        took_s = time.monotonic() - begun
        assert took_s < (5 if status == 200 else grace_s + 2)
        assert left_s == pytest.approx(max(grace_s - took_s, 0), abs=0.2)
        assert answered.result() == status
    triton.stop(0).wait()


class Idle:
    def __init__(self, place: int, ended: list[int]) -> None:
        self.force_close = lambda: ended.append(place)


def test_the_longest_idle_connection_ends_first_where_there_are_many() -> None:
    ended: list[int] = []
    idle = [Idle(place, ended) for place in range(5)]
    connections = http_front._Connections(3)
    connections.look(idle[:3], 0.0)
    connections.look(idle, 1.0)
    assert ended == [0, 1]
    connections.look(idle[2:], 0.5 + http_front.IDLE_S)
    assert ended == [0, 1, 2]


def test_tritons_own_http_client_is_answered(
    repository: Path, canary: Callable[[str, float], None], nothing_left: Path
) -> None:
    with brief_server(repository, canary=canary) as server:
        with contextlib.closing(tritonclient.http.InferenceServerClient(server.http_url[7:])) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("identity", "1")
            assert not client.is_model_ready("nobody")
            assert client.get_server_metadata()["name"] == "triton"
            [told] = client.get_model_metadata("identity")["inputs"]
            assert told == {"name": "x", "datatype": "INT64", "shape": [-1, 1]}
            values = np.array([[3], [-(2**63)]])
            for sent_as_bytes, answered_as_bytes in (
                (True, True),
                (True, False),
                (False, True),
                (False, False),
            ):
                x = tritonclient.http.InferInput("x", [2, 1], "INT64")
                x.set_data_from_numpy(values, binary_data=sent_as_bytes)
                y = tritonclient.http.InferRequestedOutput("y", binary_data=answered_as_bytes)
                answer = client.infer("identity", [x], outputs=[y], request_id="r")
                assert answer.as_numpy("y").tolist() == values.tolist()
                assert answer.get_response()["id"] == "r"
            with pytest.raises(tritonclient.utils.InferenceServerException, match="unknown model: 'nobody'"):
                client.infer("nobody", [x])
