"""If any one file of a release is damaged, the release is refused by that file's name before it is read."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tiercel_pipelines.offline.score import score_release
from tiercel_serving.errors import ReleaseError
from tiercel_serving.release.opened import Release, check_files, open_release
from tiercel_serving.supervise import start_server
from tiercel_serving.verify.checks import verify_release


def flip_a_bit(content: bytes, drawn: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    changed[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    return bytes(changed)


def cut_off(content: bytes, drawn: random.Random, other: bytes) -> bytes:
    return content[: drawn.randrange(len(content))]


def add_to(content: bytes, drawn: random.Random, other: bytes) -> bytes:
    return content + b"\0"


def empty(content: bytes, drawn: random.Random, other: bytes) -> bytes:
    return b""


def swap(content: bytes, drawn: random.Random, other: bytes) -> bytes:
    return other


DAMAGES = (flip_a_bit, cut_off, add_to, empty, swap, None)


@pytest.fixture(scope="module")
def whole(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(release.path, tmp_path_factory.mktemp("damaged") / "release"))


def test_every_file_of_a_release_is_refused_by_its_name_when_damaged(whole: Path) -> None:
    drawn = random.Random(9)
    files = sorted(path for path in whole.rglob("*") if path.is_file() and path.name != "manifest.json")
    for number, file in enumerate(files):
        content, other = file.read_bytes(), files[number - 1].read_bytes()
        damage = drawn.choice(DAMAGES)
        file.unlink()
        if damage is not None:
            changed = damage(content, drawn, other) if content else b"x"
            file.write_bytes(changed if changed != content else content + b"x")
        with pytest.raises(ReleaseError) as caught:
            check_files(open_release(whole))
        assert str(file) in str(caught.value)
        assert "export again" in str(caught.value)
        file.write_bytes(content)
    check_files(open_release(whole))


def test_no_bit_of_the_manifest_changes_what_it_says(whole: Path) -> None:
    file, drawn = whole / "manifest.json", random.Random(3)
    content, before, refused = file.read_bytes(), open_release(whole).manifest, 0
    for _ in range(300):
        file.write_bytes(flip_a_bit(content, drawn, b""))
        try:
            opened = open_release(whole)
            check_files(opened)
        except ReleaseError as error:
            refused += "manifest.json" in str(error)
        else:
            assert opened.manifest == before
            refused += 1
    file.write_bytes(content)
    assert refused == 300


def scored(release: Path) -> object:
    return score_release(release, release.parent / "scores.parquet")


@pytest.mark.parametrize("reads", [verify_release, start_server, scored])
def test_what_reads_a_release_compares_its_files_first(whole: Path, reads: Callable[[Path], object]) -> None:
    file = max((whole / "artefacts" / "source_towers").iterdir(), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    file.write_bytes(content[:-40] + bytes(40))
    with pytest.raises(ReleaseError, match=file.name + ": expected SHA-256 .*export again"):
        reads(whole)
    file.write_bytes(content)
    assert not (whole.parent / "scores.parquet").exists()
