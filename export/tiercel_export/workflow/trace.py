"""Trace a fitted workflow as NVTabular's executor runs it, with typed expressions in place of a data frame.

An operator that can't be compiled does not stop the trace. Its columns carry the error, which is raised only
if they are served.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from ..errors import UnsupportedOperator, WorkflowError
from ..lowering.categorify import vocabulary_of
from ..lowering.expressions import (
    INTEGER_DTYPES,
    REFUSED,
    Columns,
    Expression,
    Lowering,
    Where,
    event_column,
    input_column,
    refused_column,
    unreadable_column,
)
from ..lowering.filters import KEEP
from ..lowering.own_times import stopped_times
from ..lowering.refused import ANYTHING
from ..lowering.table import DROPS_ROWS, TABLE, Entry, key_of
from .lineage import columns_read, lineage_of, union

#: Name of a raw column → its expression; None if there is no such column or it isn't needed.
Root: TypeAlias = Callable[[str], Expression | None]
#: Called as ``observe(node, given, made)`` after each node, with the columns that it read and made.
Observer: TypeAlias = Callable[[Any, Columns, Columns], None]


def trace(
    workflow: Any,
    needed: set[str] | None = None,
    *,
    target_encoding: str | None = None,
    rows: str | None = None,
    events: Collection[str] | None = None,
    observe: Observer | None = None,
) -> Columns:
    """Return each output column as an expression of the inputs.

    Parameters
    ----------
    workflow
        A fitted workflow.
    needed
        Raw columns to start from; None is all. Columns that need any other raw column are left out.
    target_encoding, rows
        As for :func:`~tiercel_export.workflow.cut.cut_workflow`.
    events
        Raw columns whose rows are lists with one value for each event of a session; None is all that some
        output aggregates.
    observe
        Called for every node, including those of nested graphs.

    Returns
    -------
    Expression by output name. One whose ``op`` is ``refused`` carries the error of the operator that can't be
    compiled, which matters only if the column is served.
    """
    given = set(workflow.input_schema.column_names)
    behind = lineage_of(workflow).values()
    if events is None:
        events = union(of.events for of in behind)
    # The keys are needed to tell whether the columns of a session belong together.
    keys = union(of.keys for of in behind)
    wanted = given if needed is None else given & (needed | keys)
    session = [name for name in workflow.input_schema.column_names if name in events]

    def root(name: str) -> Expression | None:
        if name not in wanted:
            return None
        try:
            if name in events:
                return _event_column(workflow, name, session)
            column = raw_column(workflow, name)
            return replace(column, axis=(), of_key=True) if name in keys else column
        except WorkflowError as error:
            return unreadable_column(name, error)

    tracer = _Tracer(root, target_encoding, rows, shared_files(workflow), observe)
    columns = tracer.run(workflow.output_node)
    return {name: columns[name] for name in workflow.output_schema.column_names if name in columns}


class _Tracer:
    """Traces one graph. A nested graph has its own tracer, whose raw columns are its node's input."""

    def __init__(
        self,
        root: Root,
        target_encoding: str | None,
        rows: str | None,
        shared: Mapping[str, str],
        observe: Observer | None,
    ) -> None:
        self._root = root
        self._target_encoding = target_encoding
        self._rows = rows
        self._shared = shared
        self._observe = observe
        self._done: dict[int, Columns] = {}

    def run(self, node: Any) -> Columns:
        """Return the columns of the node's output frame."""
        if id(node) not in self._done:
            given = self._gather(node)
            self._done[id(node)] = made = self._transform(node, given)
            if self._observe is not None:
                self._observe(node, _known(given), _known(made))
        return self._done[id(node)]

    def _gather(self, node: Any) -> Columns:
        """Merge the columns of the node's parents; where a name occurs twice, the later parent wins."""
        columns: Columns = {}
        for parent in node.parents_with_dependencies:
            made = self.run(parent)
            if ANYTHING in made:
                columns = {name: _overwritten(made[ANYTHING], name) for name in columns}
            columns.update(made)
        for name in [*node.input_schema.column_names, *node.dependency_columns.names]:
            raw = self._root(name) if name not in columns else None
            if raw is not None:
                columns[name] = _overwritten(columns[ANYTHING], name) if ANYTHING in columns else raw
        return columns | self._keys(node)

    def _keys(self, node: Any) -> Columns:
        """Return the session keys as the node's parents have them; its dependencies are the raw ones."""
        entry = None if node.op is None else TABLE.get(key_of(node.op))
        if entry is None or entry.keys is None:
            return {}
        frames = [self.run(parent) for parent in node.parents]
        return {key: frame[key] for frame in frames for key in entry.keys(node.op) if key in frame}

    def _transform(self, node: Any, columns: Columns) -> Columns:
        if node.op is None:
            return columns
        selector = node.input_columns.resolve(node.input_schema)
        names = [name for name in selector.names if name in columns]
        where = Where(
            type(node.op).__name__,
            _Present(selector, set(names)),
            self._nested,
            selector,
            node.output_schema,
            self._target_encoding,
            self._shared,
        )
        entry = TABLE.get(key_of(node.op), FOREIGN)
        blocked = {name: column for name, column in columns.items() if column.op == REFUSED}
        if entry.lower is not None and not entry.times:
            blocked |= stopped_times(names, columns, where)
        refusal = _why_refused(node.op, entry)
        dropping = entry.drops_rows and self._rows != KEEP and not _hold_events(columns)
        if dropping:
            refusal = DROPS_ROWS, entry.remedy
        if refusal is None and entry.lower is not None:
            # Within a nested graph, each node blocks its own columns.
            free = names if node.op.is_subgraph else [name for name in names if name not in blocked]
            made = _lower(entry.lower, node.op, free, columns, where)
            if node.op.is_subgraph:
                return made
        else:
            advised = entry.remedy if entry.advise is None else entry.advise(node.op, entry.remedy)
            reason, remedy = refusal or (entry.note, advised)

            def stop(name: str) -> Expression:
                error = where.refuse(name, reason, remedy)
                source = columns.get(name)
                return unreadable_column(name, error) if source is None else refused_column(source, error)

            blocked = {name: stop(name) for name in names} | blocked
            if entry.lower is None or dropping:
                made = entry.frame(node, names, columns, stop)
            else:
                made = _lower(entry.lower, node.op, [], columns, where)
        for new, olds in columns_read(node.op, selector, _hold_events(columns)).items():
            stopped = [blocked[old] for old in olds if old in blocked]
            if stopped:
                made[new] = stopped[0]
        return {name: _of_one_axis(column, name, where) for name, column in made.items()}

    def _nested(self, graph: Any, columns: Columns) -> Columns:
        """Return the output columns of a nested graph for its node's input frame."""
        tracer = _Tracer(columns.get, self._target_encoding, self._rows, self._shared, self._observe)
        made = tracer.run(graph.output_node)
        return {name: made[name] for name in graph.output_schema.column_names if name in made}


def shared_files(workflow: Any) -> dict[str, str]:
    """Return the state files that several operators or groups of columns write to, with their owners."""
    from merlin.dag.node import iter_nodes

    owners: dict[str, list[str]] = {}
    for node in {id(n): n for n in iter_nodes([workflow.output_node], flatten_subgraphs=True)}.values():
        entry = TABLE.get(key_of(node.op))
        if entry is not None and entry.files is not None:
            for name, path in entry.files(node.op, node.input_columns.resolve(node.input_schema)):
                owners.setdefault(os.path.realpath(path), []).append(f"{type(node.op).__name__} on {name!r}")
    return {path: " and ".join(names) for path, names in owners.items() if len(names) > 1}


def _hold_events(columns: Columns) -> bool:
    """Return whether a frame's rows are the events of sessions."""
    return any(column.axis is not None for column in columns.values())


def _of_one_axis(column: Expression, name: str, where: Where) -> Expression:
    """Return the column, or a refused one if it mixes a session's events with anything else."""
    if column.op == REFUSED:
        return column
    if column.mixed:
        reason = "it takes the events of a session together with its key, with its row, or with other events"
    elif column.is_list and column.axis is not None:
        reason = "it makes a list of each event of a session, and no tensor carries lists of lists"
    else:
        return column
    return refused_column(column, where.refuse(name, reason, "Compute it in the data before the fit"))


#: The entry for an operator that the table does not contain.
FOREIGN = Entry(
    "refused",
    note="it is not an operator of NVTabular 23.08",
    remedy="Apply it to the data before the fit, or let only its own columns go on: (… >> it)['column']",
)


def _why_refused(op: Any, entry: Entry) -> tuple[str, str] | None:
    """Return the reason and remedy if the operator was never fitted, else None."""
    # A subgraph fitted under a Dask client lacks the flag, so its operators are checked instead.
    if entry.lower is None or op.is_subgraph or getattr(op, "fitted", True):
        return None
    return "it was never fitted", "Call fit() of the workflow on the training data first"


def _known(columns: Columns) -> Columns:
    return {name: column for name, column in columns.items() if name != ANYTHING}


def _overwritten(by: Expression, name: str) -> Expression:
    """Return the placeholder for a column that an operator of unknown outputs may overwrite."""
    error: UnsupportedOperator = dict(by.own)["error"]
    reason = f"{error.reason}, and may return a column of that name, too, over the one that is there"
    return unreadable_column(name, UnsupportedOperator(error.operator, name, reason, error.remedy))


def _lower(lower: Lowering, op: Any, names: list[str], columns: Columns, where: Where) -> Columns:
    """Lower an operator; a refusal for one column or group of columns blocks only that one."""
    if not names:
        # Nothing to compute, but other columns of the frame may pass through and overwrite some.
        return lower(op, [], columns, replace(where, selector=_Present(where.selector, set())))
    try:
        return lower(op, names, columns, where)
    except WorkflowError:
        pass
    made = _lower(lower, op, [], columns, where)
    for unit in _units(where.selector, names):
        alone = _Present(where.selector, set(unit))
        try:
            result = lower(op, unit, columns, replace(where, selector=alone))
        except WorkflowError as error:
            stopped = refused_column(columns[unit[0]], error)
            result = dict.fromkeys(op.column_mapping(alone), stopped)
        for name, expression in result.items():
            if name not in made or expression is not columns.get(name):
                made[name] = expression
    return made


def _units(selector: Any, names: list[str]) -> list[list[str]]:
    """Return the names in the units that are lowered together: subgroups, then single columns."""
    groups = [[name for name in group.names if name in names] for group in selector.subgroups]
    grouped = {name for group in groups for name in group}
    return [group for group in groups if group] + [[name] for name in names if name not in grouped]


class _Present:
    """A column selector reduced to the columns that are present, without groups that lack one."""

    def __init__(self, selector: Any, present: set[str]) -> None:
        self.names: list[str] = [name for name in selector.names if name in present]
        whole = [group for group in selector.subgroups if present.issuperset(group.names)]
        self.subgroups: list[_Present] = [_Present(group, present) for group in whole]
        # A column may be selected by itself and in a group.
        self._names: list[str] = [name for name in selector._names if name in present]
        self.grouped_names: list[Any] = [*self._names, *(tuple(group.names) for group in self.subgroups)]


def _event_column(workflow: Any, name: str, session: Collection[str]) -> Expression:
    """Return a raw column of a session's events."""
    column = raw_column(workflow, name)
    if column.is_list:
        raise WorkflowError(
            f"input column {name!r} holds lists, and Groupby makes one row of the events of a session: no "
            "request carries lists of lists; keep one value for each event in the data"
        )
    return event_column(name, column.physical, column.dtype, sorted(session))


def raw_column(workflow: Any, name: str) -> Expression:
    """Return the expression of a raw column, with its type in the schema of the fit.

    Raises
    ------
    WorkflowError
        No request can carry its dtype, or the dtype is unknown.
    """
    schema = workflow.input_schema[name]
    is_list = bool(schema.is_list)
    if schema.dtype.name == "unknown":
        dtype = _dtype_by_vocabulary(workflow, name)
    else:
        dtype = schema.dtype.without_shape.to_numpy
    if dtype.kind in "OUS":
        return input_column(name, "bytes", "bytes", is_list)
    if dtype.name == "bool" or dtype.name in INTEGER_DTYPES:
        return input_column(name, "int64", dtype.name, is_list)
    if dtype in (np.float32, np.float64):
        return input_column(name, dtype.name, dtype.name, is_list)
    if dtype.kind == "M" and not is_list:
        return input_column(name, "int64", dtype.name, is_list)
    raise WorkflowError(
        f"input column {name!r} is {dtype.name}, which no request can carry; cast it to int64, float64 or "
        "text before the fit"
    )


def _dtype_by_vocabulary(workflow: Any, name: str) -> np.dtype[Any]:
    """Return a column's dtype from the vocabulary that encodes it, where the schema lacks it.

    The schema lacks it if the first row at fit was an empty list.
    """
    from merlin.dag.node import iter_nodes

    for node in iter_nodes([workflow.output_node], flatten_subgraphs=True):
        if key_of(node.op) == "nvtabular.Categorify" and name in node.input_columns.names:
            kind = vocabulary_of(node.op, name).kind
            return np.dtype(np.object_ if kind == "text" else kind)
    raise WorkflowError(
        f"input column {name!r} has no dtype in the workflow's schema (its first row was an empty list): fit "
        "on a Dataset with a schema, or put a row first that has elements"
    )
