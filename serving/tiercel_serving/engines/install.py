"""Build a release's engines on the machine that serves it, and install them only if they verify.

A release never changes under its readers. Engines are built in a copy, which replaces the release, or goes to
another destination, after everything was verified. The copy links the files that do not change.
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

#: Called with a description of the step, the number of steps done, and the number of all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of a release that was built: its stage, its row, and a description of the result."""

    stage: str
    engine: str
    detail: str


def engines_to_build(release: Release) -> Iterator[tuple[str, str, Any]]:
    """Yield stage, row and kind of every engine that is built from a graph."""
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
        Where to write the release with its engines; None replaces the given one.
    cache
        A folder that keeps built engines by device and library version, for the next build; None keeps
        nothing.
    refittable
        Whether plans must accept the weights of a later release.
    refit
        An earlier release whose plans are reused with this one's weights where they fit, instead of a build.
        Where one does not fit, the engine's ``detail`` says why. The results can be refitted again.
    progress
        Called before each engine, and once before the verification.

    Returns
    -------
    The engines that were built, and the verification's report.

    Raises
    ------
    ReleaseError
        The release is damaged, for example because a graph was changed after the export.
    KindUnavailable, DeviceUnavailable
        The library, the GPU or its memory is missing.
    EngineBuildFailed
        A graph can't be built.
    VerificationFailed
        An engine's numbers differ from its graph's and torch's, or an engine can't run here. The destination
        stays as it was.
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
        # Remove links before writing, because a write through a link would change the given release.
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
    """Refuse engines that can't run here: their stand-ins ran in the verification instead."""
    for stage, _, kind in wanted:
        reason = kind.absent(staging / "artefacts" / stage / kind.file)
        if reason is not None:
            raise VerificationFailed(
                f"stage {stage}: the engine was built, but not verified: {reason}; build it where it will run"
            )


def _share(source: str, to: str) -> str:
    """Link a file into the copy, or copy it if that fails; unlink it before rewriting it there."""
    try:
        os.link(source, to)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, to)
    return to


def _own(folder: Path) -> None:
    """Replace links to files that a build rewrites by copies."""
    for file in folder.iterdir():
        if file.name == HEADER_NAME or not file.name.endswith((".onnx", ".data")):
            own = file.with_name(file.name + ".own")
            shutil.copy2(file, own)
            own.replace(file)
