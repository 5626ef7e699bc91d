"""Tiercel's own backend in Triton's process: answers and errors equal those of Triton's Python backend."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from brief_server import brief_server
from cli.command import Tiercel
from e2e.raw import raw_infer
from tiercel_client import Recommender
from tiercel_serving import backend
from tiercel_serving.bench.generator import Job, send
from tiercel_serving.bench.mixes import Material, draw_requests, encode
from tiercel_serving.errors import ServerError, ServerFailed, TritonMissing
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.runtime import embedded
from tiercel_serving.supervise import TritonServer, start_server
from tiercel_serving.supervise.launch import model_repository
from waiting import rested, wait_until

PACKAGE = Path(backend.__file__).parents[1]
TESTS = Path(__file__).parent
SOURCE = PACKAGE / "backend" / "tiercel_backend.c"
LAYOUTS = ("recommend", "recommend_staged")


@pytest.fixture(scope="module")
def own(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Start a server with both layouts of the release, all on Tiercel's backend."""
    if backend.library() is None:
        pytest.skip("the backend was not built: `make setup` does, where there is a C compiler")
    repository = tmp_path_factory.mktemp("own") / "models"
    opened = open_release(release)
    render_repository(opened, repository, "fused", runner="tiercel")
    render_repository(opened, repository, "staged", suffix="_staged", runner="tiercel")
    with brief_server(repository) as running:
        yield running


@pytest.fixture(scope="module")
def asked(own: TritonServer) -> grpcclient.InferenceServerClient:
    return grpcclient.InferenceServerClient(own.grpc_url)


@pytest.fixture(scope="module")
def stock(server: dict[str, Any]) -> grpcclient.InferenceServerClient:
    """Return a client of the same release on Triton's Python backend."""
    return grpcclient.InferenceServerClient(server["grpc"])


def strings(*rows: list[str]) -> np.ndarray:
    return np.array([[text.encode() for text in row] for row in rows], object)


USER, OTHER = strings(["ü 0"]), strings(["ü 1"])
REQUESTS: dict[str, dict[str, np.ndarray]] = {
    "known": {"user_id": USER},
    "unknown": {"user_id": strings(["nobody – 誰も"])},
    "two users": {"user_id": np.concatenate([USER, OTHER]), "k": np.array([[3], [3]], np.int32)},
    "exclusions": {"user_id": USER, "exclude_item_ids": strings(["ítem/43", "ítem/54", "no such item"])},
    "no exclusions": {"user_id": USER, "exclude_item_ids": np.empty((1, 0), object)},
    "a history": {"user_id": USER, "history_item_ids": strings(["ítem/13", "ítem/35"])},
    "columns": {"user_id": strings(["new"]), "age": np.array([[41]]), "income": np.array([[np.nan]])},
    "a flag": {"user_id": USER, "allow_seen": np.array([[True]])},
    "long ids": {"user_id": USER, "exclude_item_ids": strings(["x" * 100_000, ""])},
}
BAD: dict[str, dict[str, np.ndarray]] = {
    "no user": {"k": np.array([[3]], np.int32)},
    "k of nothing": {"user_id": USER, "k": np.array([[0]], np.int32)},
    "too many": {"user_id": USER, "k": np.array([[100_000]], np.int32)},
    "an id that is no text": {"user_id": np.array([[b"\xff\xfe"]], object), "k": np.array([[-1]], np.int32)},
    "rows that differ": {"user_id": USER, "age": np.array([[1], [2]])},
    "a length beyond": {
        "user_id": USER,
        "exclude_item_ids": strings(["a"]),
        "exclude_item_ids__length": np.array([[7]], np.int32),
    },
}


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_the_same_to_the_bit(
    asked: grpcclient.InferenceServerClient, stock: grpcclient.InferenceServerClient, name: str
) -> None:
    expected = raw_infer(stock, REQUESTS[name])
    for model in LAYOUTS:
        found = raw_infer(asked, REQUESTS[name], model=model)
        for output, array in expected.items():
            assert found[output].dtype == array.dtype
            np.testing.assert_array_equal(found[output], array, err_msg=f"{model}: {output}")


@pytest.mark.parametrize("name", BAD)
def test_errors_are_the_same(
    asked: grpcclient.InferenceServerClient, stock: grpcclient.InferenceServerClient, name: str
) -> None:
    said = []
    for client in (stock, asked):
        with pytest.raises(InferenceServerException) as caught:
            raw_infer(client, BAD[name])
        # Only an ensemble's message names the ensemble.
        said.append((caught.value.status(), caught.value.message().removeprefix("in ensemble 'recommend', ")))
    assert said[0] == said[1]


def test_inner_tensors_and_titles_come_along(own: TritonServer, server: dict[str, Any]) -> None:
    with Recommender(own.grpc_url) as mine, Recommender(server["grpc"]) as theirs:
        assert mine.recommend("ü 0") == theirs.recommend("ü 0")
        one, other = mine.explain("ü 0"), theirs.explain("ü 0")
        assert (one.recommendation, one.history, one.candidates) == (
            other.recommendation,
            other.history,
            other.candidates,
        )


def test_requests_at_once_are_answered_each_and_counted(
    own: TritonServer, asked: grpcclient.InferenceServerClient
) -> None:
    """Valid and invalid requests share Triton's batches."""

    def executed() -> tuple[int, int]:
        [stats] = asked.get_inference_statistics("recommend").model_stats
        return stats.inference_count, stats.inference_stats.fail.count

    users = [f"ü {number}" for number in range(40)]
    alone = {user: raw_infer(asked, {"user_id": strings([user])})["item_id"].tolist() for user in users}
    before = rested(executed)

    def ask(number: int) -> Any:
        user = users[number % 40]
        request = {"user_id": strings([user]), "exclude_item_ids": strings(["none"] * (number % 4 + 1))}
        if number % 10 == 9:
            request["k"] = np.array([[0]], np.int32)
        try:
            return user, raw_infer(asked, request)["item_id"].tolist()
        except InferenceServerException as error:
            return number, error.status()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(120)))
    for number, (user, answer) in enumerate(answers):
        assert answer == ("StatusCode.INVALID_ARGUMENT" if number % 10 == 9 else alone[user]), number
    expected = before[0] + 108, before[1] + 12
    wait_until(lambda: executed() == expected)
    assert rested(executed) == expected


def test_threads_that_linger_for_a_stage_answer_the_same(asked: grpcclient.InferenceServerClient) -> None:
    """Send enough staged requests, one by one and in parallel, that every thread has learned to wait."""
    users = [f"ü {number}" for number in range(40)]

    def answer(user: str, model: str = "recommend_staged") -> dict[str, Any]:
        answered = raw_infer(asked, {"user_id": strings([user])}, model=model)
        return {name: array.tolist() for name, array in answered.items()}

    fused = {user: answer(user, "recommend") for user in users}
    assert [answer(user) for user in users * 4] == [fused[user] for user in users * 4]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, users * 4, ["recommend_staged", "recommend"] * 80))
    for user, answered in zip(users * 4, answers, strict=True):
        # A dense model's scores differ in the last bit between batch sizes.
        assert answered["item_id"] == fused[user]["item_id"]
        assert answered["score"][0] == pytest.approx(fused[user]["score"][0], rel=1e-5)


def test_what_is_at_fault_in_a_release_stops_the_start(
    release: Path, own: TritonServer, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    render_repository(open_release(release), repository, "fused", runner="tiercel")
    for config in repository.glob("*/config.pbtxt"):
        config.write_text(config.read_text().replace(own_build(release), "20200101T000000Z-000000000000"))
    with pytest.raises(ServerFailed, match="20200101T000000Z-000000000000"):
        start_server(repository)


def own_build(release: Path) -> str:
    return open_release(release).build_id


def test_a_runner_that_is_not_there_is_named(
    tiercel_here: Tiercel, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tiercel_here("serve", release, "--runner", "rust")
    assert done.returncode == 2
    assert "python, tiercel" in done.stderr
    monkeypatch.setattr(backend, "library", lambda: None)
    with pytest.raises(TritonMissing, match="C compiler"):
        start_server(release, runner="tiercel")


def test_a_release_says_which_runner_it_was_made_for(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = open_release(release)
    own = Release(stock.path, msgspec.structs.replace(stock.manifest, runner="tiercel"))
    for number, (made, runner, backends) in enumerate(
        [(stock, None, "python"), (stock, "tiercel", "tiercel"), (own, "python", "python")]
    ):
        work = tmp_path / str(number)
        work.mkdir()
        models = model_repository(made, None, runner, work, work / "mirror")
        assert f'backend: "{backends}"' in (models / "describe_items" / "config.pbtxt").read_text()
        assert (models / "chain").is_dir() == (backends == "python")
    # With its own runner a release needs no changed files, so its models are used as they are.
    (tmp_path / "own").mkdir()
    taken = model_repository(own, None, None, tmp_path / "own", tmp_path / "own" / "mirror")
    assert taken == tmp_path / "own" / "mirror" / "triton"
    monkeypatch.setattr(backend, "library", lambda: None)
    with pytest.raises(TritonMissing, match="serve with `--runner python`"):
        start_server(own)


def test_a_plain_repository_names_its_own_backends(release: Path, own: TritonServer) -> None:
    with pytest.raises(ServerError, match="leave layout and runner out"):
        start_server(own._source, runner="tiercel")


def test_it_compiles_without_a_warning_and_stays_small(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    built = tmp_path / backend.NAME
    flags = ["-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run([compiler, *flags, str(SOURCE), "-o", str(built)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert built.stat().st_size < 60_000


CRASHES = """
import ctypes
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        pass

    def execute(self, requests):
        arrays = [request.inputs()[0].as_numpy() for request in requests]
        if min(array.min() for array in arrays) < 0:
            ctypes.string_at(0)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("out", array)]) for array in arrays]
"""
CONFIG = """name: "toy" backend: "tiercel" max_batch_size: 4
input { name: "in" data_type: TYPE_INT64 dims: 1 } output { name: "out" data_type: TYPE_INT64 dims: 1 }"""


def test_a_crash_of_a_stage_ends_the_server_and_is_noticed_with_its_reason(tmp_path: Path) -> None:
    if backend.library() is None:
        pytest.skip("the backend was not built")
    (tmp_path / "toy" / "1").mkdir(parents=True)
    (tmp_path / "toy" / "1" / "model.py").write_text(CRASHES)
    (tmp_path / "toy" / "config.pbtxt").write_text(CONFIG)
    with start_server(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        client = grpcclient.InferenceServerClient(server.grpc_url)
        seven = {"in": np.array([[7]])}
        assert raw_infer(client, seven, model="toy", outputs=("out",))["out"].tolist() == [[7]]
        noticed = pool.submit(server.wait)
        with pytest.raises(InferenceServerException):
            raw_infer(client, {"in": np.array([[-1]])}, model="toy", outputs=("out",))
        gone = time.monotonic()
        with pytest.raises(ServerFailed, match=r"Triton was killed by SIG(SEGV|ABRT) while it was serving"):
            noticed.result(30)
        assert time.monotonic() - gone < 2


# The processors of the thread that runs the model, and of one that the model starts.
PLACES = """
import os
import threading
import numpy as np
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        pass
    def execute(self, requests):
        found = [os.sched_getaffinity(0)]
        thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
        out = np.array([[threading.get_native_id(), *map(len, found)]])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("out", out)]) for _ in requests]
"""


def test_a_thread_that_waits_keeps_its_processor_and_one_that_runs_has_them_all(tmp_path: Path) -> None:
    if backend.library() is None:
        pytest.skip("the backend was not built")
    processors = os.sched_getaffinity(0)
    if len(processors) == 1:
        pytest.skip("there is only one processor here")
    (tmp_path / "toy" / "1").mkdir(parents=True)
    (tmp_path / "toy" / "1" / "model.py").write_text(PLACES)
    config = CONFIG.replace('"out" data_type: TYPE_INT64 dims: 1', '"out" data_type: TYPE_INT64 dims: 3')
    (tmp_path / "toy" / "config.pbtxt").write_text(config + " dynamic_batching {}")
    with start_server(tmp_path) as server:
        client = grpcclient.InferenceServerClient(server.grpc_url)

        def ask() -> list[int]:
            return list(raw_infer(client, {"in": np.array([[7]])}, model="toy", outputs=("out",))["out"][0])

        def asked_and_kept() -> bool:
            thread, own, started = ask()
            assert (own, started) == (len(processors), len(processors))
            time.sleep(0.02)
            return len(os.sched_getaffinity(thread)) == 1

        # Not where other tests keep the processors busy, and not in every sixteenth wait.
        wait_until(asked_and_kept)
        wait_until(lambda: not asked_and_kept())
        wait_until(asked_and_kept)
        # Another choice that an operator makes meanwhile holds.
        thread = ask()[0]
        time.sleep(0.02)
        others = processors - os.sched_getaffinity(thread)
        os.sched_setaffinity(thread, {min(others or processors)})
        assert [ask() for _ in range(3)] == [[thread, 1, 1]] * 3


@pytest.mark.slow
def test_memory_stays_flat_over_many_requests(own: TritonServer, release: Path) -> None:
    drawn = draw_requests(Material.of(open_release(release)), "mixed", 500)
    requests = tuple(encode("recommend", tensors) for tensors in drawn)

    def resident_mb(answers: int) -> float:
        while answers > 0:
            answers -= len(send(Job(own.grpc_url, requests, 5.0, concurrency=8)).latencies_us)
        [line] = [
            t for t in Path(f"/proc/{own.pid}/status").read_text().splitlines() if t.startswith("VmRSS")
        ]
        return int(line.split()[1]) / 1024

    before = resident_mb(10_000)
    assert resident_mb(100_000) < before + 5


def ask_hostilely(tmp_path: Path, rounds: int, *flags: str, **environment: str) -> tuple[int, int]:
    """Build the backend and the stand-in and send requests; return how many were answered and refused."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    built = [tmp_path / "backend.so", tmp_path / "stand_in.so"]
    for source, library in zip((SOURCE, TESTS / "triton_stand_in.c"), built, strict=True):
        command = [compiler, "-std=c11", "-g", "-O1", "-fPIC", "-shared", *flags, str(source)]
        subprocess.run([*command, "-o", str(library)], check=True)
    done = subprocess.run(
        [sys.executable, str(TESTS / "hostile_requests.py"), *map(str, built), str(rounds)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    answered, refused = map(int, done.stdout.split())
    return answered, refused


def test_hostile_requests_and_places_where_it_cannot_run(tmp_path: Path) -> None:
    """Split memory, invalid strings, GPU tensors, cancelled requests and model errors, one by one.

    Before that: another backend API, no libpython, an invalid library, a Python without the packages.
    """
    assert min(ask_hostilely(tmp_path, 200)) > 100


@pytest.mark.slow
def test_hostile_requests_under_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    sanitizers = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(path).is_absolute() for path in sanitizers):
        pytest.skip("this compiler has no sanitizers")
    counts = ask_hostilely(
        tmp_path,
        10_000,
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        # Python itself leaks memory, and its own allocator would hide out-of-bounds accesses.
        LD_PRELOAD=" ".join(sanitizers),
        ASAN_OPTIONS="detect_leaks=0",
        PYTHONMALLOC="malloc",
    )
    assert min(counts) > 5000


def test_it_stands_in_for_all_that_the_adapter_takes_of_tritons_module() -> None:
    used = {
        node.attr
        for path in (PACKAGE / "runtime").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "pb_utils"
    }
    assert "InferenceResponse" in used
    assert used <= set(vars(embedded))
