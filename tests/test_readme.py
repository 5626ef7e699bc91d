"""Every command and example of the README runs, in its order, as it is written there.

Only what would collide or take long is replaced: the ports, the number of epochs, and MovieLens by the
synthetic recipe where its data is not found. `make` targets are what CI and a fresh clone run.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    """Commands without their comments; one command a line."""
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Reader:
    """Somebody who types the README's commands in an empty folder."""

    def __init__(self, place: Path, has_movielens: bool) -> None:
        self.place = place
        http, grpc, metrics = free_ports(3)
        self.replacements = {"localhost:8000": f"localhost:{http}", "localhost:8001": f"localhost:{grpc}"}
        self.serve_options = f" --http-port {http} --grpc-port {grpc} --metrics-port {metrics}"
        self.recommend_options = f" --url localhost:{grpc}"
        if not has_movielens:
            self.replacements |= {"ml-100k": "synthetic", "movielens": "synthetic"}
        self.server: subprocess.Popen[str] | None = None
        self.environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def typed(self, line: str) -> str:
        for old, new in self.replacements.items():
            line = line.replace(old, new)
        if line.startswith("tiercel train"):
            line += " --epochs 1"
        if line.startswith("tiercel serve"):
            line += self.serve_options
        if line.startswith("tiercel recommend"):
            line += self.recommend_options
        return line

    def type(self, line: str) -> str:
        command = self.typed(line)
        if line.startswith("tiercel serve"):
            self.server = subprocess.Popen(
                command.split(), cwd=self.place, env=self.environment, text=True, stdout=subprocess.PIPE
            )
            assert self.server.stdout is not None
            return self.server.stdout.readline()
        done = subprocess.run(
            command, shell=True, cwd=self.place, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def close(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(timeout=30)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    data = Path(os.environ.get("TIERCEL_DATA_DIR", ROOT / "data"))
    one = Reader(tmp_path_factory.mktemp("reader"), (data / "ml-100k" / "u.data").is_file())
    one.environment["TIERCEL_DATA_DIR"] = str(data)
    yield one
    one.close()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in shell_lines() if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_command_runs(reader: Reader) -> None:
    lines = [line for line in shell_lines() if not line.startswith(("make ", "source ", "pip "))]
    unknown = [line for line in lines if not line.startswith(("tiercel ", "curl "))]
    assert not unknown, "commands that this test does not know how to run"
    for line in lines:
        if line.startswith("curl") and shutil.which("curl") is None:
            continue
        output = reader.type(line)
        assert output.strip(), f"$ {line}\nprinted nothing"
        if line.startswith("tiercel serve"):
            wait_until_answered(reader)
    for snippet in blocks("python"):
        code = reader.typed(snippet)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert len(done.stdout.splitlines()) == 10


def wait_until_answered(reader: Reader, timeout_s: float = 60.0) -> None:
    """The README's reader opens another terminal once the URLs are printed."""
    end = time.monotonic() + timeout_s
    health = reader.typed("tiercel health localhost:8001").split()
    while subprocess.run(health, capture_output=True, env=reader.environment).returncode:
        assert time.monotonic() < end, "the server did not answer in time"
        time.sleep(0.2)
