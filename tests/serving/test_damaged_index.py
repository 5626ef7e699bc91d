"""A damaged index is refused by name before FAISS reads it; some would crash it, others fill the memory."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_release import make_tiny

from tiercel_pipelines.offline.score import score_release
from tiercel_serving.errors import ReleaseError
from tiercel_serving.sources.index import INDEX_FILE
from tiercel_serving.supervise import start_server
from tiercel_serving.verify.checks import verify_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("index") / "release", factory="IVF4,Flat", items=60).release.path


def scored(release: Path) -> object:
    return score_release(release, release.parent / "scores.parquet")


@pytest.mark.parametrize("reads", [verify_release, start_server, scored])
def test_it_is_refused_by_its_name(release: Path, reads: Callable[[Path], object]) -> None:
    (file,) = release.glob(f"artefacts/*/{INDEX_FILE}")
    content, drawn = file.read_bytes(), random.Random(1)
    for place in range(0, len(content), len(content) // 20):
        flipped = content[:place] + bytes([content[place] ^ 1 << drawn.randrange(8)]) + content[place + 1 :]
        for damaged in (flipped, content[:place], content[place:] + content[:place] if place else b"x"):
            file.write_bytes(damaged)
            with pytest.raises(ReleaseError, match=f"{INDEX_FILE}: expected .*export again"):
                reads(release)
    file.write_bytes(content)
    assert not (release.parent / "scores.parquet").exists()
