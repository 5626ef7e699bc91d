"""Filter and Dropna: before ``Groupby`` they drop events of a session; they never drop served rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import WorkflowError
from .conditions import Condition, Untold, condition_of, lower_condition, not_null
from .expressions import Columns, Expression, Where, combine, refused_column

#: Value of ``rows`` with which operators that drop rows keep them when served.
KEEP = "keep"


def lower_filter(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df[f(df)]`` of the whole frame: keep a session's events for which the condition holds.

    The tracer calls it only if the frame holds events, or if rows are kept.
    """
    return _filtered(lambda: condition_of(op.f, columns), columns, where)


def lower_dropna(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df.dropna(subset=names)`` of the whole frame: keep the events without a null in ``names``."""
    chosen = [name for name in where.whole.names if name in columns] if where.whole is not None else names
    # A session with a null key is kept.
    asked = [name for name in chosen or columns if not columns[name].of_key]
    return _filtered(lambda: not_null(asked), columns, where)


def _filtered(ask: Any, columns: Mapping[str, Expression], where: Where) -> Columns:
    if all(column.axis is None for column in columns.values()):
        return dict(columns)
    try:
        condition = lower_condition(ask(), columns, where)
    except (Untold, WorkflowError) as raised:
        return {name: refused_column(column, _why(raised, name, where)) for name, column in columns.items()}
    return {name: _kept(column, condition) for name, column in columns.items()}


def _why(raised: Exception, name: str, where: Where) -> WorkflowError:
    if isinstance(raised, WorkflowError):
        return raised
    return where.refuse(
        name,
        f"its function can't be read as comparisons of columns: {raised}",
        "Compare columns with values or with each other, as in lambda df: (df['a'] > 0) & df['b'].notna(), "
        "or filter the data before the fit",
    )


def _kept(column: Expression, condition: Expression) -> Expression:
    """Return the events that remain; a key keeps its values and records the condition in its axis."""
    if column.of_key and column.axis is not None:
        return replace(column, axis=(*column.axis, condition))
    kept = combine(
        "keep_events",
        (column, condition),
        physical=column.physical,
        dtype=column.dtype,
        is_list=column.is_list,
    )
    return replace(kept, axis=(*(column.axis or ()), condition))


def columns_of_filter(op: Any, selector: Any) -> dict[str, list[str]]:
    """Return the columns that each filtered column of events is computed from: itself and the condition's."""
    names = list(selector.names)
    return _with_condition(lambda: condition_of(op.f, names), names)


def columns_of_dropna(op: Any, selector: Any) -> dict[str, list[str]]:
    """Return the columns that each column is computed from, as :func:`columns_of_filter`, for Dropna."""
    names = list(selector.names)
    return _with_condition(lambda: not_null(names), names)


def _with_condition(ask: Any, names: list[str]) -> dict[str, list[str]]:
    try:
        condition: Condition = ask()
        read = sorted(condition.columns())
    except (Untold, TypeError):
        read = []
    return {name: [name, *(other for other in read if other != name)] for name in names}
