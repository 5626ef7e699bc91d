"""Operators that choose, join, rename or tag columns and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .expressions import Columns, Expression, Where


def lower_selection(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df[names]``: selection, ``+``, ``[...]`` and everything that only changes the schema."""
    return {name: columns[name] for name in names}


def lower_subtraction(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """Return the frame of ``a - b`` as it is; which columns remain is the output schema's business."""
    return dict(columns)


def lower_rename(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df[names]`` under the names that the operator's function, postfix or name gives."""
    return {new: columns[old] for new, (old,) in op.column_mapping(where.selector).items()}
