"""FillMissing, Clip, LogOp and Normalize.

Where pandas would widen a column only if a value of the batch needs it (an integer column that is filled
or clipped with 0.5), the compiled program always has the wider dtype. Where that would change the other
rows' last bits (a float32 column filled with 0.1, which float32 does not have), the operator is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .expressions import Columns, Expression, Where, apply, cast


def lower_fill_missing(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``fillna(fill_val)``, and ``<column>_filled = isna()`` if asked for.

    On a list column NVTabular's ``fillna`` sees rows, never elements: a null row becomes ``fill_val``, here
    an empty list.
    """
    out = dict(columns)
    for name in names:
        # From ``out``: ``<column>_filled`` may itself be among the names, and is then overwritten first.
        source = out[name]
        if op.add_binary_cols:
            is_null = "row_is_null" if source.is_list else "is_null"
            out[f"{name}_filled"] = apply(is_null, source, physical="int64", dtype="bool", is_list=False)
        out[name] = apply("fill_rows", source) if source.is_list else _fill(source, op.fill_val, name, where)
    return out


def _fill(source: Expression, value: Any, name: str, where: Where) -> Expression:
    if source.is_text:
        if not isinstance(value, str):
            raise where.refuse(
                name,
                f"the column holds text and fill_val is {value!r}, which makes a column of mixed types",
                "Fill text with text: FillMissing(fill_val='...')",
            )
        return apply("fill_text", source, shared={"value": value})
    number = _number(value, "fill_val", name, where)
    if source.dtype == "bool":
        if number not in (0, 1):
            raise where.refuse(
                name, f"fill_val {value!r} is not a boolean", "Use 0 or 1, or store the column as a number"
            )
        return apply("fill", source, own={"value": int(number)})
    source = _holding(source, number, "fill_val", name, where)
    return apply("fill", source, own={"value": _as_held(source, number)})


def lower_clip(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``x[x < min] = min``, then ``x[x > max] = max``; NaN stays."""
    return {name: _clip(op, columns[name], name, where) for name in names}


def _clip(op: Any, source: Expression, name: str, where: Where) -> Expression:
    if source.is_list:
        raise where.refuse(name, "NVTabular's Clip raises on lists", "Clip before the lists are built")
    if source.is_text or source.dtype == "bool":
        raise where.refuse(
            name, f"Clip needs numbers, the column holds {source.dtype}", "Leave it out of Clip"
        )
    bounds = {"low": op.min_value, "high": op.max_value}
    given = {key: _number(value, key, name, where) for key, value in bounds.items() if value is not None}
    for key, value in given.items():
        source = _holding(source, value, f"{key} bound", name, where)
    own = {key: _as_held(source, value) for key, value in given.items()}
    return apply("clip", source, shared=dict.fromkeys(given, True), own=own)


def lower_log(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``log(float32(x) + 1)``, of each element for a list."""
    out = dict(columns)
    for name in names:
        out[name] = apply("log", _numeric(columns[name], name, where), physical="float32", dtype="float32")
    return out


def lower_normalize(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``(x - mean) / std``, or ``x - mean`` where std is not above 0; then ``out_dtype``.

    A float32 column computes in float32, every other in float64; so does a list, by its elements.
    """
    return {name: _normalize(op, _numeric(columns[name], name, where), name, where) for name in names}


def _normalize(op: Any, source: Expression, name: str, where: Where) -> Expression:
    if name not in op.means:
        raise where.refuse(name, "it has no fitted mean", "Fit the workflow before it is compiled")
    mean, std = op.means[name], op.stds[name]
    std = std if std > 0 else 1.0  # x / 1.0 is x, to the last bit
    target = np.dtype(op.output_dtype)
    if target.name not in ("float32", "float64"):
        raise where.refuse(name, f"out_dtype {target.name} is not a float", "Use float32 or float64")
    narrow = source.physical == "float32"
    if narrow and any(math.isinf(np.float32(v)) and not math.isinf(v) for v in (mean, std)):
        raise where.refuse(
            name, "the fitted mean or std is beyond float32's range", "Store the column as float64"
        )
    return apply(
        "normalize",
        source,
        shared={"dtype": target.name, "compute": "float32" if narrow else "float64"},
        own={"mean": mean, "std": std},
        physical=target.name,
        dtype=target.name,
    )


def _numeric(source: Expression, name: str, where: Where) -> Expression:
    if source.is_text:
        raise where.refuse(name, "the column holds text", "Categorify it, or leave it out")
    return source


def _number(value: Any, what: str, name: str, where: Where) -> float | int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise where.refuse(name, f"{what} is {value!r}, not a number", "Use an int or a float")
    plain: int | float = value.item() if isinstance(value, np.generic) else value
    if math.isnan(plain):
        raise where.refuse(name, f"{what} is NaN, which leaves nulls null", "Use a number")
    return plain


def _holding(source: Expression, value: float, what: str, name: str, where: Where) -> Expression:
    """Return the column in a dtype that holds the value, or refuse."""
    if source.physical == "int64":
        if not (math.isinf(value) or value != int(value)):
            low, high = _limits(source.dtype)
            if low <= value <= high:
                return source
            if -(2**63) <= value < 2**63:
                return replace(source, dtype="int64")
        return cast(source, "float64")
    if source.physical == "float32" and float(np.float32(value)) != float(value):
        raise where.refuse(
            name,
            f"float32 can't hold the {what} {value!r}, so that NVTabular computes the whole batch in "
            "float64 as soon as one row needs it",
            f"Use {float(np.float32(value))!r}, or store the column as float64",
        )
    return source


def _limits(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _as_held(source: Expression, value: float) -> int | float:
    return int(value) if source.physical == "int64" else float(value)
