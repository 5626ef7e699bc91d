"""Fixtures: a small release, and the `tiercel` command in its own process or in this one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.command import TIERCEL, Tiercel, serving
from tiercel_serving.commands.cli import app


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


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], dict[str, Any]]]]:
    return serving


@pytest.fixture(scope="session")
def server(release: Path) -> Iterator[dict[str, Any]]:
    """Run one `tiercel serve`, shared by the tests that only send requests."""
    with serving(release) as (_, document):
        yield document
