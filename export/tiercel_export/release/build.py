"""One function from trained parts to a release: :func:`build_release`.

It reads top to bottom: check → compile the workflow → tables → dense models → index → golden vectors →
Triton repository → manifest → verify → rename. Everything is written beside the destination; the name
appears when the release has been verified, or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import torch

from tiercel_serving.columns import Column, null_column, take_rows, with_null_row
from tiercel_serving.features import InputColumn
from tiercel_serving.features.blocks import transform
from tiercel_serving.release import writing as manifest
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.repository.targets import find_target, model_groups
from tiercel_serving.settings import ServingSettings
from tiercel_serving.spec import Array
from tiercel_serving.verify.checks import verify_release

from ..errors import ExportInputError
from ..models.prepare import prepare_models, write_engines
from ..workflow.cut import CompiledProgram, WorkflowParts, compile_workflow, cut_workflow
from ..workflow.frames import column_from_series, columns_from_frame
from . import tables
from .given import (
    check_columns,
    check_events,
    check_rules,
    check_settings,
    check_vectors,
    id_dtype,
    infer_column,
    raw_ids,
    unique_ids,
)
from .index import IndexBuild, build_index
from .oracles import make_oracle, user_queries, write_golden
from .parts import Given, Programs, Tables
from .reference import Oracle

logger = logging.getLogger("tiercel_export")

#: Called with a step's name, how many steps are done, and of how many.
Progress = Callable[[str, int, int], None]

#: The steps that ``progress`` hears of.
STEPS = (
    "checking the inputs",
    "compiling the workflow",
    "making tables",
    "exporting the models",
    "building the index",
    "asking the oracles",
    "writing the model repository",
    "verifying",
)

#: Names that a request's own tensors have; no raw column may take them.
RESERVED = ("user_id", "exclude_item_ids", "history_item_ids", "k")

#: Users whose queries measure the index, and rows that are compared with NVTabular at export.
RECALL_QUERIES, SOURCE_ROWS = 1000, 2000

_ITEM_BLOCK = 4096


def build_release(
    destination: str | Path,
    *,
    name: str,
    workflow: Any,
    user_tower: torch.nn.Module,
    ranker: torch.nn.Module,
    items: pd.DataFrame,
    item_vectors: Array | None = None,
    item_tower: torch.nn.Module | None = None,
    users: pd.DataFrame | None = None,
    interactions: pd.DataFrame | None = None,
    settings: ServingSettings | None = None,
    item_id: str = "item_id",
    user_id: str = "user_id",
    timestamp: str | None = "timestamp",
    target: str = "cpu",
    layout: str = "fused",
    index: str = "Flat",
    index_parameters: Mapping[str, int] | None = None,
    min_recall: float = 0.99,
    index_ready: Any = None,
    parts: Mapping[str, str] | None = None,
    target_encoding: str | None = None,
    expected_packed: Mapping[str, Sequence[str]] | None = None,
    origin: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    replace: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> Release:
    """Compile trained parts into a release, verify it, and put it at its destination.

    Parameters
    ----------
    destination
        The release's directory. It appears whole or not at all.
    name
        What clients call this recommender.
    workflow
        A fitted ``nvtabular.Workflow``, or the folder that its ``save`` wrote. Its outputs carry the
        tags USER, ITEM or CONTEXT, its categories CATEGORICAL.
    user_tower
        Torch module; the parameters of its ``forward`` are named after the tensors it takes: of
        ``user_cat [B, C]`` int64, ``user_num [B, F]`` float32, ``user_list_<column> [B, L]``,
        ``history_row [B, L]``, ``history_cat [B, L, H]`` int64 and ``history_length [B, 1]`` int32.
        Gives the query ``[B, D]`` float32.
    ranker
        Torch module, likewise; besides those ``item_cat [B, K, C]``, ``item_num [B, K, F]``,
        ``item_list_<column> [B, K, L]``, ``kept_score [B, K]`` float32 and ``kept_source [B, K]``
        int32. Gives ``[B, K, T]`` float32, one column a task.
    items
        One row an item: the id, the workflow's raw item columns, and what rules and titles name.
    item_vectors
        ``[I, D]`` float32 in the order of ``items``; or
    item_tower
        a torch module that makes them from ``item_cat [B, C]``, ``item_num [B, F]`` and
        ``item_list_<column> [B, L]``.
    users
        One row a user: the id and the workflow's raw user columns. None serves without a store.
    interactions
        Who had what and when: ids and ``timestamp``. Histories, seen items and popularity come from
        it; context columns, if it has them, are examples for golden vectors.
    settings
        Limits and rules of serving; None takes the defaults.
    item_id, user_id, timestamp
        Column names. A ``timestamp`` of None takes the rows as they come.
    target, layout
        Rows of :data:`tiercel_serving.repository.targets.TARGETS`, and ``fused`` or ``staged``.
    index, index_parameters
        FAISS factory string and search parameters; without parameters they are searched until
        ``min_recall`` is reached.
    min_recall
        Recall at ``settings.candidates`` against exact search, below which the export fails.
    index_ready
        A FAISS index over the item vectors to take instead of building one.
    parts
        Part (``user``, ``item``, ``context``) of output columns whose tags are missing or wrong.
    target_encoding
        ``no_fold`` serves TargetEncoding over all folds; None refuses one that has folds. See
        :func:`~tiercel_export.workflow.cut.cut_workflow`.
    expected_packed
        Columns of ``user_cat``, ``user_num``, ``item_cat`` and ``item_num`` in the order in which the
        models were trained on them; another order is refused. None trusts that the models were
        trained on the workflow's own order.
    origin
        Where each table comes from, as JSON; the manifest keeps it under ``tables``.
    seed
        For clustering and for what is sampled.
    replace
        Whether a release at the destination may be replaced.
    verify
        Whether to compare everything with its sources before the release gets its name.
    progress
        Called with the step's name, the number of steps done, and of how many.

    Returns
    -------
    Release
        The opened release. ``manifest["notes"]`` says what was left out of the data and why.

    Raises
    ------
    ExportInputError
        If parts do not fit together; before anything is written.
    WorkflowError
        If the workflow cannot be compiled exactly.
    VerificationFailed
        If what was compiled differs from its source. Nothing is left at the destination.
    """
    report = _Reporter(progress)
    report.step(0)
    given = _check_given(
        name=name,
        items=items,
        users=users,
        interactions=interactions,
        settings=ServingSettings() if settings is None else settings,
        item_id=item_id,
        user_id=user_id,
        timestamp=timestamp,
        target=target,
        layout=layout,
        seed=seed,
    )
    if (item_vectors is None) == (item_tower is None):
        raise ExportInputError("give item_vectors or item_tower, and not both")
    if item_vectors is not None:
        item_vectors = check_vectors(item_vectors, len(given.item_ids))
    with manifest.staging_directory(Path(destination), replace=replace) as staging:
        report.step(1)
        programs = _compile(given, cut_workflow(workflow, parts=parts, target_encoding=target_encoding))
        _check_order(programs, expected_packed or {})
        report.step(2)
        made = _make_tables(given, programs)
        head = _manifest_head(given, programs, made)
        head["tables"] = {table: dict(entry) for table, entry in (origin or {}).items()}
        models = prepare_models(given, head, made, user_tower, ranker, item_vectors, item_tower)
        head["catalogue"]["dimension"] = models.vectors.shape[1]
        head["engines"] = models.engines
        head["stages"] = [spec.to_json() for spec in models.stages]
        oracle = make_oracle(given, made, models, head)
        _write_tables(staging, head, programs, made)
        report.step(3)
        write_engines(staging, head, models)
        report.step(4)
        built = _make_index(given, oracle, index, index_parameters, min_recall, index_ready)
        head["index"] = built.to_json()
        _write_index(staging, head, built, models.vectors)
        report.step(5)
        release = Release(staging, head)
        sources = write_golden(release, given, programs, oracle, exact=_is_exact(built))
        report.step(6)
        render_repository(release, staging / "triton", layout, release_path="../..")
        manifest.write_manifest(staging, head)
        report.step(7)
        if verify:
            verify_release(open_release(staging), sources=sources).raise_if_failed()
    report.step(len(STEPS))
    for note in given.notes:
        logger.warning("%s", note)
    return open_release(Path(destination))


class _Reporter:
    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def step(self, done: int) -> None:
        if self._progress is not None:
            self._progress(STEPS[min(done, len(STEPS) - 1)], done, len(STEPS))


# ---------------------------------------------------------------------------------------------- checks


def _check_given(
    *,
    name: str,
    items: pd.DataFrame,
    users: pd.DataFrame | None,
    interactions: pd.DataFrame | None,
    settings: ServingSettings,
    item_id: str,
    user_id: str,
    timestamp: str | None,
    target: str,
    layout: str,
    seed: int,
) -> Given:
    notes: list[str] = []
    model_groups(find_target(target), layout)
    item_ids = unique_ids(items, item_id, "items")
    check_settings(settings, len(item_ids), notes)
    if users is not None:
        user_ids = unique_ids(users, user_id, "users")
    else:
        # Nobody is in the store; the ids' type is that of the interactions, if there are any.
        like = (
            raw_ids(interactions, user_id, "interactions") if interactions is not None else np.zeros(0, int)
        )
        user_ids = np.zeros(0, like.dtype)
    events = check_events(
        interactions,
        item_ids,
        None if users is None else user_ids,
        item_id=item_id,
        user_id=user_id,
        timestamp=timestamp,
        notes=notes,
    )
    return Given(
        name=name,
        items=items.reset_index(drop=True),
        users=None if users is None else users.reset_index(drop=True),
        interactions=interactions,
        item_ids=item_ids,
        user_ids=user_ids,
        events=events,
        settings=settings,
        item_id=item_id,
        user_id=user_id,
        target=target,
        layout=layout,
        seed=seed,
        notes=notes,
    )


# -------------------------------------------------------------------------------------------- workflow


def _compile(given: Given, cut: WorkflowParts) -> Programs:
    item = _with_lengths(cut, "item", lambda inputs: columns_from_frame(given.items, inputs))
    user = _with_lengths(cut, "user", lambda inputs: _user_examples(given, inputs))
    for column in user.inputs:
        if (
            column.name == given.user_id
            and column.dtype != id_dtype(given.user_ids)
            and given.users is not None
        ):
            raise ExportInputError(
                f"users: the workflow was fitted on {column.dtype} ids in {column.name!r}, but `users` has "
                f"{id_dtype(given.user_ids)}; convert one of them"
            )
        if column.name in RESERVED and column.name != given.user_id:
            raise ExportInputError(
                f"workflow: the user column {column.name!r} has the name of a request's own tensor; rename it"
            )
    programs = Programs(cut, user, item)
    check_columns(given.settings, given.items, programs.packed("item", "cat"))
    return programs


def _check_order(programs: Programs, expected: Mapping[str, Sequence[str]]) -> None:
    for tensor, columns in expected.items():
        part, _, kind = tensor.partition("_")
        packed = programs.packed(part, kind)
        if packed != list(columns):
            raise ExportInputError(
                f"{tensor}: the models were trained on the columns {list(columns)}, the compiled workflow "
                f"packs {packed}; list the workflow's outputs in the order of training"
            )


def _user_examples(given: Given, inputs: Sequence[InputColumn]) -> dict[str, Column]:
    """Return rows from which the lengths of user and context lists can be read."""
    examples: dict[str, Column] = {}
    frames = [frame for frame in (given.users, given.interactions) if frame is not None]
    rows = max([1, *(len(frame) for frame in frames)])
    for column in inputs:
        frame = next((frame for frame in frames if column.name in frame.columns), None)
        found = None if frame is None else column_from_series(frame[column.name], column)
        examples[column.name] = _to_length(found, column, rows)
    return examples


def _to_length(found: Column | None, column: InputColumn, rows: int) -> Column:
    nulls = null_column(column.dtype, column.is_list, 1)
    if found is None or not len(found):
        return take_rows(nulls, np.zeros(rows, np.int64))
    return take_rows(found, np.arange(rows) % len(found))


def _with_lengths(
    cut: WorkflowParts, part: str, examples: Callable[[Sequence[InputColumn]], Mapping[str, Column]]
) -> CompiledProgram:
    """Compile one part with the packed length of each list: that of its longest row."""
    compiled = compile_workflow(cut, part)
    if not any(column.is_list for column in compiled.outputs):
        return compiled
    columns = examples(compiled.inputs)
    made = compiled.program.run(columns, max((len(column) for column in columns.values()), default=0))
    lengths = {}
    for column in compiled.outputs:
        offsets = made[column.name].offsets
        if column.is_list and offsets is not None:
            lengths[column.name] = max(1, int(np.diff(offsets).max(initial=0)))
    return compile_workflow(cut, part, list_lengths=lengths)


# ---------------------------------------------------------------------------------------------- tables


def _make_tables(given: Given, programs: Programs) -> Tables:
    n_items, n_users = len(given.item_ids), len(given.user_ids)
    raw_items = _raw_item_columns(given, programs)
    inputs = columns_from_frame(given.items, programs.item.inputs)
    packed = transform(programs.item.program, inputs, n_items)
    popularity = np.bincount(given.events.items, minlength=n_items)
    item_arrays = tables.item_arrays(given.item_ids, raw_items, packed, popularity)
    raw_users = _raw_user_columns(given, programs)
    user_packed = transform(programs.user.program, raw_users, n_users + 1)
    stored = {column.name for column in programs.user.inputs if column.part == "user"}
    user_arrays = tables.user_arrays(
        given.user_ids,
        {name: column for name, column in raw_users.items() if name in stored},
        user_packed,
        given.events.users,
        given.events.items,
    )
    item_packed = {name: item_arrays[name] for name in packed}
    return Tables(user_arrays, item_arrays, item_packed, list(raw_items))


def _raw_item_columns(given: Given, programs: Programs) -> dict[str, Column]:
    """Return the columns that the program, the rules and the title read."""
    columns = columns_from_frame(given.items, programs.item.inputs)
    settings = given.settings
    wanted = [rule.column for rule in settings.rules]
    wanted += [] if settings.title_column is None else [settings.title_column]
    for name in wanted:
        if name not in columns:
            column = infer_column(given.items[name], name, "items")
            columns[name] = column_from_series(given.items[name], column)
    check_rules(settings.rules, columns)
    return columns


def _raw_user_columns(given: Given, programs: Programs) -> dict[str, Column]:
    """Return every input of the user program ``[U + 1]``; what a request alone can know is null."""
    rows = len(given.user_ids) + 1
    of_users = [column for column in programs.user.inputs if column.part == "user"]
    columns = {}
    if given.users is not None:
        found = columns_from_frame(given.users, of_users)
        columns = {name: with_null_row(column) for name, column in found.items()}
    for column in programs.user.inputs:
        if column.name not in columns:
            columns[column.name] = null_column(column.dtype, column.is_list, rows)
    return columns


def _manifest_head(given: Given, programs: Programs, made: Tables) -> dict[str, Any]:
    """Return the manifest without what the models and the index add."""
    head = manifest.header(given.name, manifest.new_build_id())
    return head | {
        "target": given.target,
        "layout": given.layout,
        "settings": given.settings.to_json(),
        "catalogue": {
            "items": len(given.item_ids),
            "users": len(given.user_ids),
            "interactions": len(given.events.items),
            "item_id_dtype": id_dtype(given.item_ids),
            "user_id_dtype": id_dtype(given.user_ids),
            "item_id_column": given.item_id,
            "user_id_column": given.user_id,
            "dimension": 1,
        },
        "packed": {
            "user_cat": programs.packed("user", "cat"),
            "user_num": programs.packed("user", "num"),
            "user_lists": _list_layout(made.user_arrays, "user_list_"),
            "history_cat": list(given.settings.history_columns),
            "item_cat": programs.packed("item", "cat"),
            "item_num": programs.packed("item", "num"),
            "item_lists": _list_layout(made.item_packed, "item_list_"),
        },
        "request_columns": programs.request_columns(given.user_id),
        "raw_item_columns": made.raw_items,
        "notes": given.notes,
    }


def _list_layout(arrays: Mapping[str, Array], prefix: str) -> dict[str, Any]:
    layout: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            length = int(array.shape[1])
            is_id = array.dtype == np.int64
            layout[name.removeprefix(prefix)] = length if is_id else {"length": length, "dtype": "float32"}
    return layout


def _write_tables(staging: Path, head: Mapping[str, Any], programs: Programs, made: Tables) -> None:
    artefacts, build_id = staging / "artefacts", str(head["build_id"])
    programs.user.write(artefacts / "user_features", build_id)
    programs.item.write(artefacts / "item_features", build_id)
    write_artefact(artefacts / "users", "users", build_id, made.user_arrays)
    write_artefact(artefacts / "items", "items", build_id, made.item_arrays)


# ----------------------------------------------------------------------------------------------- index


def _make_index(
    given: Given,
    oracle: Oracle,
    factory: str,
    parameters: Mapping[str, int] | None,
    min_recall: float,
    ready: Any,
) -> IndexBuild:
    return build_index(
        oracle.vectors,
        user_queries(given, oracle),
        factory=factory,
        parameters=parameters,
        candidates=given.settings.candidates,
        min_recall=min_recall,
        ready=ready,
        seed=given.seed,
    )


def _is_exact(built: IndexBuild) -> bool:
    return built.factory == "Flat"


def _write_index(staging: Path, head: Mapping[str, Any], built: IndexBuild, vectors: Array) -> None:
    path = staging / "artefacts" / "index"
    path.mkdir(parents=True)
    faiss.write_index(built.index, str(path / "index.faiss"))
    meta = {"factory": built.factory, "parameters": dict(built.parameters)}
    write_artefact(path, "index", str(head["build_id"]), {"vectors": vectors}, meta)
