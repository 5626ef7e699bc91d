"""A hand-made model repository with one identity model, and ways to see what a server leaves behind."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pytest

from waiting import wait_until

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [{{ name: "x" data_type: TYPE_INT64 dims: [1] }}]
output [{{ name: "y" data_type: TYPE_INT64 dims: [1] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""
IDENTITY = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse([pb.Tensor("y", pb.get_input_tensor_by_name(request, "x").as_numpy())])
            for request in requests
        ]
"""
BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("artefact users: expected build abc, found def; export again")
"""


def write_repository(root: Path, code: str, name: str = "identity") -> Path:
    model = root / name
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG.format(name=name))
    (model / "1" / "model.py").write_text(textwrap.dedent(code))
    return root


def identity_canary(url: str, timeout_s: float) -> None:
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(url) as client:
        x = grpc.InferInput("x", [1, 1], "INT64")
        x.set_data_from_numpy(np.array([[7]]))
        assert client.infer("identity", [x], client_timeout=timeout_s).as_numpy("y").tolist() == [[7]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "models", IDENTITY)


@pytest.fixture
def broken_repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "broken", BROKEN, "broken")


@pytest.fixture
def canary() -> Callable[[str, float], None]:
    return identity_canary


def traces_of(pid: int) -> list[str]:
    """Return the shared memory files and processes of servers started by process ``pid``."""
    found = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if name.startswith(f"tiercel_{pid}_")]
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"tiercel_{pid}_" in command:
            found.append(f"{entry}: {command}")
    return found


def left_by(pid: int, before: Collection[str]) -> set[str]:
    """What is left beside what was there before: servers of other tests may be running."""
    return set(traces_of(pid)) - set(before)


@pytest.fixture
def traces() -> Callable[[int], list[str]]:
    return traces_of


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder for the test; at the end nothing may be left there or elsewhere."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    before = traces_of(os.getpid())
    yield folder
    wait_until(lambda: not left_by(os.getpid(), before))
    assert [path for path in folder.iterdir() if path.suffix != ".log"] == []
