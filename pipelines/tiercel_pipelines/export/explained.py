"""Where an export would place everything, without making it: ``tiercel export --explain``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from tiercel_serving.release.manifest import MANIFEST_NAME, Manifest
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.repository.placement import Placement, place, placed_otherwise
from tiercel_serving.repository.targets import LAYOUTS, TARGETS


def manifest_of(
    place: Path,
    tables: Mapping[str, Path],
    progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Return the manifest of a release, or the one that a run's release would have.

    Parameters
    ----------
    place
        A run or a release.
    tables
        Name → Parquet file that replaces a table of the run.
    progress
        As for ``build_release``.
    """
    if (place / MANIFEST_NAME).is_file():
        return open_release(place).manifest
    from ..training import TrainedRun
    from .catalogue import load_table
    from .run_export import plan_run

    run = TrainedRun.open(place)
    loaded: dict[str, pd.DataFrame] = {name: load_table(file, name, run) for name, file in tables.items()}
    return plan_run(run, progress=progress, **loaded)


def placement_of(manifest: Manifest, target: str, layout: str, engine: str | None = None) -> Placement:
    """Return where everything would run for a target and a layout."""
    return place(Release(Path(), placed_otherwise(manifest, target, layout, engine)))


def every_placement(manifest: Manifest) -> list[Placement]:
    """Return the placement for every target and layout."""
    return [placement_of(manifest, target, layout) for target in TARGETS for layout in LAYOUTS]
