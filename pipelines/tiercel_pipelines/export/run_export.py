"""From a trained run to a release: ``build_release`` with the run's parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from tiercel_export import FeatureOptions, TableColumns, build_release
from tiercel_export.release.build import plan_release
from tiercel_serving.release.manifest import Manifest
from tiercel_serving.release.opened import Release

from ..tasks.table import score_names
from ..training import TrainedRun
from .catalogue import catalogue_of


def export_run(
    run: TrainedRun | str | Path,
    destination: str | Path,
    *,
    items: pd.DataFrame | None = None,
    users: pd.DataFrame | None = None,
    interactions: pd.DataFrame | None = None,
    layout: str = "fused",
    runner: str = "python",
    target: str = "cpu",
    engine: str | None = None,
    replace: bool = False,
    verify: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Release:
    """Compile a trained run, or the one in a directory, into a release and verify it.

    Parameters
    ----------
    run, destination
        What is exported, and the release's directory.
    items, users, interactions
        Tables to use instead of the run's own, in its schema: a new catalogue for the same models, without
        training. Ids that the workflow never saw become the out-of-vocabulary category; interactions
        with items that are gone are dropped. None keeps the run's table. The manifest's ``tables`` says
        which are not the run's.
    layout
        ``fused`` or ``staged``.
    runner
        A row of :data:`tiercel_serving.repository.targets.RUNNERS`.
    target
        A row of :data:`tiercel_serving.repository.targets.TARGETS`.
    engine
        A row of :data:`tiercel_serving.engines.table.ENGINES`; None is the target's.
    replace
        Whether a release at the destination may be replaced.
    verify
        Whether to compare everything with its sources first.
    progress
        Called with a step's name, the number of steps done, and the total number of steps.

    Raises
    ------
    TrainingError
        If the run is missing or damaged.
    ExportInputError
        If a table does not fit: see :func:`~tiercel_pipelines.export.catalogue.catalogue_of`.
    ExportError
        If it cannot be compiled exactly, or what was compiled differs from what was trained.
    """
    opened = run if isinstance(run, TrainedRun) else TrainedRun.open(run)
    parts = _parts(opened, items=items, users=users, interactions=interactions)
    return build_release(
        destination,
        **parts,
        target=target,
        engine=engine,
        layout=layout,
        runner=runner,
        replace=replace,
        verify=verify,
        progress=progress,
    )


def plan_run(
    run: TrainedRun,
    *,
    items: pd.DataFrame | None = None,
    users: pd.DataFrame | None = None,
    interactions: pd.DataFrame | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Return the manifest that a run's release would have; nothing is written.

    The parameters are those of :func:`export_run`; target, layout and engine are the default ones.
    """
    parts = _parts(run, items=items, users=users, interactions=interactions)
    return plan_release(**parts, progress=progress)


def _parts(
    run: TrainedRun,
    *,
    items: pd.DataFrame | None,
    users: pd.DataFrame | None,
    interactions: pd.DataFrame | None,
) -> dict[str, Any]:
    """Return the arguments of ``build_release`` that come from a run."""
    recipe, data, workflow = run.record.recipe, run.record.data, run.load_workflow()
    tables = catalogue_of(run, workflow, items=items, users=users, interactions=interactions)
    ranker, family = run.load_ranking(), run.record.models.ranking
    return {
        "name": recipe.name,
        "workflow": workflow,
        "items": tables.items,
        "users": tables.users,
        "interactions": tables.interactions,
        "retrieval": {name: model.served() for name, model in run.load_retrieval().items()},
        "ranker": None if ranker is None else ranker.served(),
        "tasks": () if family is None else score_names(family.task),
        "settings": recipe.serving,
        "columns": TableColumns(data.item_id, data.user_id, data.timestamp),
        "features": FeatureOptions(rows=recipe.rows, expected_packed=_trained_columns(run)),
        "origin": tables.origin,
    }


def _trained_columns(run: TrainedRun) -> dict[str, list[str]]:
    """Return the columns of each packed tensor in the order in which the models were trained on them."""
    order: dict[str, list[str]] = {}
    for side in (run.record.inputs.user, run.record.inputs.item):
        order[f"{side.part}_cat"] = [column.name for column in side.cat]
        order[f"{side.part}_num"] = list(side.num)
    return order
