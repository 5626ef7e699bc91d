"""Filter and Dropna: they drop events of a session before ``Groupby``, and rows nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import WorkflowError
from .conditions import Condition, Untold, condition_of, lower_condition, not_null
from .expressions import Columns, Expression, Where, combine, refused_column

#: The choice by which operators that drop rows keep them when served.
KEEP = "keep"


def lower_filter(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df[f(df)]`` of the whole frame: of a session's events those for which the condition holds.

    The tracer asks for it only if the frame holds events, or rows are kept.
    """
    return _filtered(lambda: condition_of(op.f, columns), columns, where)


def lower_dropna(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df.dropna(subset=names)`` of the whole frame: the events that have no null in one of ``names``."""
    chosen = [name for name in where.whole.names if name in columns] if where.whole is not None else names
    # A session stays without its key, too.
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
    """Return the events that are left; a key is that of the same session."""
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
    """Return what each column of a filter of events is computed from: itself, and the condition's."""
    names = list(selector.names)
    return _with_condition(lambda: condition_of(op.f, names), names)


def columns_of_dropna(op: Any, selector: Any) -> dict[str, list[str]]:
    """Return the same for Dropna."""
    names = list(selector.names)
    return _with_condition(lambda: not_null(names), names)


def _with_condition(ask: Any, names: list[str]) -> dict[str, list[str]]:
    try:
        condition: Condition = ask()
        read = sorted(condition.columns())
    except (Untold, TypeError):
        read = []
    return {name: [name, *(other for other in read if other != name)] for name in names}
