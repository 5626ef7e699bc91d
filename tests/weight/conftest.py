"""One wheel, one release and two environments: all that this folder's tests share."""

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
    """The wheel, built from a copy: the builder leaves a folder beside its sources."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    # With the setuptools that is here: to install another first takes longer than to build.
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", made]
    command = [sys.executable, "-m", "pip", "wheel", *options, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(made.glob("*.whl"))


@pytest.fixture(scope="session")
def release(text_release: Path) -> Path:
    """A release that this Python exported; those that serve and verify it are others."""
    return text_release


@pytest.fixture(scope="session")
def host(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A serving host: ``pip install "tiercel[server]"`` in the newest Python that can have that Triton."""
    python = newest(WITH_TRITON, library=True)
    if python is None:
        pytest.skip("no Python 3.10 to 3.12 with a shared libpython on this machine")
    environment = Environment(tmp_path_factory.mktemp("host") / "venv", python)
    environment.install_quickly(f"tiercel[server] @ {wheel.as_uri()}")
    return environment


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """``pip install tiercel`` in the newest Python that Tiercel is promised for, and what it answered."""
    python = newest(ALL)
    assert python is not None
    environment = Environment(tmp_path_factory.mktemp("light") / "venv", python)
    environment.install_quickly(f"tiercel @ {wheel.as_uri()}")
    typed = {line: environment.tiercel(*line.split()) for line in ("", "--help", "serve releases/x --json")}
    client = environment.says("import tiercel_client, sys; print(tiercel_client.Recommender.__name__)")
    return Bare(environment, environment.distributions(), typed, client)


@pytest.fixture(scope="session")
def light(bare: Bare, wheel: Path) -> Environment:
    """The same environment after ``pip install "tiercel[commands]"``: a host with a Triton of its own."""
    bare.environment.install_quickly(f"tiercel[commands] @ {wheel.as_uri()}")
    return bare.environment


@pytest.fixture(scope="session")
def server(host: Environment, release: Path) -> Iterator[dict[str, Any]]:
    """The host's own ``tiercel serve`` on free ports, and what it says about itself.

    On Tiercel's runner, in the wheel that another Python built.
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
