"""Small releases of other test folders, for the benchmarks to measure."""

import sys
from pathlib import Path

import pytest

for area in ("serving", "export"):
    sys.path.insert(0, str(Path(__file__).parents[1] / area))


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory):
    from tiny_release import make_tiny

    # Text ids, because empty models most easily get those wrong.
    return make_tiny(tmp_path_factory.mktemp("bench") / "release", string_ids=True).release
