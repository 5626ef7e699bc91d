"""From a trained run to a release: ``build_release`` with the run's parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tiercel_export import FeatureOptions, TableColumns, build_release
from tiercel_serving.release.opened import Release

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
        Tables in place of the run's own, in its schema: a new catalogue behind the same models, without
        training. Ids that the workflow never saw become the out-of-vocabulary category; interactions
        with items that are gone are dropped. None keeps the run's table. The manifest's ``tables`` says
        which are not the run's.
    layout
        ``fused`` or ``staged``.
    target
        A row of :data:`tiercel_serving.repository.targets.TARGETS`.
    engine
        A row of :data:`tiercel_serving.engines.table.ENGINES`; None is the target's.
    replace
        Whether a release at the destination may be replaced.
    verify
        Whether to compare everything with its sources first.
    progress
        Called with a step's name, the number of steps done, and of how many.

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
    recipe, data, workflow = opened.record.recipe, opened.record.data, opened.load_workflow()
    tables = catalogue_of(opened, workflow, items=items, users=users, interactions=interactions)
    ranker = opened.load_ranking()
    return build_release(
        destination,
        name=recipe.name,
        workflow=workflow,
        items=tables.items,
        users=tables.users,
        interactions=tables.interactions,
        retrieval={name: model.served() for name, model in opened.load_retrieval().items()},
        ranker=None if ranker is None else ranker.served(),
        settings=recipe.serving,
        columns=TableColumns(data.item_id, data.user_id, data.timestamp),
        features=FeatureOptions(rows=recipe.rows, expected_packed=_trained_columns(opened)),
        target=target,
        engine=engine,
        layout=layout,
        origin=tables.origin,
        replace=replace,
        verify=verify,
        progress=progress,
    )


def _trained_columns(run: TrainedRun) -> dict[str, list[str]]:
    """Return the columns of each packed tensor in the order in which the models were trained on them."""
    order: dict[str, list[str]] = {}
    for side in (run.record.inputs.user, run.record.inputs.item):
        order[f"{side.part}_cat"] = [column.name for column in side.cat]
        order[f"{side.part}_num"] = list(side.num)
    return order
