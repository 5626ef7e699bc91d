"""The entry point of the images with a release on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.entry_point import Container, entrypoint


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
