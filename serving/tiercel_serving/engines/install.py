"""Building the engines of a release where they will run, and installing them: verified, or not at all.

A release never changes under its readers: what is built goes into a copy beside it, which takes its name when
everything was verified. The copy shares the files that stay as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import VerificationFailed
from ..release.artefacts import HEADER_NAME, write_artefact
from ..release.manifest import MANIFEST_NAME
from ..release.opened import Release, check_files, open_release
from ..release.writing import staging_directory, write_manifest
from ..repository.graph import render_repository
from ..stages.engine import engine_names, model_of
from ..verify.checks import verify_release
from ..verify.report import VerifyReport
from .table import ENGINES

#: Called with the stage, how many are done, and of how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of a release that was built: its stage, its row, and what is to be said of it."""

    stage: str
    engine: str
    detail: str


def engines_to_build(release: Release) -> Iterator[tuple[str, str, Any]]:
    """Yield stage, row and kind of every engine that is built of a graph."""
    from .table import BuiltKind

    for stage in engine_names(release):
        engine = model_of(stage, release).engine
        kind: Any = ENGINES.find(engine)
        if isinstance(kind, BuiltKind):
            yield stage, engine, kind


def build_engines(
    path: str | Path,
    *,
    destination: str | Path | None = None,
    cache: str | Path | None = None,
    refittable: bool = False,
    refit: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[list[BuiltEngine], VerifyReport]:
    """Build every engine that a release leaves to the machine that serves it, verify, and install.

    Parameters
    ----------
    path
        The release.
    destination
        Where the release with its engines goes; None puts it in the place of the given one.
    cache
        Keeps what was built by device and library version, for the next start; None keeps nothing.
    refittable
        Whether plans shall take the weights of a later release.
    refit
        A release whose plans get this one's weights where they fit, in place of a build; where one does
        not, what is said of its engine tells why. The results can be refitted again.
    progress
        Called before each engine, and once before the verification.

    Returns
    -------
    What was built, and the verification's report.

    Raises
    ------
    ReleaseError
        The release is damaged: a graph that was altered after the export is one case.
    KindUnavailable, DeviceUnavailable
        The library, the GPU or its memory is lacking.
    EngineBuildFailed
        A graph can't be built.
    VerificationFailed
        An engine computes other numbers than its graph and torch. What is at the destination stays.
    """
    source = open_release(path)
    check_files(source)
    before = None if refit is None else open_release(refit).path / "artefacts"
    wanted = list(engines_to_build(source))
    keep = None if cache is None else Path(cache)
    place = Path(destination) if destination is not None else source.path
    built: list[BuiltEngine] = []
    same = place.resolve() == source.path.resolve()
    with staging_directory(place, replace=same) as staging:
        shutil.copytree(source.path, staging, copy_function=_share, dirs_exist_ok=True)
        for number, (stage, engine, kind) in enumerate(wanted):
            if progress is not None:
                progress(f"building {stage}", number, len(wanted) + 1)
            folder = staging / "artefacts" / stage
            _own(folder)
            old = None if before is None else before / stage
            detail = kind.build(folder, keep, refittable=refittable, old=old)
            built.append(BuiltEngine(stage, engine, detail))
            if not same:  # in its own place a release can still be built for another device
                for name in kind.build_reads:
                    (folder / name).unlink(missing_ok=True)
            write_artefact(folder, "engine", source.build_id, {})
        if progress is not None:
            progress("verifying", len(wanted), len(wanted) + 1)
        # What is written anew must not reach through a link into the release that was given.
        shutil.rmtree(staging / "triton")
        copy = Release(staging, source.manifest)
        render_repository(copy, staging / "triton", source.manifest.layout)
        (staging / MANIFEST_NAME).unlink()
        write_manifest(staging, source.manifest)
        report = verify_release(open_release(staging))
        report.raise_if_failed()
        _refuse_unrun(staging, wanted)
    return built, report


def _refuse_unrun(staging: Path, wanted: list[tuple[str, str, Any]]) -> None:
    """Refuse engines for which others stood in: they are not verified."""
    for stage, _, kind in wanted:
        reason = kind.absent(staging / "artefacts" / stage / kind.file)
        if reason is not None:
            raise VerificationFailed(
                f"stage {stage}: the engine was built, but not verified: {reason}; build it where it will run"
            )


def _share(source: str, to: str) -> str:
    """Link a file into the copy; what is written anew there is unlinked before."""
    try:
        os.link(source, to)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, to)
    return to


def _own(folder: Path) -> None:
    """Turn what a build writes anew into files of the copy's own."""
    for file in folder.iterdir():
        if file.name == HEADER_NAME or not file.name.endswith((".onnx", ".data")):
            own = file.with_name(file.name + ".own")
            shutil.copy2(file, own)
            own.replace(file)
