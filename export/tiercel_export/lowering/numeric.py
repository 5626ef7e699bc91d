"""FillMissing, FillMedian, Clip and LogOp.

pandas widens a column only if a value of the batch needs it (an integer column that is filled or clipped with
0.5, a float32 column that is filled with 0.1). The compiled program always uses the wider dtype. Where that
would change the last bits of other rows, the operator is refused. This concerns a bound of Clip that float32
can't hold, and Normalize after such a fill: NVTabular computes both in float32 unless a row of the batch
needs float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import UnsupportedOperator
from .expressions import Columns, Expression, Where, apply, refused_column, with_elements


def lower_fill_missing(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``fillna(fill_val)``, and ``<column>_filled = isna()`` if ``add_binary_cols`` is set.

    On a list column NVTabular's ``fillna`` sees rows, not elements. It replaces a null row with ``fill_val``;
    here the row becomes an empty list.
    """

    def fill(source: Expression, name: str) -> Expression:
        if source.is_list:
            return _fill_rows(source, op.fill_val, name, where)
        return _fill(source, op.fill_val, "fill_val", name, where)

    return _fill_each(op, names, columns, fill)


def lower_fill_median(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``fillna(median)``, and ``<column>_filled = isna()`` if ``add_binary_cols`` is set.

    The median of a column without any number is NaN, and ``fillna(NaN)`` changes nothing.
    """

    def fill(source: Expression, name: str) -> Expression:
        if name not in op.medians:
            raise where.refuse(name, "it has no fitted median", "Fit the workflow before it is compiled")
        median = op.medians[name]
        if source.is_float and math.isnan(median):
            return source
        return _fill(source, median, "the fitted median", name, where)

    return _fill_each(op, names, columns, fill)


def _fill_each(
    op: Any,
    names: list[str],
    columns: Mapping[str, Expression],
    fill: Callable[[Expression, str], Expression],
) -> Columns:
    out = dict(columns)
    for name in names:
        # From ``out``: ``<column>_filled`` may itself be among the names, and is then overwritten first.
        source = out[name]
        if op.add_binary_cols:
            is_null = "row_is_null" if source.is_list else "is_null"
            out[f"{name}_filled"] = apply(is_null, source, physical="int64", dtype="bool", is_list=False)
        try:
            out[name] = fill(source, name)
        except UnsupportedOperator as error:
            out[name] = refused_column(source, error)  # the flag is correct even so
    return out


def _fill_rows(source: Expression, value: Any, name: str, where: Where) -> Expression:
    """Return the lists with null rows made empty, because neither a number nor '' has elements."""
    if source.op == "fill_rows":
        return source  # no row is null any more
    if isinstance(value, str) and value:
        return apply("fill_rows", source, own={"text": value})
    if not isinstance(value, (str, bool, np.bool_)):
        number_of(value, "fill_val", name, where)
    return apply("fill_rows", source)


def _fill(source: Expression, value: Any, what: str, name: str, where: Where) -> Expression:
    if source.is_text:
        if not isinstance(value, str):
            raise where.refuse(
                name,
                f"the column holds text and fill_val is {value!r}, which makes a column of mixed types",
                "Fill text with text: FillMissing(fill_val='...')",
            )
        return apply("fill_text", source, shared={"value": value})
    number = number_of(value, what, name, where)
    if source.dtype == "bool":
        if number not in (0, 1):
            raise where.refuse(
                name, f"{what} {value!r} is not a boolean", "Use 0 or 1, or store the column as a number"
            )
        return apply("fill", source, own={"value": int(number)})
    source, dtype = holding(source, [number])
    return apply("fill", source, own={"value": as_held(source, number)}, dtype=dtype)


def lower_clip(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``x[x < min] = min``, then ``x[x > max] = max``; NaN stays."""
    return {name: _clip(op, columns[name], name, where) for name in names}


def _clip(op: Any, source: Expression, name: str, where: Where) -> Expression:
    if source.is_list:
        raise where.refuse(name, "NVTabular's Clip raises on lists", "Clip before the lists are built")
    if source.is_text:
        raise where.refuse(
            name, f"Clip needs numbers, the column holds {source.dtype}", "Leave it out of Clip"
        )
    bounds = {"low": op.min_value, "high": op.max_value}
    given = {key: number_of(value, key, name, where) for key, value in bounds.items() if value is not None}
    if source.dtype == "bool":
        # Such as the flags of FillMissing(add_binary_cols=True): bounds that keep 0 and 1 change nothing.
        if given.get("low", 0) > 0 or given.get("high", 1) < 1:
            raise where.refuse(
                name, "these bounds make numbers of some of its booleans", "Leave it out of Clip"
            )
        return source
    for key, value in given.items():
        if narrowest(source) == "float32" and not _float32_holds(value):
            raise where.refuse(
                name,
                f"float32 can't hold the {key} bound {value!r}, so that NVTabular compares and stores the "
                "whole batch in float64 as soon as one row needs it",
                f"Use {float(np.float32(value))!r}, or store the column as float64",
            )
    source, dtype = holding(source, given.values())
    own = {key: as_held(source, value) for key, value in given.items()}
    return apply("clip", source, shared=dict.fromkeys(given, True), own=own, dtype=dtype)


def lower_log(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``log(float32(x) + 1)``, for a list of each element."""
    out = dict(columns)
    for name in names:
        source = numeric(columns[name], name, where)
        out[name] = apply("log", source, physical="float32", dtype="float32")
    return out


# --------------------------------------------------------------------------------------------- numbers


def numeric(source: Expression, name: str, where: Where) -> Expression:
    """Return the column, or refuse text and lists filled with text."""
    if source.is_text:
        raise where.refuse(name, "the column holds text", "Categorify it, or leave it out")
    return with_elements(source, name, where)


def number_of(value: Any, what: str, name: str, where: Where) -> float | int:
    """Return a parameter as a plain number, or refuse it."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise where.refuse(name, f"{what} is {value!r}, not a number", "Use an int or a float")
    plain: int | float = value.item() if isinstance(value, np.generic) else value
    if math.isnan(plain):
        raise where.refuse(name, f"{what} is NaN, which leaves nulls null", "Use a number")
    return plain


def holding(source: Expression, values: Iterable[float]) -> tuple[Expression, str]:
    """Return the column in a dtype that holds the values exactly, and NVTabular's name of that dtype."""
    values = list(values)
    if source.physical == "int64":
        if not all(_is_int64(value) for value in values):
            return widen(source), "float64"
        low, high = _limits(source.dtype)
        return source, source.dtype if all(low <= value <= high for value in values) else "int64"
    if source.physical == "float32" and not all(_float32_holds(value) for value in values):
        return widen(source), "float64"
    return source, source.dtype


def widen(source: Expression) -> Expression:
    """Return the column as float64, which NVTabular makes it only if a row of the batch needs that."""
    return apply("widen", source, shared={"dtype": "float64"}, physical="float64", dtype="float64")


def narrowest(source: Expression) -> str:
    """Return the dtype of NVTabular's column in a batch that needs no widening."""
    while source.op in ("widen", "fill", "clip"):
        source = source.sources[0]
    return source.dtype


def as_held(source: Expression, value: float) -> int | float:
    """Return the value as int or float, whichever the program computes the column in."""
    return int(value) if source.physical == "int64" else float(value)


def _is_int64(value: float) -> bool:
    return math.isfinite(value) and value == int(value) and -(2**63) <= value < 2**63


def _float32_holds(value: float) -> bool:
    with np.errstate(over="ignore"):
        return float(np.float32(value)) == float(value)


def _limits(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)
