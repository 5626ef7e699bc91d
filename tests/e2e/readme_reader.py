"""Type the README's commands as written, in their order.

Only what would collide or take long is replaced: the ports, the number of epochs, and MovieLens by the
synthetic recipe where its data is not found.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiercel_serving.commands.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    """Return the commands without their comments, one per line."""
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


def typed_lines() -> list[str]:
    """Return all commands except those for setting up, which CI and a fresh clone cover."""
    return [line for line in shell_lines() if not line.startswith(("make ", "source ", "pip "))]


class Reader:
    """A reader of the README, in an empty folder.

    Parameters
    ----------
    place
        The folder.
    data_dir
        The folder of data sets.
    has_movielens
        Whether MovieLens-100K is there.
    """

    def __init__(self, place: Path, data_dir: Path, has_movielens: bool) -> None:
        self.place = place
        #: Command → its output, for all commands typed so far.
        self.printed: dict[str, str] = {}
        http, grpc, metrics = free_ports(3)
        self.replacements = {"localhost:8000": f"localhost:{http}", "localhost:8001": f"localhost:{grpc}"}
        self.serve_options = f" --http-port {http} --grpc-port {grpc} --metrics-port {metrics}"
        self.recommend_options = f" --url localhost:{grpc}"
        if not has_movielens:
            self.replacements |= {"ml-100k": "synthetic", "movielens": "synthetic"}
        self.server: subprocess.Popen[str] | None = None
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "TIERCEL_DATA_DIR": str(data_dir),
        }

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
        if line.startswith("tiercel export runs/"):
            # In this process, whose imports are done: that saves ten seconds of CPU time.
            return self.typed_here(command)
        done = subprocess.run(
            command, shell=True, cwd=self.place, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def typed_here(self, command: str) -> str:
        """Run a `tiercel` command in this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.place)
            patch.setenv("TIERCEL_DATA_DIR", self.environment["TIERCEL_DATA_DIR"])
            done = CliRunner().invoke(app, shlex.split(command)[1:], prog_name="tiercel")
        assert done.exit_code == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def close(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(timeout=30)

    def type_through(self, last: str = "") -> None:
        """Type the remaining commands up to the first one that starts with ``last``, or all."""
        for line in typed_lines():
            if line not in self.printed and not (line.startswith("curl") and shutil.which("curl") is None):
                self.printed[line] = self.type(line)
                if line.startswith("tiercel serve"):
                    self.wait_until_answered()
            if last and line.startswith(last):
                return

    def wait_until_answered(self, timeout_s: float = 60.0) -> None:
        """Wait for the server, as a reader who opens another terminal once the URLs are printed."""
        end = time.monotonic() + timeout_s
        # Polling by the command would take a second of CPU time each time, while the server starts.
        ready = f"http://{self.typed('localhost:8000')}/v2/health/ready"
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=5):
                return
            assert time.monotonic() < end, "the server did not answer in time"
            time.sleep(0.2)
