"""From the workflow to its two compiled programs, with the packed length of every list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tiercel_serving.columns import Column, null_column, take_rows
from tiercel_serving.features import InputColumn

from ..errors import ExportInputError
from ..workflow.cut import CompiledProgram, WorkflowParts, compile_workflow, cut_workflow
from ..workflow.frames import column_from_series
from .fit import check_columns
from .given import id_dtype
from .parts import FeatureOptions, Inputs, Programs

#: Number of rows that are run at once to find the lengths of lists.
_BLOCK = 65_536


def compile_programs(inputs: Inputs, workflow: Any, options: FeatureOptions) -> Programs:
    """Cut the workflow and compile its parts; check them against the tables and the settings."""
    homes = table_homes(inputs.users, inputs.items, inputs.interactions)
    homes[inputs.columns.user_id] = "user"  # even without a table of users
    cut = cut_workflow(
        workflow,
        parts=options.parts,
        target_encoding=options.target_encoding,
        rows=options.rows,
        homes=homes,
    )
    _check_names(cut)
    _check_events(cut, inputs.columns.user_id)
    tables = (session_examples(cut, inputs), inputs.users, inputs.interactions)
    frames = [frame for frame in tables if frame is not None]
    programs = Programs(
        cut,
        _with_lengths(compile_workflow(cut, "user"), frames),
        _with_lengths(compile_workflow(cut, "item"), [inputs.items]),
    )
    _check_ids(programs.user.inputs, inputs)
    item_cat = programs.packed("item", "cat")
    check_columns(inputs.settings, [str(name) for name in inputs.items.columns], item_cat)
    _check_order(programs, options.expected_packed or {})
    return programs


def table_homes(
    users: pd.DataFrame | None, items: pd.DataFrame, interactions: pd.DataFrame | None
) -> dict[str, str]:
    """Return the part of each raw column, by the table that contains it; users win over items and context."""
    tables = {"context": interactions, "item": items, "user": users}
    return {str(name): part for part, frame in tables.items() if frame is not None for name in frame.columns}


def _check_names(cut: WorkflowParts) -> None:
    for part, table in (("user", "`users` or `interactions`"), ("item", "`items`")):
        if "" in cut.input_names(part):
            raise ExportInputError(
                f"workflow: its {part} features read the column '' of {table}, whose name is empty; no "
                "request can name it: rename it there, and fit the workflow again"
            )


def _check_events(cut: WorkflowParts, user_id: str) -> None:
    if user_id in cut.event_names("user"):
        raise ExportInputError(
            f"workflow: it aggregates {user_id!r} over the events of a session, but a request has one user "
            "id; group by it, or leave it out of Groupby"
        )


def session_examples(cut: WorkflowParts, inputs: Inputs) -> pd.DataFrame | None:
    """Return one row per session of ``interactions``, with its events as lists.

    None if the user features read no events, ``users`` has them as lists, or ``interactions`` lacks them.
    """
    events, frame = cut.event_names("user"), inputs.interactions
    stored = inputs.users is not None and set(events) <= set(inputs.users.columns)
    key = next(iter(cut.keys), None)
    if not events or stored or frame is None or key not in frame or not set(events) <= set(frame.columns):
        return None
    known = frame[frame[key].notna()]
    codes, keys = pd.factorize(known[key])
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(keys)))[:-1]
    lists = {key: pd.Series(keys)}
    for name in events:
        rows = np.empty(len(keys), np.object_)
        values = known[name].to_numpy(dtype=object)[order]
        rows[:] = [part.tolist() for part in np.split(values, ends)] if len(keys) else []
        lists[name] = pd.Series(rows)
    return pd.DataFrame(lists)


def _check_ids(columns: Sequence[InputColumn], inputs: Inputs) -> None:
    for column in columns:
        is_id = column.name == inputs.columns.user_id and inputs.users is not None
        if is_id and column.dtype != id_dtype(inputs.user_ids):
            raise ExportInputError(
                f"users: the workflow was fitted on {column.dtype} ids in {column.name!r}, but `users` has "
                f"{id_dtype(inputs.user_ids)}; convert one of them"
            )


def _check_order(programs: Programs, expected: Mapping[str, Sequence[str]]) -> None:
    for tensor, columns in expected.items():
        part, _, kind = tensor.partition("_")
        packed = programs.packed(part, kind)
        if packed != tuple(columns):
            raise ExportInputError(
                f"{tensor}: the models were trained on the columns {list(columns)}, the compiled workflow "
                f"packs {list(packed)}; list the workflow's outputs in the order of training"
            )


def _with_lengths(compiled: CompiledProgram, frames: Sequence[pd.DataFrame]) -> CompiledProgram:
    """Set the packed length of each list output to its longest row for the frames' examples, at least 1."""
    lists = [column.name for column in compiled.outputs if column.is_list]
    if not lists:
        return compiled
    lengths = dict.fromkeys(lists, 1)
    examples = {column.name: _example(column, frames) for column in compiled.inputs}
    rows = max(len(column) for column in examples.values())
    for start in range(0, rows, _BLOCK):
        places = np.arange(start, min(rows, start + _BLOCK))
        # Columns of different frames are independent, so shorter ones repeat.
        block = {name: take_rows(column, places % len(column)) for name, column in examples.items()}
        made = compiled.program.run(block, len(places))
        for name in lists:
            longest = int(np.diff(made[name].offsets).max(initial=0))  # type: ignore[arg-type]
            lengths[name] = max(lengths[name], longest)
    return compiled.with_lengths(lengths)


def _example(column: InputColumn, frames: Sequence[pd.DataFrame]) -> Column:
    """Return a raw column from the first non-empty frame that has it, or a single null."""
    frame = next((frame for frame in frames if column.name in frame.columns and len(frame)), None)
    if frame is None:
        return null_column(column.dtype, column.is_list, 1)
    return column_from_series(frame[column.name], column)
