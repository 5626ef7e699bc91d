"""A server for tests that is stopped at once: nothing uses it any more, and Triton sleeps for 1.5 s."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiercel_serving.release.opened import Release
from tiercel_serving.supervise import TritonServer, start_server


@contextmanager
def brief_server(release_or_repository: str | Path | Release, **options: Any) -> Iterator[TritonServer]:
    """Run :func:`start_server`, and stop without a grace period; ``server/`` tests the stop itself."""
    with start_server(release_or_repository, **options) as server:
        yield server
        server.stop(grace_s=0.0)
