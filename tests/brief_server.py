"""A server for tests, ended at once: nobody asks it any more, and Triton sleeps for a second and a half."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiercel_serving.release.opened import Release
from tiercel_serving.supervise import TritonServer, start_server


@contextmanager
def brief_server(release_or_repository: str | Path | Release, **options: Any) -> Iterator[TritonServer]:
    """:func:`start_server` with a stop without grace; the tests of the stop itself are in ``server/``."""
    with start_server(release_or_repository, **options) as server:
        yield server
        server.stop(grace_s=0.0)
