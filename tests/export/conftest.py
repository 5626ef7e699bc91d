"""Fixtures: one small recommender and one release of it per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_release import Parts, small_parts, small_release

from cached_export import cached_export
from tiercel_serving.release.opened import Release


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _cached_export() -> Iterator[None]:
    with cached_export():
        yield


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return small_parts(tmp_path_factory.mktemp("workflow"))


@pytest.fixture(scope="session")
def release(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Build the shared release. Read-only: a test that changes files copies it first."""
    return small_release(tmp_path_factory.mktemp("releases") / "small", parts)


@pytest.fixture
def copied(release: Release, tmp_path: Path) -> Path:
    """Return a copy of the release that a test may damage."""
    import shutil

    return Path(shutil.copytree(release.path, tmp_path / "copy"))
