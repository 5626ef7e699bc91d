"""Operators that select, concatenate, rename or tag columns, collect statistics, or hold a nested graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .expressions import Columns, Expression, Where


def lower_selection(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df[names]``: selection, ``+``, ``-`` and ``[...]``."""
    return {name: columns[name] for name in names}


def lower_frame(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df`` unchanged, with all of its columns; for operators that only change the schema or act at fit."""
    return dict(columns)


def lower_rename(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df[names]`` under the names that the operator's function, postfix or name gives."""
    return {new: columns[old] for new, (old,) in op.column_mapping(where.selector).items()}


def lower_subgraph(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """Return the output columns of the nested graph for this frame."""
    if not names:
        return {}
    if op.loop_until is not None:
        raise where.refuse(
            names[0], "loop_until is arbitrary Python, which sees the whole batch", "Leave loop_until out"
        )
    return where.nested(op.graph, dict(columns))
