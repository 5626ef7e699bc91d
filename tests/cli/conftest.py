"""Fixtures: a small release, and the `tiercel` command in its own process or in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tiercel_serving.commands.cli import app

TIERCEL = [sys.executable, "-c", "from tiercel_serving.commands.main import main; main()"]

Tiercel = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def release(text_release: Path) -> Path:
    """Return a release whose users have text ids with accents and blanks."""
    return text_release


@pytest.fixture(scope="session")
def tiercel() -> Tiercel:
    """Run the command in its own process until it ends."""

    def run(*arguments: Any, timeout: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [*TIERCEL, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)

    return run


@pytest.fixture(scope="session")
def tiercel_here() -> Tiercel:
    """Run the command in this process, where heavy modules are imported only once."""

    def run(*arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        with pytest.MonkeyPatch.context() as patch:
            # As to a pipe: the terminal width of these tests must not matter.
            patch.delenv("COLUMNS", raising=False)
            if cwd is not None:
                patch.chdir(cwd)
            result = CliRunner().invoke(app, list(map(str, arguments)), prog_name="tiercel")
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    return run


@contextmanager
def serving(release: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run `tiercel serve` on free ports; yield the process and its JSON document."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [*TIERCEL, "serve", str(release), *ports, "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            assert process.stderr is not None
            pytest.fail(process.stderr.read())
        try:
            yield process, json.loads(line)
        finally:
            # Kill at once, upon which the guard ends Triton; other tests cover a graceful stop.
            process.kill()
            process.wait(30)


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], dict[str, Any]]]]:
    return serving


@pytest.fixture(scope="session")
def server(release: Path) -> Iterator[dict[str, Any]]:
    """Run one `tiercel serve`, shared by the tests that only send requests."""
    with serving(release) as (_, document):
        yield document
