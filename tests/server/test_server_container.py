"""The container's files, as far as they can be tried without a container engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tiercel_serving.supervise.launch import RESTRICTED

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def entrypoint(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    fake = tmp_path / "tritonserver"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.defpath}", **variables}
    command = ["/bin/sh", str(DOCKER / "entrypoint.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_entrypoint_passes_the_flags_of_the_guide(tmp_path: Path) -> None:
    done = entrypoint(tmp_path, "--log-verbose=1", TIERCEL_ADMIN_KEY="secret")
    flags = done.stdout.splitlines()
    assert flags[-1] == "--log-verbose=1"
    assert f"--http-restricted-api={RESTRICTED}:tiercel=secret" in flags
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = guide.split("## Flags in production")[1].split("\n\n## ")[0]
    named = set(re.findall(r"`(--[a-z-]+)", table)) - {"--backend-config"}
    assert named <= {flag.partition("=")[0] for flag in flags}


def test_the_entrypoint_does_not_start_without_a_key(tmp_path: Path) -> None:
    done = entrypoint(tmp_path)
    assert done.returncode != 0
    assert "TIERCEL_ADMIN_KEY" in done.stderr
    assert done.stdout == ""


def test_what_the_image_copies_exists() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    assert "Not run by this project" in text
    for line in re.findall(r"^COPY (?!--chown)(.*) \S+$", text, flags=re.M):
        for name in line.split():
            assert (ROOT / name).exists(), name


def test_the_probe_fails_where_nobody_answers() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    [cmd] = re.findall(r"^HEALTHCHECK .*\n +CMD (\[.*\])$", text, flags=re.M)
    name, *arguments = json.loads(cmd)
    assert [name, *arguments] == ["tiercel", "health", "localhost:8001", "--timeout-s", "2"]
    probe = [sys.executable, "-c", "from tiercel_serving.commands.main import main; main()"]
    nobody = [argument.replace("localhost:8001", "127.0.0.1:1") for argument in arguments]
    done = subprocess.run([*probe, *nobody], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_image_has_the_command_of_the_probe() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r'pip install .* "\.\[commands\]"', text)
    assert re.search(r"^commands = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.M)
