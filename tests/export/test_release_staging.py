"""A release appears complete or not at all, and no other files stay behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bare_manifest import bare_manifest

from tiercel_serving.errors import DestinationTaken
from tiercel_serving.release.writing import staging_directory, write_manifest


def write(path: Path, name: str) -> None:
    (path / "data").write_text(name)
    write_manifest(path, bare_manifest(name))


def export(destination: Path, name: str, *, replace: bool, error: type[BaseException] | None = None) -> None:
    with staging_directory(destination, replace=replace) as staging:
        write(staging, name)
        if error is not None:
            raise error


def test_the_name_appears_at_the_end(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "release"
    with staging_directory(destination, replace=False) as staging:
        assert staging.parent == destination.parent
        assert not destination.exists()
        write(staging, "one")
    assert (destination / "data").read_text() == "one"
    assert [path.name for path in destination.parent.iterdir()] == ["release"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_it_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        export(tmp_path / "release", "one", replace=False, error=error)
    assert list(tmp_path.iterdir()) == []


def test_an_old_release_stays_when_its_replacement_fails(tmp_path: Path) -> None:
    destination = tmp_path / "release"
    with staging_directory(destination, replace=False) as staging:
        write(staging, "one")
    with pytest.raises(KeyboardInterrupt):
        export(destination, "two", replace=True, error=KeyboardInterrupt)
    assert (destination / "data").read_text() == "one"
    with staging_directory(destination, replace=True) as staging:
        write(staging, "two")
    assert (destination / "data").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_an_old_release_comes_back_when_the_swap_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "release"
    with staging_directory(destination, replace=False) as staging:
        write(staging, "one")
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError("disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="disk"):
        export(destination, "two", replace=True)
    assert (destination / "data").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    release, folder, file = tmp_path / "release", tmp_path / "folder", tmp_path / "file"
    with staging_directory(release, replace=False) as staging:
        write(staging, "one")
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    file.write_text("x")
    for path, replace, words in (
        (release, False, "already here"),
        (folder, True, "is not a release"),
        (file, True, "is not a release"),
    ):
        with pytest.raises(DestinationTaken, match=words), staging_directory(path, replace=replace):
            pytest.fail("must not begin")
    (tmp_path / "empty").mkdir()
    with staging_directory(tmp_path / "empty", replace=False) as staging:
        write(staging, "one")
    assert (tmp_path / "empty" / "data").exists()


KILLED = """
import sys, time
from pathlib import Path
from tiercel_serving.release.writing import staging_directory
with staging_directory(Path(sys.argv[1]), replace=True) as staging:
    (staging / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def start_export(destination: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(destination)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_export_is_swept_away_and_a_running_one_is_not(tmp_path: Path) -> None:
    destination = tmp_path / "release"
    killed = start_export(destination)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not destination.exists()
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    running = start_export(destination)
    try:
        assert not left[0].exists()
        with staging_directory(destination, replace=True) as staging:
            write(staging, "one")
        assert len([path for path in tmp_path.iterdir() if ".partial-" in path.name]) == 1
    finally:
        running.send_signal(signal.SIGINT)
        running.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_release_moved_away_by_a_killed_export_comes_back(tmp_path: Path) -> None:
    destination = tmp_path / "release"
    with staging_directory(destination, replace=False) as staging:
        write(staging, "one")
    destination.rename(tmp_path / ".release.old-0123")
    with pytest.raises(DestinationTaken, match="already here"), staging_directory(destination, replace=False):
        pytest.fail("must not begin")
    assert (destination / "data").read_text() == "one"
