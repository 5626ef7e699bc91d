"""pandas frames and compiled programs: convert frames to columns, run NVTabular as the oracle, sample rows.

**The oracle's form.** NVTabular computes in the dtypes that a frame happens to have, so equality is defined
against the frame that a service would build. Each column has the dtype of the fit. An integer column with a
null in the batch is float64 with NaN. Strings are ``object`` with None. A list column is ``object`` with one
list per row, or with one float32 array per row if the elements are float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tiercel_serving.columns import Column
from tiercel_serving.features import InputColumn, OutputColumn
from tiercel_serving.spec import Array

from ..errors import ExportInputError
from ..lowering.expressions import INTEGER_DTYPES
from ..lowering.table import TABLE, key_of
from ..lowering.target_encoding import keep_output_names
from .cut import WorkflowParts, cut_workflow
from .elements import elements

#: A null among times.
_NOT_A_TIME = np.datetime64("NaT")


def columns_from_frame(frame: pd.DataFrame, inputs: Sequence[InputColumn]) -> dict[str, Column]:
    """Convert a frame's columns to the inputs of a feature program.

    Parameters
    ----------
    frame
        Has a column for each input; others are ignored. None, NaN and pandas' NA are nulls.
    inputs
        The program's inputs.

    Raises
    ------
    ExportInputError
        A column is missing or can't be converted; the message names the column and the first bad value.
    """
    missing = [column.name for column in inputs if column.name not in frame.columns]
    if missing:
        raise ExportInputError(
            f"columns {missing} are missing; the feature workflow reads {[c.name for c in inputs]}, "
            f"the table has {list(frame.columns)}"
        )
    return {column.name: column_from_series(frame[column.name], column) for column in inputs}


def column_from_series(series: pd.Series, column: InputColumn) -> Column:
    """Convert one pandas column; see :func:`columns_from_frame`."""
    if not column.is_list:
        values, valid = elements(series, column)
        return Column(values, valid)
    rows, row_valid = _lists(series.tolist(), column.name)
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    values, valid = elements(_flattened(rows, column.dtype), column)
    return Column(values, valid, offsets, row_valid)


def _lists(rows: list[Any], name: str) -> tuple[list[Any], Array | None]:
    """Return the rows with nulls replaced by empty lists, and which are lists (None if all are)."""
    if set(map(type, rows)) <= {list, tuple, np.ndarray}:
        return rows, None
    row_valid = np.array([_is_sequence(row) for row in rows], np.bool_)
    strays = [row for row, ok in zip(rows, row_valid, strict=True) if not ok and not _is_null(row)]
    if strays:
        raise ExportInputError(f"column {name!r}: expected lists, found {strays[0]!r}")
    lists = [row if ok else [] for row, ok in zip(rows, row_valid, strict=True)]
    return lists, None if row_valid.all() else row_valid


def _flattened(rows: list[Any], dtype: str) -> pd.Series:
    """Return the concatenated elements of all rows, without a Python loop for plain numbers."""
    if rows and set(map(type, rows)) == {np.ndarray}:
        kinds = {row.dtype for row in rows}
        plain = len(kinds) == 1 and next(iter(kinds)).kind in "iufb" and np.dtype(np.uint64) not in kinds
        if plain and all(row.ndim == 1 for row in rows):
            return pd.Series(np.concatenate(rows))
    flat = list(chain.from_iterable(rows))
    if set(map(type, flat)) == {int} and dtype.startswith("int"):
        try:
            return pd.Series(np.array(flat, np.int64))
        except OverflowError:
            # Reported with the column's name by elements().
            pass
    # object keeps large integers beside nulls exact; a plain Series would make them floats.
    floats = dtype.startswith("float") and set(map(type, flat)) <= {float, type(None)}
    return pd.Series(flat, dtype=np.float64 if floats else object)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _is_null(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


class FrameOracle:
    """NVTabular itself as the oracle for one part of a workflow.

    Parameters
    ----------
    workflow
        A fitted workflow, the path of a saved one, or :class:`WorkflowParts`.
    part
        ``user`` (with context) or ``item``.
    parts
        As for :func:`~tiercel_export.workflow.cut.cut_workflow`.
    known
        Valid values for the other part's columns, repeated cyclically over the rows. An operator may raise on
        a value that the fit has not seen, or if no row matches its table.
    """

    def __init__(
        self,
        workflow: Any,
        part: str,
        *,
        parts: Mapping[str, str] | None = None,
        known: Mapping[str, pd.Series] | None = None,
    ) -> None:
        cut = workflow if isinstance(workflow, WorkflowParts) else cut_workflow(workflow, parts=parts)
        self.outputs = cut.output_names(part)
        self.inputs = cut.input_names(part)
        asked = frozenset().union(*(cut.asked[name] for name in self.outputs))
        others = [name for name in cut.workflow.input_schema.column_names if name not in asked]
        # remove_inputs modifies the graph in place; the caller's workflow must stay unchanged.
        self.workflow = copy.deepcopy(cut.workflow)
        _without(self.workflow, others)
        self._whole = copy.deepcopy(cut.workflow)
        for workflow in (self.workflow, self._whole):
            keep_rows(workflow, cut.rows)
        if cut.target_encoding is not None:
            for workflow in (self.workflow, self._whole):
                for op in _target_encodings(workflow).values():
                    op.kfold = 1
        schema = cut.workflow.input_schema
        # Requests send int64, but the oracle's frame keeps the dtype of the fit, such as int8.
        self._dtypes = {name: integer_dtype(schema[name]) for name in self.inputs}
        # The executor requires every raw column of the fit; any value works for unused ones.
        self._unused = {
            name: pd.Series([any_value(column)])
            for name, column in _asked(self.workflow.output_node).items()
            if name not in self.inputs
        }
        known = known or {}
        self._others = {
            name: known[name] if name in known else pd.Series([any_value(schema[name])]) for name in others
        }

    def answers(self, frame: pd.DataFrame) -> tuple[npt.NDArray[np.int64], pd.DataFrame]:
        """Return the row numbers that NVTabular answers, which are all of them, and its answers."""
        return np.arange(len(frame)), self(frame)

    def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the part's outputs from ``Workflow.transform``, row for row."""
        given = frame[self.inputs].reset_index(drop=True)
        for name, dtype in self._dtypes.items():
            if dtype is not None and given[name].dtype.kind == "i":
                given[name] = given[name].astype(dtype)
        given = _with_values(given, self._unused)
        try:
            transformed: pd.DataFrame = self._whole.transform(_with_values(given, self._others))
        except Exception:
            # An operator of another part may raise on any value. This is only the fallback, because some
            # graphs fail after remove_inputs, or return raw values (a group of jointly encoded columns).
            transformed = self.workflow.transform(given)
        return transformed[self.outputs]


def _with_values(frame: pd.DataFrame, values: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return the frame with further columns, whose values repeat cyclically."""
    rows = np.arange(len(frame))
    return frame.assign(
        **{name: few.take(rows % len(few)).reset_index(drop=True) for name, few in values.items()}
    )


def _without(workflow: Any, others: list[str]) -> None:
    """Remove input columns in place; the remaining outputs of TargetEncoding keep their names."""
    before = {node: node.input_columns.resolve(node.input_schema) for node in _target_encodings(workflow)}
    if others:
        workflow.remove_inputs(others)
    _without_inside(workflow.output_node)
    for node, op in _target_encodings(workflow).items():
        keep_output_names(op, before[node], node.input_columns.resolve(node.input_schema))


def _without_inside(output_node: Any) -> None:
    """Update the operators that store column names, in place, after columns were removed."""
    from merlin.dag.node import iter_nodes

    for node in list(iter_nodes([output_node])):
        left = node.input_schema.column_names
        if node.op.is_subgraph:
            gone = [name for name in node.op.graph.input_schema.column_names if name not in left]
            if gone:
                node.op.graph.remove_inputs(gone)
            _without_inside(node.op.graph.output_node)
        elif key_of(node.op) == "nvtabular.ReduceDtypeSize":
            node.op.dtypes = {name: dtype for name, dtype in node.op.dtypes.items() if name in left}


def _target_encodings(workflow: Any) -> dict[Any, Any]:
    """Return node → operator for the TargetEncodings of a workflow."""
    from merlin.dag.node import iter_nodes

    nodes = iter_nodes([workflow.output_node], flatten_subgraphs=True)
    return {node: node.op for node in nodes if key_of(node.op) == "nvtabular.TargetEncoding"}


def _asked(output_node: Any) -> dict[str, Any]:
    """Return the schema of each raw column that the executor takes from the frame."""
    from merlin.dag.node import iter_nodes

    asked: dict[str, Any] = {}
    for node in iter_nodes([output_node]):
        above = [parent.output_schema.column_names for parent in node.parents_with_dependencies]
        made = {name for names in above for name in names}
        asked |= {column.name: column for column in node.input_schema if column.name not in made}
    return asked


def keep_rows(workflow: Any, rows: str | None) -> None:
    """Make operators that drop rows pass all rows, in place, unless ``rows`` is None or they drop events."""
    if rows is None:
        return
    from merlin.dag.node import iter_nodes
    from nvtabular.ops import Filter

    nodes = list(iter_nodes([workflow.output_node], flatten_subgraphs=True))
    entries = {id(node): TABLE.get(key_of(node.op)) for node in nodes if node.op is not None}
    grouping = [node for node in nodes if getattr(entries.get(id(node)), "keys", None) is not None]
    of_events = {id(node) for group in grouping for node in iter_nodes([group])}
    for node in nodes:
        entry = entries.get(id(node))
        if entry is not None and entry.drops_rows and id(node) not in of_events:
            node.op = Filter(_as_it_is)


def _as_it_is(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


def integer_dtype(schema: Any) -> str | None:
    """Return the dtype of a scalar integer column, else None."""
    name = str(schema.dtype.name)
    return name if name in INTEGER_DTYPES and not schema.is_list else None


def any_value(schema: Any) -> Any:
    """Return an arbitrary value of a column's type."""
    if str(schema.dtype.name).startswith("datetime64"):
        return pd.Timestamp(0)
    value: Any = "" if schema.dtype.name in ("object", "str", "string") else 0
    return [value] if schema.is_list else value


def frame_oracle(workflow: Any, part: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return NVTabular's outputs for one part; reuse a :class:`FrameOracle` to call it more than once."""
    return FrameOracle(workflow, part)(frame)


def oracle_frame(frame: pd.DataFrame, inputs: Sequence[InputColumn]) -> pd.DataFrame:
    """Return the frame in the oracle's form, which the module's docstring defines.

    Parameters
    ----------
    frame
        Has a column for each input; nullable and object columns of numbers are accepted.
    inputs
        The program's inputs.
    """
    out = {}
    for column in inputs:
        series = frame[column.name].reset_index(drop=True)
        if column.is_date and not column.is_list:
            values, valid = elements(series, column)
            moments = values.astype(f"datetime64[{column.unit}]")
            out[column.name] = pd.Series(moments if valid is None else np.where(valid, moments, _NOT_A_TIME))
        elif column.is_list and column.dtype == "float32":
            rows = [None if _is_null(row) else np.array(row, np.float32) for row in series]
            out[column.name] = _objects(rows)
        elif column.is_list:
            rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in series]
            out[column.name] = _objects([None if _is_null(row) else row for row in rows])
        elif column.dtype == "bytes":
            out[column.name] = series.astype(object).where(series.notna(), None)
        elif column.dtype.startswith("float") or series.isna().any():
            dtype = column.dtype if column.dtype.startswith("float") else "float64"
            known = series.astype(object).where(series.notna(), np.nan)
            out[column.name] = pd.Series(known.to_numpy(dtype))
        else:
            out[column.name] = series.astype(column.dtype)
    return pd.DataFrame(out)


def _objects(rows: list[Any]) -> pd.Series:
    out = np.empty(len(rows), np.object_)
    for i, row in enumerate(rows):
        out[i] = row
    return pd.Series(out)


def golden_rows(frame: pd.DataFrame, inputs: Sequence[InputColumn], rows: int = 16) -> pd.DataFrame:
    """Return rows to keep as golden vectors: evenly spaced real ones, and one with a null in every column.

    Parameters
    ----------
    frame
        Real rows with the program's input columns.
    inputs
        The program's inputs.
    rows
        How many real rows to keep, spread evenly over the frame.

    Returns
    -------
    ``min(rows, len(frame)) + 1`` rows of dtype ``object``, for :func:`oracle_frame`, which makes the integers
    beside a null floats. The last row's lists are empty and its scalars null.
    """
    picked = np.unique(np.linspace(0, max(len(frame) - 1, 0), min(rows, len(frame))).astype(np.int64))
    real = frame[[column.name for column in inputs]].iloc[picked].astype(object)
    null = pd.DataFrame(
        {column.name: pd.Series([[] if column.is_list else None], dtype=object) for column in inputs}
    )
    return pd.concat([real, null], ignore_index=True)


def oracle_columns(frame: pd.DataFrame, outputs: Sequence[OutputColumn]) -> dict[str, Column]:
    """Convert NVTabular's output into columns, bit for bit.

    Parameters
    ----------
    frame
        The transformed rows.
    outputs
        The compiled program's outputs. Their dtypes matter only where pandas had to turn integers with nulls
        into floats, and for empty lists.
    """
    columns = {}
    for output in outputs:
        series = frame[output.name]
        if output.is_list:
            rows = [row if isinstance(row, (list, tuple, np.ndarray)) else None for row in series]
            lists = [np.asarray([] if row is None else row) for row in rows]
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
            flat = pd.Series(np.concatenate([row for row in lists if len(row)] or [np.zeros(0)]))
            if not len(flat):
                flat = flat.astype(object if output.dtype == "bytes" else output.dtype)
            columns[output.name] = Column(*_values(flat, output), offsets)
        else:
            columns[output.name] = Column(*_values(series, output))
    return columns


def _values(series: pd.Series, output: OutputColumn) -> tuple[Array, Array | None]:
    null = series.isna().to_numpy()
    if output.dtype == "bytes":
        values = np.empty(len(series), object)
        values[:] = [
            b"" if absent else value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
            for value, absent in zip(series, null, strict=True)
        ]
        return values, ~null if null.any() else None
    if null.any() and np.dtype(output.dtype).kind in "iub":
        return series.where(~null, 0).to_numpy().astype(output.dtype), ~null
    values = np.asarray(series.to_numpy())
    if values.dtype.kind == "M":
        return values.astype(np.int64), ~null if null.any() else None
    if values.dtype.kind == "f" and np.dtype(output.dtype).kind in "iub":
        # A null in the batch, filled later, had turned its integers into floats.
        whole = values.astype(output.dtype)
        return (whole if (whole == values).all() else values), None
    return values, None
