"""The entry point of the images, run outside of a container; and tools that are not Python's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DOCKER = Path(__file__).parents[2] / "docker"


def tool(name: str) -> str:
    """Where a program lies that is not Python's own: beside the running Python, or on PATH; else skip."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed: .ci/run and docker/README.md say where it comes from")
    return found


def entrypoint(place: Path, *arguments: str, tiercel: str = "", **variables: str) -> subprocess.Popen[str]:
    """Start the entry point with the command ``tiercel``, or a shell script in its place, first on PATH."""
    command = place / "tiercel"
    run = f"'{sys.executable}' -c 'from tiercel_serving.commands.main import main; main()' \"$@\""
    command.write_text(f"#!/bin/sh\n{tiercel or 'exec ' + run}\n")
    command.chmod(0o755)
    environment = {**os.environ, **variables, "PATH": f"{place}:{os.environ['PATH']}", "TMPDIR": str(place)}
    return subprocess.Popen(
        ["/bin/sh", str(DOCKER / "entrypoint.sh"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass
class Container:
    """What a container of the image would run, and what it said until it served."""

    process: subprocess.Popen[str]
    document: dict[str, Any]
    log: str
    place: Path

    def metrics(self) -> str:
        with urllib.request.urlopen(self.document["metrics"], timeout=10) as answer:
            text: str = answer.read().decode()
        return text
