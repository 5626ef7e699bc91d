"""Build a release from trained parts with one function, :func:`build_release`.

The steps, in the order of the code, are check → compile the workflow → tables → dense models → sources →
manifest → golden vectors → Triton repository → verify → rename. Everything is written to a directory beside
the destination, which is renamed only after verification.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import pandas as pd

from tiercel_serving.errors import InvalidSettings
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.release.manifest import MANIFEST_FORMAT, Manifest
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.release.writing import made_now, new_build_id, staging_directory, write_manifest
from tiercel_serving.reorder.per_request import name_problems
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.repository.targets import find_target
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.table import Made
from tiercel_serving.stages.specs import Tensors
from tiercel_serving.verify.checks import verify_release

from ..forms import ServedForm
from ..models.prepare import Models, calibrate_engines, prepare_models, write_engines
from .fit import check_reorder, named_tasks, refuse
from .given import check_inputs
from .goal import check_onnx, make_goal, refuse_unmakeable
from .golden import ask_oracles, with_reduced
from .golden_answers import stranger
from .parts import FeatureOptions, Goal, Inputs, Programs, TableColumns, Tables
from .programs import compile_programs
from .request_columns import graph_names, request_columns
from .solve import solve_weights
from .sources import make_sources, write_source
from .tables import make_tables
from .uncompiled import Uncompiled

if TYPE_CHECKING:
    from ..forms import DenseGiven

__all__ = ["STEPS", "FeatureOptions", "Progress", "TableColumns", "build_release", "plan_release"]

logger = logging.getLogger("tiercel_export")

#: ``progress(name, done, total)``: the name of the step that begins, the number of steps done, and of all.
Progress = Callable[[str, int, int], None]

#: Defaults for the column names of ids and times, and for how the workflow is read.
COLUMNS, FEATURES = TableColumns(), FeatureOptions()

#: The steps that are reported to ``progress``. The fourth also reports each model, as ``exporting ranking``.
STEPS = (
    "checking the inputs",
    "compiling the workflow",
    "making tables",
    "exporting the models",
    "making the sources",
    "asking the oracles",
    "writing the model repository",
    "verifying",
)


@dataclass(frozen=True)
class Prepared:
    """The parts of a recommender that an export prepares before it makes engines and sources."""

    programs: Programs
    tables: Tables
    models: Models


def build_release(
    destination: str | Path,
    *,
    name: str,
    workflow: Any,
    items: pd.DataFrame,
    retrieval: Mapping[str, ServedForm],
    ranker: DenseGiven | None = None,
    tasks: Sequence[str] = (),
    users: pd.DataFrame | None = None,
    interactions: pd.DataFrame | None = None,
    settings: ServingSettings | None = None,
    columns: TableColumns = COLUMNS,
    features: FeatureOptions = FEATURES,
    target: str = "cpu",
    engine: str | None = None,
    layout: str = "fused",
    runner: str = "python",
    origin: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    replace: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> Release:
    """Compile trained parts into a release, verify it, and move it to its destination.

    Parameters
    ----------
    destination
        The release's directory. It appears complete, or not at all.
    name
        The name of this recommender, which clients see.
    workflow
        A fitted ``nvtabular.Workflow``, or the folder that its ``save`` wrote. Its outputs have the tags
        USER, ITEM or CONTEXT, and its categories CATEGORICAL.
    items
        One row for each item: the id, the workflow's raw item columns, and the columns that sources, rules,
        reorder steps and titles name.
    retrieval
        Source → the served form of its model, such as :class:`~tiercel_export.forms.Vectors`.
    ranker
        Torch module whose ``forward`` parameters are named after the tensors it takes. These are the tensors
        that the query module of :class:`~tiercel_export.forms.Vectors` may take, ``item_cat [B, K, C]``
        int64, ``item_num [B, K, F]`` float32, ``item_list_<column> [B, K, L]``, ``kept_score [B, K]`` float32
        and ``kept_source [B, K]`` int32. It returns ``[B, K, T]`` float32, one column for each task. Or the
        path of an ONNX file (or an ``onnx.ModelProto``) whose inputs have those names. None keeps retrieval's
        order.
    tasks
        Names of the ranker's scores, in order. Reorder steps may refer to them, and clients see them.
    users
        One row for each user: the id and the workflow's raw user columns. With None, no user is known.
    interactions
        One row for each interaction: user id, item id and timestamp. Histories, seen items and popularity are
        computed from it. Its context columns, if any, are used as examples for golden vectors.
    settings
        Limits, sources, rules and reorder steps of serving; None uses the defaults. Without sources, each
        served form gets its own source.
    columns
        Names of the id and time columns in the tables.
    features
        How the workflow is read.
    target, layout
        Rows of :data:`tiercel_serving.repository.targets.TARGETS`, and ``fused`` or ``staged``.
    runner
        What runs the stages inside Triton: a row of :data:`tiercel_serving.repository.targets.RUNNERS`.
    engine
        A row of :data:`tiercel_serving.engines.table.ENGINES` for the dense models; None uses the target's
        best that this machine can make.
    origin
        Table → where it comes from, as a JSON object; the manifest stores it under ``tables``.
    seed
        Random seed for clustering and sampling.
    replace
        Whether a release at the destination may be replaced.
    verify
        Whether to compare all compiled parts with their originals before the release is renamed.
    progress
        Called with the name of the step that begins, the number of steps done, and the number of all steps.

    Returns
    -------
    Release
        The opened release. The ``notes`` of its manifest say, among other things, which data was dropped.

    Raises
    ------
    ExportInputError
        If parts do not fit together.
    WorkflowError
        If the workflow cannot be compiled exactly.
    InvalidSettings, KindUnavailable
        If there is no such target, layout, runner or engine, a source can't be built as configured, or a
        requirement of a kind is not installed.
    VerificationFailed
        If a compiled part differs from its original. The destination is left unchanged.
    """
    step = _reporter(progress)
    step(0)
    goal = make_goal(name, target, engine, layout, runner, origin or {}, tasks)
    refuse_unmakeable(target, engine)
    check_onnx(goal.engine, retrieval, ranker)
    _refuse_added_items(settings, target)
    inputs = check_inputs(
        items=items,
        users=users,
        interactions=interactions,
        columns=columns,
        settings=named_tasks(settings or ServingSettings(), goal.tasks),
        retrieval=retrieval,
        seed=seed,
    )
    with staging_directory(Path(destination), replace=replace) as staging:
        artefacts, build_id = staging / "artefacts", new_build_id()
        parts = _prepare(inputs, workflow, features, ranker, goal.tasks, step)
        programs, tables, models = parts.programs, parts.tables, parts.models
        most = inputs.settings.max_batch_size
        notes = write_engines(
            artefacts,
            models,
            goal.engine,
            max_batch=most,
            build_id=build_id,
            tell=lambda what: step(3, what),
        )
        inputs.notes.extend(notes)
        step(4)
        user_ids = np.concatenate([inputs.user_ids, stranger(inputs.user_ids)])
        uncompiled = Uncompiled(inputs.settings, tables, models, user_ids)
        sources = make_sources(inputs, uncompiled)
        inputs, uncompiled = solve_weights(inputs, uncompiled, sources)
        manifest = _manifest(goal, build_id, inputs, programs, tables, models, sources)
        _write_artefacts(artefacts, programs, tables, sources, build_id)
        release = Release(staging, manifest)
        step(5)
        golden, originals, requests = ask_oracles(inputs, programs, uncompiled, sources)
        golden.write(artefacts, build_id)
        calibrate_engines(
            artefacts, models, goal.engine, requests.calibration, max_batch=most, build_id=build_id
        )
        originals = with_reduced(originals, requests, goal.engine, artefacts)
        step(6)
        render_repository(release, staging / "triton", layout)
        write_manifest(staging, manifest)
        step(7)
        if verify:
            verify_release(open_release(staging), originals=originals).raise_if_failed()
    step(len(STEPS))
    for note in inputs.notes:
        logger.warning("%s", note)
    return open_release(Path(destination))


def plan_release(
    *,
    name: str,
    workflow: Any,
    items: pd.DataFrame,
    retrieval: Mapping[str, ServedForm],
    ranker: DenseGiven | None = None,
    tasks: Sequence[str] = (),
    users: pd.DataFrame | None = None,
    interactions: pd.DataFrame | None = None,
    settings: ServingSettings | None = None,
    columns: TableColumns = COLUMNS,
    features: FeatureOptions = FEATURES,
    target: str = "cpu",
    engine: str | None = None,
    layout: str = "fused",
    runner: str = "python",
    origin: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of the release that :func:`build_release` would make, without writing anything.

    No engines or indexes are made, so the manifest has no figures for sources, and this machine does not need
    the engine's compiler, library or device.

    Parameters
    ----------
    name, workflow, items, retrieval, ranker, tasks, users, interactions, settings, columns, features
        As for :func:`build_release`.
    target, engine, layout, runner, origin, seed, progress
        As for :func:`build_release`.

    Raises
    ------
    ExportInputError, WorkflowError, InvalidSettings, KindUnavailable
        As :func:`build_release` raises before it makes engines.
    """
    step = _reporter(progress)
    step(0)
    goal = make_goal(name, target, engine, layout, runner, origin or {}, tasks)
    check_onnx(goal.engine, retrieval, ranker)
    _refuse_added_items(settings, target)
    inputs = check_inputs(
        items=items,
        users=users,
        interactions=interactions,
        columns=columns,
        settings=named_tasks(settings or ServingSettings(), goal.tasks),
        retrieval=retrieval,
        seed=seed,
    )
    parts = _prepare(inputs, workflow, features, ranker, goal.tasks, step)
    return _manifest(goal, new_build_id(), inputs, parts.programs, parts.tables, parts.models, {})


def _refuse_added_items(settings: ServingSettings | None, target: str) -> None:
    if settings is not None and settings.added_items and find_target(target).device is not None:
        raise InvalidSettings(
            f"settings.added_items: {settings.added_items}, but stages on a device (target {target!r}) take "
            "no new items; leave it 0, or take the target cpu"
        )


class _Step(Protocol):
    def __call__(self, done: int, what: str = "") -> None:
        """Report the step that begins; ``what`` replaces its name for a part of a step."""
        ...


def _reporter(progress: Progress | None) -> _Step:
    def step(done: int, what: str = "") -> None:
        if progress is not None:
            progress(what or STEPS[min(done, len(STEPS) - 1)], done, len(STEPS))

    return step


def _prepare(
    inputs: Inputs,
    workflow: Any,
    features: FeatureOptions,
    ranker: DenseGiven | None,
    tasks: Sequence[str],
    step: _Step,
) -> Prepared:
    """Compile the workflow, make the tables, and check the models; nothing is written."""
    step(1)
    programs = compile_programs(inputs, workflow, features)
    step(2)
    tables = make_tables(inputs, programs)
    step(3)
    tensors = Tensors(inputs.settings, tables.catalogue, tables.packed)
    models = prepare_models(inputs.retrieval, ranker, tensors, tables.item_packed)
    check_reorder(inputs.settings, models.tasks, tasks)
    return Prepared(programs, tables, models)


def _manifest(
    goal: Goal,
    build_id: str,
    inputs: Inputs,
    programs: Programs,
    tables: Tables,
    models: Models,
    sources: Mapping[str, Made],
) -> Manifest:
    manifest = Manifest(
        format=MANIFEST_FORMAT,
        build_id=build_id,
        name=goal.name,
        made=made_now(),
        target=goal.target,
        layout=goal.layout,
        runner=goal.runner,
        settings=inputs.settings,
        catalogue=tables.catalogue,
        packed=tables.packed,
        request_columns=(),
        raw_item_columns=tuple(tables.raw_items),
        queries=models.query_models(goal.engine),
        ranking=models.ranking_model(goal.engine, goal.tasks),
        sources={source: dict(made.figures) for source, made in sources.items()},
        tables={table: dict(entry) for table, entry in goal.origin.items()},
        notes=tuple(inputs.notes),
    )
    names = {column.name for column in programs.user.inputs}
    columns = [*programs.user.inputs, *(column for column in tables.asked if column.name not in names)]
    listed = [column.name for column in columns]
    placed = inputs.settings.placed()
    refuse(name_problems(placed, listed, "a request column"))
    # Names of per-request numbers come from the recipe, so they must not clash with the graph without them.
    numberless = msgspec.structs.replace(inputs.settings, reorder=(), seen_again_days=None)
    bare = msgspec.structs.replace(manifest, settings=numberless)
    refuse(name_problems(placed, graph_names(bare), "a tensor of the served graph"))
    # The graph's own tensors keep their names; request columns get names that are not taken.
    named = tuple(
        msgspec.structs.replace(column, of_rules=column.name not in names)
        for column in request_columns(columns, inputs.columns.user_id, graph_names(manifest))
    )
    return msgspec.structs.replace(manifest, request_columns=named)


def _write_artefacts(
    artefacts: Path, programs: Programs, tables: Tables, sources: Mapping[str, Made], build_id: str
) -> None:
    """Write the artefacts of programs, tables and sources; those of the models are already written."""
    programs.user.write(artefacts / "user_features", build_id)
    programs.item.write(artefacts / "item_features", build_id)
    write_artefact(artefacts / "users", "users", build_id, tables.user_arrays)
    write_artefact(artefacts / "items", "items", build_id, tables.item_arrays)
    for name, made in sources.items():
        write_source(artefacts / f"source_{name}", made, build_id)
