"""NVTabular as the oracle for a part whose rows are sessions: each row's events become rows of one frame.

NVTabular returns one row for each remaining key, in the order of the keys, so rows are sent in batches of
distinct keys. A row whose session has no events, before or after a filter, has no answer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tiercel_serving.features import InputColumn

from ..errors import ExportInputError
from ..lowering.table import TABLE, key_of
from .cut import WorkflowParts
from .frames import FrameOracle, any_value, integer_dtype, keep_rows, oracle_frame
from .trace import raw_column


@dataclass(frozen=True)
class _Maker:
    """A node that computes some of a part's outputs.

    Parameters
    ----------
    node
        The node.
    outputs
        The outputs that are taken from it.
    groups
        The nodes up to and including it that group events into rows.
    """

    node: Any
    outputs: Sequence[str]
    groups: Sequence[Any]


class SessionOracle:
    """NVTabular itself as the oracle for a part of a workflow whose rows are sessions.

    Parameters
    ----------
    cut
        The workflow.
    part
        ``user`` (with context) or ``item``.
    """

    def __init__(self, cut: WorkflowParts, part: str) -> None:
        self.outputs, self.inputs = cut.output_names(part), cut.input_names(part)
        self._schema = cut.workflow.input_schema
        self._events = [_input_of(cut.workflow, name) for name in cut.event_names(part)]
        self._key = _only_key(cut)
        workflow = copy.deepcopy(cut.workflow)
        self._makers = list(_makers(workflow.output_node, self.outputs))
        for maker in self._makers:
            for node in maker.groups:
                _repair(node)
        keep_rows(workflow, cut.rows)

    def answers(self, frame: pd.DataFrame) -> tuple[npt.NDArray[np.int64], pd.DataFrame]:
        """Return the row numbers that NVTabular answers, and its answers for these rows.

        Parameters
        ----------
        frame
            In the oracle's form (see :mod:`.frames`), with a list in each row of an event column.
        """
        rows, parts = [], []
        for batch in self._batches(frame):
            answered, made = self._asked(frame.iloc[batch].reset_index(drop=True))
            if len(answered):
                rows.append(batch[answered])
                parts.append(made)
        if not rows:
            return np.zeros(0, np.int64), pd.DataFrame(columns=self.outputs)
        order = np.argsort(np.concatenate(rows), kind="stable")
        made = pd.concat(parts, ignore_index=True).iloc[order].reset_index(drop=True)
        return np.concatenate(rows)[order], made[self.outputs]

    def _batches(self, frame: pd.DataFrame) -> Iterator[npt.NDArray[np.int64]]:
        """Yield row numbers in batches of distinct keys, without rows whose key is null."""
        known = np.arange(len(frame))
        turn = np.zeros(len(frame), np.int64)
        if self._key in frame:
            known = np.flatnonzero(frame[self._key].notna())
            turn = frame[self._key].iloc[known].groupby(frame[self._key].iloc[known]).cumcount().to_numpy()
        for number in range(int(turn.max(initial=-1)) + 1):
            yield known[turn == number]

    def _asked(self, frame: pd.DataFrame) -> tuple[npt.NDArray[np.int64], pd.DataFrame]:
        keys = frame[self._key] if self._key in frame else _made_keys(self._schema[self._key], len(frame))
        lengths, events = _exploded(frame, [column.name for column in self._events])
        if not len(events):
            return np.zeros(0, np.int64), pd.DataFrame(columns=self.outputs)
        rows = self._whole(frame.assign(**{self._key: keys}))
        events = oracle_frame(events, self._events)
        events = self._whole(events.assign(**{self._key: np.repeat(keys.to_numpy(), lengths)}))
        of_events, of_rows, answered = _executor(), _executor(), None
        made: dict[str, pd.Series] = {}
        for maker in (maker for maker in self._makers if maker.groups):
            grouped = of_events.transform(events, [maker.groups[0]])
            if not len(grouped):
                return np.zeros(0, np.int64), pd.DataFrame(columns=self.outputs)
            values = of_events.transform(events, [maker.node])
            # Keys are raw and distinct; pandas sorts the groups by key.
            left = np.flatnonzero(keys.isin(grouped[self._key]).to_numpy())
            values.index = pd.Index(left[np.argsort(keys.iloc[left].to_numpy(), kind="stable")])
            made |= {name: values[name] for name in maker.outputs}
            answered = values.index if answered is None else answered.intersection(values.index)
        assert answered is not None
        for maker in (maker for maker in self._makers if not maker.groups):
            values = of_rows.transform(rows, [maker.node])
            made |= {name: values[name] for name in maker.outputs}
        answered = answered.sort_values()
        return answered.to_numpy(np.int64), pd.DataFrame({name: made[name].loc[answered] for name in made})

    def _whole(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the frame in the dtypes of the fit, with placeholder values in missing columns."""
        columns = {}
        for schema in self._schema:
            if schema.name in frame:
                series = frame[schema.name].reset_index(drop=True)
                dtype = integer_dtype(schema)
                narrow = dtype is not None and series.dtype.kind == "i"
                columns[schema.name] = series.astype(dtype) if narrow else series
            else:
                columns[schema.name] = pd.Series([any_value(schema)] * len(frame))
        return pd.DataFrame(columns)


def _executor() -> Any:
    """Return a variant of NVTabular's executor, for one frame, that runs each node once.

    A frame that a filter left empty stays empty; NVTabular's own would use the raw columns instead.
    """
    from merlin.dag.executors import LocalExecutor

    class Executor(LocalExecutor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._done: dict[int, pd.DataFrame] = {}

        def _execute_node(self, node: Any, transformable: Any, *how: Any, **more: Any) -> pd.DataFrame:
            if id(node) not in self._done:
                self._done[id(node)] = super()._execute_node(node, transformable, *how, **more)
            # An operator may modify its input frame.
            return self._done[id(node)].copy()

        def _run_upstream_transforms(
            self, node: Any, transformable: Any, *how: Any, **more: Any
        ) -> list[Any]:
            above = node.parents_with_dependencies
            return [self._execute_node(one, transformable, *how, **more) for one in above]

    return Executor()


def _only_key(cut: WorkflowParts) -> str:
    if len(cut.keys) != 1:
        raise ExportInputError(
            f"workflow: its sessions are grouped by {sorted(cut.keys)}, expected one raw column; "
            "combine them into one column of the data"
        )
    return next(iter(cut.keys))


def _repair(node: Any) -> None:
    """Make a node that groups events handle each session correctly.

    pandas' sort is unstable for one column but stable for two, so a single sort column is doubled. NVTabular
    takes the key from the raw frame; if a filter has dropped rows, the rest are paired with keys of other
    rows, so the dependency is removed.
    """
    from merlin.dag.node import iter_nodes

    if len(node.op.sort_cols) == 1:
        node.op.sort_cols = node.op.sort_cols * 2
        if isinstance(node.op.ascending, list):
            node.op.ascending = node.op.ascending * 2
    entries = [TABLE.get(key_of(one.op)) for one in iter_nodes(node.parents) if one.op is not None]
    if any(entry is not None and entry.drops_rows for entry in entries):
        node.dependencies = []


def _keys_of(node: Any) -> list[str]:
    entry = None if node.op is None else TABLE.get(key_of(node.op))
    return [] if entry is None or entry.keys is None else entry.keys(node.op)


def _makers(node: Any, wanted: Sequence[str]) -> Iterator[_Maker]:
    """Yield the nodes that compute the wanted columns; NVTabular concatenates frames of unequal length."""
    from merlin.dag.node import iter_nodes

    if key_of(node.op) != "merlin.ConcatColumns":
        yield _Maker(node, wanted, [one for one in iter_nodes([node]) if _keys_of(one)])
        return
    left = list(wanted)
    # Where parents share a column name, the later one wins.
    for parent in reversed(node.parents_with_dependencies):
        own = [name for name in left if name in parent.output_schema.column_names]
        left = [name for name in left if name not in own]
        if own:
            yield from _makers(parent, own)


def _made_keys(schema: Any, rows: int) -> pd.Series:
    numbers = np.arange(rows)
    if schema.dtype.name in ("object", "str", "string"):
        return pd.Series([f"{number:09d}" for number in numbers], dtype=object)
    return pd.Series(numbers)


def _input_of(workflow: Any, name: str) -> InputColumn:
    """Return the input column of a raw event column, for a frame with one row per event."""
    column = raw_column(workflow, name)
    dtype, unit = "bool" if column.dtype == "bool" else column.physical, column.time_unit
    return InputColumn(name, dtype, False, "user", unit=unit, is_date=unit is not None)


def _exploded(frame: pd.DataFrame, events: Sequence[str]) -> tuple[npt.NDArray[np.int64], pd.DataFrame]:
    """Return the number of events of each row, and a frame with one row per event, concatenated."""
    lengths = np.zeros(len(frame), np.int64)
    for name in events:
        if name in frame:
            own = frame[name].map(lambda row: len(row) if isinstance(row, (list, np.ndarray)) else 0)
            lengths = np.maximum(lengths, own.to_numpy(np.int64))
    exploded = {}
    for name in events:
        rows = frame[name] if name in frame else [None] * len(frame)
        flat = [
            value
            for row, length in zip(rows, lengths.tolist(), strict=True)
            for value in (row if isinstance(row, (list, np.ndarray)) else [None] * length)
        ]
        exploded[name] = pd.Series(flat, dtype=object)
    return lengths, pd.DataFrame(exploded)


def oracle_of(
    cut: WorkflowParts, part: str, known: Mapping[str, pd.Series] | None = None
) -> FrameOracle | SessionOracle:
    """Return the oracle for a part of a workflow; ``known`` is as for :class:`FrameOracle`."""
    return SessionOracle(cut, part) if cut.event_names(part) else FrameOracle(cut, part, known=known)
