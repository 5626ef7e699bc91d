"""A real Triton, started and stopped."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from e2e.raw import raw_infer
from tiercel_serving.errors import PortTaken, ReleaseMissing, ServerError, ServerFailed
from tiercel_serving.supervise import guard, start_server
from tiercel_serving.supervise.log import all_unloaded
from waiting import wait_until

Canary = Callable[[str, float], None]


def test_a_server_answers_and_leaves_nothing(repository: Path, canary: Canary, nothing_left: Path) -> None:
    with start_server(repository, canary=canary) as server:
        assert server.started_s < 10
        canary(server.grpc_url, 5.0)
        with urllib.request.urlopen(f"{server.http_url}/v2/health/ready") as answer:
            assert answer.status == 200
        with urllib.request.urlopen(server.metrics_url) as answer:
            assert b"nv_inference_request_success" in answer.read()
        server.check()
        # Interfaces that could change a server are off.
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server.http_url}/v2/logging")
        with pytest.raises(PortTaken, match=f"grpc port {server.ports['grpc']}"):
            start_server(repository, grpc_port=server.ports["grpc"])
        with pytest.raises(PortTaken, match=f"metrics port {server.ports['metrics']}"):
            start_server(repository, metrics_port=server.ports["metrics"])
    server.stop()
    with pytest.raises(ServerFailed, match="was stopped"):
        server.check()
    assert not list(repository.rglob("__pycache__"))
    with contextlib.ExitStack() as stack:
        again = stack.enter_context(
            start_server(repository, grpc_port=server.ports["grpc"], log=nothing_left / "t.log")
        )
        assert again.ports["grpc"] == server.ports["grpc"]
        again.stop(grace_s=0.0)
    assert "Started GRPCInferenceService" in (nothing_left / "t.log").read_text()


def test_a_model_that_does_not_load_is_told_in_its_own_words(
    broken_repository: Path, nothing_left: Path
) -> None:
    with pytest.raises(ServerFailed) as caught:
        start_server(broken_repository)
    text = str(caught.value)
    assert "model broken: ValueError: artefact users: expected build abc, found def; export again" in text
    kept = Path(text.rpartition("The whole log: ")[2])
    assert "failed to load all models" in kept.read_text()


def test_a_failing_first_inference_is_a_failed_start(repository: Path, nothing_left: Path) -> None:
    def failing(url: str, timeout_s: float) -> None:
        raise RuntimeError("no answer worth the name")

    with pytest.raises(ServerFailed, match=r"ready, but a real inference failed .*no answer worth the name"):
        start_server(repository, canary=failing)


def test_a_start_that_takes_too_long_is_given_up(
    tmp_path: Path, repository: Path, nothing_left: Path
) -> None:
    slow = "import time\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(120)\n"
    (repository / "identity" / "1" / "model.py").write_text(slow)
    begun = time.monotonic()
    with pytest.raises(ServerFailed, match=r"not ready within 1 s"):
        start_server(repository, timeout_s=1.0)
    assert time.monotonic() - begun < 60


def test_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(ReleaseMissing, match="tiercel export"):
        start_server(tmp_path / "no")
    with pytest.raises(ReleaseMissing, match="tiercel export"):
        start_server(tmp_path)


def test_the_backends_own_leavings_are_told_by_their_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "tritons", list)  # those of other tests start when they like
    for name in ("python_env_abcdef", "python_env_full00", "other_abcdef"):
        (tmp_path / name).mkdir()
    (tmp_path / "python_env_full00" / "file").touch()
    guard.remove_environments(time.time() - 60, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    guard.remove_environments(time.time(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"python_env_full00", "other_abcdef"}


def test_what_may_be_anothers_stays_until_that_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, left, every = tmp_path / "tritonserver", tmp_path / "python_env_abcdef", guard.tritons
    shutil.copy("/bin/sleep", other)
    spawned = time.time()
    # Not those that other tests have started just before.
    monkeypatch.setattr(guard, "tritons", lambda: [begun for begun in every() if begun > spawned - 0.1])
    with subprocess.Popen([other, "60"]) as process:
        left.mkdir()
        assert any(spawned - 1 < begun < time.time() + 1 for begun in guard.tritons())
        guard.remove_environments(spawned, tmp_path)
        assert left.exists()
        process.kill()
    guard.remove_environments(spawned, tmp_path)
    assert not left.exists()


#: Takes a second to answer whoever sends an 8, of which a file tells; and leaves a file as it ends.
SLOW = """
import pathlib, time
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        if any(array.max() == 8 for array in arrays):
            pathlib.Path(BEGUN).touch()
            time.sleep(1)
        return [pb.InferenceResponse([pb.Tensor("y", array)]) for array in arrays]

    def finalize(self):
        pathlib.Path(ENDED).touch()
"""


def test_a_stop_waits_for_what_is_in_flight_and_for_the_models_but_not_for_tritons_sleep(
    tmp_path: Path, repository: Path, canary: Canary, nothing_left: Path
) -> None:
    begun, ended, log = (tmp_path / name for name in ("begun", "ended", "t.log"))
    code = SLOW.replace("BEGUN", repr(str(begun))).replace("ENDED", repr(str(ended)))
    (repository / "identity" / "1" / "model.py").write_text(code)
    with (
        ThreadPoolExecutor(1) as pool,
        start_server(repository, canary=canary, log=log) as server,
        grpcclient.InferenceServerClient(server.grpc_url) as client,
    ):
        eight = {"x": np.array([[8]])}
        answer = pool.submit(raw_infer, client, eight, model="identity", outputs=("y",))
        wait_until(begun.exists)
        server.stop()
        assert answer.result(30)["y"].tolist() == [[8]]
        assert ended.exists()
    assert all_unloaded(log.read_text())
    assert server._process is not None
    assert server._process.returncode == -signal.SIGKILL


def stub_of(pid: int) -> int:
    [stub] = set(guard.group_members(pid)) - {pid}
    return stub


@pytest.mark.parametrize("victim", ["stub", "triton"])
def test_the_watch_notices_a_death(repository: Path, canary: Canary, nothing_left: Path, victim: str) -> None:
    with start_server(repository, canary=canary) as server:
        os.kill(stub_of(server.pid) if victim == "stub" else server.pid, signal.SIGKILL)
        words = "stub process .* died" if victim == "stub" else "Triton was killed by SIGKILL"
        with pytest.raises(ServerFailed, match=words):
            server.wait()
        server.stop(grace_s=0.0)


def test_a_triton_that_is_still_ending_is_no_stub(
    repository: Path, canary: Canary, nothing_left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its main thread has ended but others have not: the kernel reports a zombie without exit status."""
    with start_server(repository, canary=canary) as server:
        stub = stub_of(server.pid)
        monkeypatch.setattr(guard, "group_members", lambda group: [stub])
        with pytest.raises(ServerFailed, match="Triton died while it was serving"):
            server.check()
        threading.Timer(0.2, os.kill, (server.pid, signal.SIGKILL)).start()
        with pytest.raises(ServerFailed, match="Triton was killed by SIGKILL while it was serving"):
            server.check()
        monkeypatch.undo()
        server.stop(grace_s=0.0)


def test_the_watch_notices_a_failing_canary_and_a_stop(
    repository: Path, canary: Canary, nothing_left: Path
) -> None:
    broken = threading.Event()

    def breakable(url: str, timeout_s: float) -> None:
        if broken.is_set():
            raise TimeoutError("no answer in time")
        canary(url, timeout_s)

    with start_server(repository, canary=breakable) as server:
        threading.Timer(1.2, broken.set).start()
        with pytest.raises(ServerFailed, match="no answer in time"):
            server.wait(canary_interval_s=0.5)
        broken.clear()
        stopper = threading.Timer(0.7, server.stop, kwargs={"grace_s": 0.0})
        stopper.start()
        server.wait(canary_interval_s=0.5)
        stopper.join()


SCRIPT = """
import sys, tempfile, time
from tiercel_serving.supervise import start_server
tempfile.tempdir = sys.argv[2]
with start_server(sys.argv[1]):
    print("up", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(end, marks=pytest.mark.slow) for end in (signal.SIGTERM, signal.SIGINT))],
)
def test_nothing_is_left_when_the_starter_is_killed(
    tmp_path: Path, repository: Path, traces: Callable[[int], list[str]], number: signal.Signals
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(repository), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert traces(process.pid)
        process.send_signal(number)
    wait_until(lambda: not traces(process.pid) and not list(folder.iterdir()))
    assert traces(process.pid) == []
    assert list(folder.iterdir()) == []


def test_a_flag_that_the_supervisor_needs_for_itself_is_refused(repository: Path) -> None:
    for flag, instead in (("--grpc-port=1", "--grpc-port"), ("verbose", "--log-verbose=1")):
        with pytest.raises(ServerError, match=re.escape(instead)):
            start_server(repository, triton_flags=[flag])
