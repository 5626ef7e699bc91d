"""`tiercel serve` in its own process, on a real Triton."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.command import Tiercel
from tiercel_serving.supervise.awake import DEVICE, is_awake
from waiting import wait_until

Serve = Callable[..., Any]


def left_by(pid: int) -> list[str]:
    """Return shared memory and processes left by a server that process ``pid`` started."""
    mark = f"tiercel_{pid}_"
    found = [name for name in os.listdir("/dev/shm") if name.startswith(mark)]
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark.encode() in Path("/proc", entry, "cmdline").read_bytes():
                found.append(entry)
    return found


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        pytest.param(signal.SIGINT, 130, "Interrupted", marks=pytest.mark.slow),
        (signal.SIGTERM, 0, "Stopped by SIGTERM"),
    ],
)
def test_it_serves_until_a_signal_and_leaves_nothing(
    serve: Serve, release: Path, tmp_path: Path, number: signal.Signals, code: int, words: str
) -> None:
    before = {path.name for path in release.rglob("*")}
    with serve(release) as (process, document):
        assert left_by(process.pid)
        assert document["build_id"]
        answer = subprocess.run(document["curl"], shell=True, capture_output=True, text=True, timeout=60)
        outputs = {out["name"]: out["data"] for out in json.loads(answer.stdout)["outputs"]}
        assert outputs["count"] == [5]
        assert outputs["status"] == [0]
        assert len(outputs["item_id"]) == 5
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    wait_until(lambda: not left_by(process.pid))
    assert {path.name for path in release.rglob("*")} == before


def test_it_ends_when_a_stub_dies(serve: Serve, release: Path) -> None:
    with serve(release) as (process, document):
        children = Path("/proc", str(document["pid"]), "task", str(document["pid"]), "children")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "stub process" in err
    assert "start the server again" in err
    log = Path(err.rpartition("The whole log: ")[2].strip())
    assert log.is_file()
    log.unlink()
    wait_until(lambda: not left_by(process.pid))


def test_it_keeps_the_processors_awake_if_asked_to(
    serve: Serve, tiercel_here: Tiercel, release: Path
) -> None:
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        refused = tiercel_here("serve", release, "--awake")
        assert refused.returncode == 1
        assert "processors can't be kept awake" in refused.stderr
        return
    with serve(release, "--awake"):
        assert is_awake()
    wait_until(lambda: not is_awake())


@pytest.mark.slow
def test_the_other_layout(serve: Serve, release: Path) -> None:
    with serve(release, "--layout", "staged") as (_, document):
        answer = subprocess.run(document["curl"], shell=True, capture_output=True, text=True, timeout=60)
        assert '"count"' in answer.stdout


def test_refusals_say_what_to_do(tiercel_here: Tiercel, release: Path, tmp_path: Path) -> None:
    done = tiercel_here("serve", tmp_path / "no", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "ReleaseMissing"
    assert "tiercel export" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = tiercel_here("serve", release, "--grpc-port", port)
    assert done.returncode == 2
    assert f"grpc port {port} on 127.0.0.1 is not free" in done.stderr
    assert "--grpc-port" in done.stderr
    done = tiercel_here("serve", release, "--triton", tmp_path, "--grpc-port", 0)
    assert done.returncode == 1
    assert "no Triton server there" in done.stderr
    assert tiercel_here("serve", release, "--layout", "round").returncode == 2


def test_a_flag_for_triton_that_has_an_option_of_its_own_is_refused(
    tiercel_here: Tiercel, release: Path
) -> None:
    done = tiercel_here("serve", release, "--", "--metrics-port=1")
    assert done.returncode == 2
    assert "--metrics-port before the --" in " ".join(done.stderr.replace("│", " ").split())


def test_one_byte_changed_is_refused(tiercel_here: Tiercel, release: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(release, broken)
    file = max((broken / "artefacts").rglob("*.npy"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = tiercel_here("serve", broken, "--grpc-port", 0, "--http-port", 0, "--metrics-port", 0)
    assert done.returncode == 1
    assert f"{file.name}: expected SHA-256" in done.stderr
    done = tiercel_here("verify", broken, "--json")
    assert done.returncode == 1
    assert "error" in json.loads(done.stdout)
