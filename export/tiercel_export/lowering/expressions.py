"""Typed column expressions: how each column is computed, before columns are grouped into steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ..errors import UnsupportedOperator, WorkflowError

#: dtypes of NVTabular columns that are sent and computed as int64.
INTEGER_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")

#: ``op`` of a column that can't be compiled.
REFUSED = "refused"
#: ``op`` of an input column.
RAW = ("load", "load_list", "load_events")


@dataclass(frozen=True)
class Expression:
    """One column: an operation on other columns, or an input.

    Equal expressions are one column, so a computation that the graph contains twice runs once.

    Parameters
    ----------
    op
        Name of the runtime step (a key of ``tiercel_serving.features.steps.STEPS``).
    sources
        The columns that it is computed from, almost always one; none for an input.
    shared
        Parameters that all columns of one vectorised step must have in common.
    own
        This column's own parameters.
    physical
        dtype of the values while the program runs: ``int64``, ``float32``, ``float64`` or ``bytes``.
    dtype
        NVTabular's dtype of the column (of its elements, for a list).
    is_list
        Whether each row is a list.
    axis
        None for a column with one value per row. For a column of a session's events, which ``Groupby``
        aggregates into rows: the conditions of the filters that its events have passed.
    of_key
        Whether all events of a session share one value, so that the program holds it once per row.

    Attributes
    ----------
    mixed
        Whether it combines, anywhere below, columns of different axes, which no program can do.
    depth
        Length of the longest path to an input; 0 for an input.
    inputs, events
        Names of the raw columns that it depends on, and of those among them that hold a session's events.
    """

    op: str
    sources: tuple[Expression, ...]
    shared: tuple[tuple[str, Any], ...]
    own: tuple[tuple[str, Any], ...]
    physical: str
    dtype: str
    is_list: bool
    # Not compared: these follow from the fields above, or do not change what the program computes.
    axis: tuple[Expression, ...] | None = field(default=None, compare=False)
    of_key: bool = field(default=False, compare=False)
    mixed: bool = field(init=False, compare=False)
    depth: int = field(init=False, compare=False)
    inputs: frozenset[str] = field(init=False, compare=False)
    events: frozenset[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        own = dict(self.own)
        read = [source.inputs for source in self.sources] or [frozenset([own["name"]])]
        depth = 1 + max((source.depth for source in self.sources), default=-1)
        # Rows, a session's key, its events, and differently filtered events all differ in length.
        kinds = {(source.axis, source.of_key) for source in self.sources}
        mixed = len(kinds) > 1 or any(source.mixed for source in self.sources)
        object.__setattr__(self, "mixed", mixed)
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "inputs", frozenset().union(*read))
        own_events = frozenset([own["name"]]) if self.op == "load_events" else frozenset()
        object.__setattr__(self, "events", own_events.union(*(source.events for source in self.sources)))

    @property
    def is_text(self) -> bool:
        """Whether the column holds strings."""
        return self.physical == "bytes"

    @property
    def is_float(self) -> bool:
        """Whether nulls are NaN."""
        return self.physical in ("float32", "float64")

    @property
    def time_unit(self) -> str | None:
        """Unit of a datetime column's int64 values, which count from 1970 (such as ``ns``), or None."""
        return np.datetime_data(self.dtype)[0] if self.dtype.startswith("datetime64") else None

    @property
    def is_ragged(self) -> bool:
        """Whether the program holds one value per element or event of a row, not one per row."""
        return self.is_list or (self.axis is not None and not self.of_key)


Columns: TypeAlias = dict[str, Expression]
#: ``lower(operator, names, columns, where)``: a node's output columns, given the columns of its input frame.
Lowering: TypeAlias = Callable[[Any, list[str], Mapping[str, Expression], "Where"], Columns]


@dataclass(frozen=True)
class Where:
    """The node that is being lowered: what a lowering needs besides the operator, and for its errors.

    Parameters
    ----------
    operator
        Class name of the operator.
    selector
        The node's resolved column selector with its groups, restricted to the columns that are traced.
    nested
        ``nested(graph, columns)``: the output columns of a nested graph for an input frame.
    whole
        The selector without that restriction: the columns of all parts.
    schema
        The schema of the node's output.
    target_encoding
        As for :func:`~tiercel_export.workflow.cut.cut_workflow`.
    shared
        Real path of a state file that several operators write to → a description of those operators.
    """

    operator: str
    selector: Any
    nested: Callable[[Any, Columns], Columns]
    whole: Any = None
    schema: Any = None
    target_encoding: str | None = None
    shared: Mapping[str, str] = field(default_factory=dict)

    def own_file(self, column: str, path: str) -> str:
        """Return the path of a fitted state file, or refuse one that several operators overwrote."""
        owners = self.shared.get(os.path.realpath(path))
        if owners is None:
            return path
        raise self.refuse(
            column,
            f"{owners} keep what they learnt in one file, {path}, and the last fit overwrote the others'",
            "Give each its own column name (>> Rename(postfix='_2') before it), or an out_path of its own if "
            "the workflow is compiled as it was fitted, without Workflow.save",
        )

    def refuse(self, column: str, reason: str, remedy: str) -> UnsupportedOperator:
        """Return (not raise) the error that says why this column can't be compiled."""
        return UnsupportedOperator(self.operator, column, reason, remedy)


def input_column(name: str, physical: str, dtype: str, is_list: bool) -> Expression:
    """Return the expression of a raw column."""
    op = "load_list" if is_list else "load"
    return Expression(op, (), (), (("name", name),), physical, dtype, is_list)


def event_column(name: str, physical: str, dtype: str, session: Sequence[str]) -> Expression:
    """Return the expression of a raw column of a session's events; ``session`` names all such columns."""
    shared = (("session", tuple(session)),)
    return Expression("load_events", (), shared, (("name", name),), physical, dtype, False, axis=())


def refused_column(source: Expression, error: WorkflowError) -> Expression:
    """Return a placeholder for a column that can't be compiled; its error is raised only if it is used."""
    return apply(REFUSED, source, own={"error": error})


def unreadable_column(name: str, error: WorkflowError) -> Expression:
    """Return such a placeholder for a raw column, of which only the name and the error are known."""
    return Expression(REFUSED, (), (), (("error", error), ("name", name)), "bytes", "bytes", False)


def apply(
    op: str,
    source: Expression,
    *,
    shared: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
    physical: str | None = None,
    dtype: str | None = None,
    is_list: bool | None = None,
) -> Expression:
    """Return the expression ``op(source)``; types that are not given are those of the source."""
    return combine(
        op,
        (source,),
        shared=shared,
        own=own,
        physical=physical or source.physical,
        dtype=dtype or source.dtype,
        is_list=source.is_list if is_list is None else is_list,
    )


def combine(
    op: str,
    sources: Sequence[Expression],
    *,
    physical: str,
    dtype: str,
    shared: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
    is_list: bool = False,
) -> Expression:
    """Return the expression ``op(*sources)``.

    With several sources it is a step of its own, whose JSON has ``"in": [[register, row], …]``. With one
    source, similar columns share a step, whose JSON has ``"in": register``. Sources with different axes
    make it ``mixed``, which the tracer refuses.
    """
    return Expression(
        op,
        tuple(sources),
        tuple(sorted((shared or {}).items())),
        tuple(sorted((own or {}).items())),
        physical,
        dtype,
        is_list,
        sources[0].axis,
        sources[0].of_key,
    )


def cast(source: Expression, physical: str) -> Expression:
    """Return the column as ``physical``, a float dtype, with nulls as NaN."""
    if source.physical == physical:
        return source
    return apply("cast", source, shared={"dtype": physical}, physical=physical, dtype=physical)


def with_elements(source: Expression, name: str, where: Where) -> Expression:
    """Return the column, or refuse lists whose null rows FillMissing replaced with text."""
    text = dict(source.own).get("text") if source.op == "fill_rows" else None
    if text is not None:
        raise where.refuse(
            name,
            f"FillMissing made the text {text!r} of each null list, and NVTabular takes its letters for "
            "elements",
            "Leave lists out of that FillMissing, or fill them with '', which gives an empty list",
        )
    return source
