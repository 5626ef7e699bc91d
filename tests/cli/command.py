"""The `tiercel` command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TIERCEL = [sys.executable, "-c", "from tiercel_serving.commands.main import main; main()"]

Tiercel = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def serving(release: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`tiercel serve` on free ports; gives the process and what it says about itself."""
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
            # The guard ends Triton at once; stops with grace are what some tests are about.
            process.kill()
            process.wait(30)
