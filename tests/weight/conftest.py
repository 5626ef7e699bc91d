"""Fixtures: one wheel, one release and two environments, shared by this folder's tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from environments import ALL, WITH_TRITON, Bare, Environment, newest

ROOT = Path(__file__).parents[2]
SOURCES = ("client", "export", "pipelines", "serving", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, because the build leaves a folder beside the sources."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    # With the installed setuptools: installing another one takes longer than the build.
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", made]
    command = [sys.executable, "-m", "pip", "wheel", *options, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(made.glob("*.whl"))


@pytest.fixture(scope="session")
def release(text_release: Path) -> Path:
    """Return a release exported by this Python; other Pythons serve and verify it."""
    return text_release


@pytest.fixture(scope="session")
def host(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Install ``tiercel[server]`` in the newest Python that supports the embedded Triton: a serving host."""
    python = newest(WITH_TRITON, library=True)
    if python is None:
        pytest.skip("no Python 3.10 to 3.12 with a shared libpython on this machine")
    environment = Environment(tmp_path_factory.mktemp("host") / "venv", python)
    environment.install_quickly(f"tiercel[server] @ {wheel.as_uri()}")
    return environment


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """Install ``tiercel`` alone in the newest supported Python, and record what its command answers."""
    python = newest(ALL)
    assert python is not None
    environment = Environment(tmp_path_factory.mktemp("light") / "venv", python)
    environment.install_quickly(f"tiercel @ {wheel.as_uri()}")
    typed = {line: environment.tiercel(*line.split()) for line in ("", "--help", "serve releases/x --json")}
    client = environment.says("import tiercel_client, sys; print(tiercel_client.Recommender.__name__)")
    return Bare(environment, environment.distributions(), typed, client)


@pytest.fixture(scope="session")
def light(bare: Bare, wheel: Path) -> Environment:
    """Return it after ``pip install "tiercel[commands]"``, as on a host that brings its own Triton."""
    bare.environment.install_quickly(f"tiercel[commands] @ {wheel.as_uri()}")
    return bare.environment


@pytest.fixture(scope="session")
def server(host: Environment, release: Path) -> Iterator[dict[str, Any]]:
    """Run the host's ``tiercel serve`` on free ports, and yield its JSON document.

    It uses Tiercel's own runner if there is a C compiler, from the wheel that another Python built.
    """
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    runner = "tiercel" if shutil.which("cc") else "python"
    command = [host.command, "serve", str(release), *ports, "--json", "--runner", runner]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=host.variables, cwd="/"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield json.loads(line)
        finally:
            process.kill()  # its guard ends Triton at once
            process.wait(30)
