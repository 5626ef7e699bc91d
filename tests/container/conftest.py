"""Fixtures: the images' entry point, run outside of a container with a release on a real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DOCKER = Path(__file__).parents[2] / "docker"


def tool(name: str) -> str:
    """Return the path of an external program, beside the running Python or on PATH; skip if it is missing."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed: .ci/run and docker/README.md say where it comes from")
    return found


def entrypoint(place: Path, *arguments: str, tiercel: str = "", **variables: str) -> subprocess.Popen[str]:
    """Start the entry point, with ``tiercel`` or a shell script in its place first on PATH."""
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
    """What a container of the image runs, and its output until it served."""

    process: subprocess.Popen[str]
    document: dict[str, Any]
    log: str
    place: Path

    def metrics(self) -> str:
        with urllib.request.urlopen(self.document["metrics"], timeout=10) as answer:
            text: str = answer.read().decode()
        return text


@pytest.fixture(scope="session")
def container(text_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    place = tmp_path_factory.mktemp("container")
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    # The default address is all interfaces, which only a container's network restricts.
    options = ["--host", "127.0.0.1", *ports, "--json", "--", "--log-verbose=0"]
    with entrypoint(place, str(text_release), *options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = ""
        for line in process.stdout:
            if line.startswith("{"):
                break
            said += line
        else:
            pytest.fail(process.stderr.read())
        try:
            yield Container(process, json.loads(line), said, place)
        finally:
            process.kill()  # its guard ends Triton at once
            process.wait(30)
