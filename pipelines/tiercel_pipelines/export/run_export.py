"""From a trained run to a release: ``build_release`` with the run's parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from tiercel_export.release.build import build_release
from tiercel_serving.release.opened import Release

from ..features.workflow import packed_columns
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
    replace: bool = False,
    verify: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Release:
    """Compile a trained run into a release and verify it.

    Parameters
    ----------
    run
        The run, or its directory.
    destination
        The release's directory.
    items, users, interactions
        Tables in place of the run's own, in its schema: a new catalogue behind the same models, without
        training. Ids that the workflow never saw become the out-of-vocabulary category; interactions
        with items that are gone are dropped. None keeps the run's table. The manifest's ``tables`` says
        which are not the run's.
    layout
        ``fused`` or ``staged``.
    target
        A row of :data:`tiercel_serving.repository.targets.TARGETS`.
    replace
        Whether a release at the destination may be replaced.
    verify
        Whether to compare everything with its sources first.
    progress
        Called with a step's name, the number of steps done, and of how many.

    Returns
    -------
    Release
        The opened release.

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
    index = opened.index
    workflow = opened.load_workflow()
    tables = catalogue_of(opened, workflow, items=items, users=users, interactions=interactions)
    return build_release(
        destination,
        name=opened.recipe_name,
        workflow=workflow,
        user_tower=opened.load_user_tower(),
        item_tower=opened.load_item_tower(),
        ranker=opened.load_ranker(),
        items=tables.items,
        users=tables.users,
        interactions=tables.interactions,
        origin=tables.origin,
        settings=opened.serving,
        item_id=opened.item_id,
        user_id=opened.user_id,
        timestamp=opened.timestamp,
        target=target,
        layout=layout,
        index=index.factory,
        # None lets the export search them until the recall is reached.
        index_parameters={name: int(value) for name, value in index.parameters.items()} or None,
        min_recall=index.min_recall,
        replace=replace,
        verify=verify,
        progress=progress,
        expected_packed=_trained_columns(workflow),
    )


def _trained_columns(workflow: Any) -> Mapping[str, list[str]]:
    """Return the columns of each packed tensor in the order in which the models were trained on them."""
    order: dict[str, list[str]] = {}
    parts: tuple[Literal["user", "item"], ...] = ("user", "item")
    for part in parts:
        columns = [column for column in packed_columns(workflow, part) if not column.is_list]
        for kind in ("cat", "num"):
            order[f"{part}_{kind}"] = [column.name for column in columns if column.kind == kind]
    return order
