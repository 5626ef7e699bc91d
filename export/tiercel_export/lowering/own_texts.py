"""TextSlice, TextCase, TextStrip, TextLength and TextSplitCount, of ``tiercel_export.operators``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .expressions import Columns, Expression, Where, apply
from .own_times import scalar


def lower_text_slice(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``text[start:stop:step]``."""
    return _text("text_slice", {"start": op.start, "stop": op.stop, "step": op.step}, names, columns, where)


def lower_text_case(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``text.lower()``, ``text.upper()`` and similar methods."""
    return _text("text_case", {"case": op.case}, names, columns, where)


def lower_text_strip(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``text.strip(characters)``."""
    return _text("text_strip", {"characters": op.characters}, names, columns, where)


def lower_text_length(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``len(text)``."""
    return _text("text_length", {}, names, columns, where, "int64")


def lower_text_split_count(
    op: Any, names: list[str], columns: Mapping[str, Expression], where: Where
) -> Columns:
    """``len(text.split(separator))``."""
    return _text("text_parts", {"separator": op.separator}, names, columns, where, "int64")


def _text(
    step: str,
    shared: Mapping[str, Any],
    names: list[str],
    columns: Mapping[str, Expression],
    where: Where,
    dtype: str = "bytes",
) -> Columns:
    made = {}
    for name in names:
        source = scalar(columns[name], name, where)
        if not source.is_text:
            raise where.refuse(name, f"the column holds {source.dtype}, no text", "Cast it to 'str' first")
        made[name] = apply(step, source, shared=shared, physical=dtype, dtype=dtype)
    return made
