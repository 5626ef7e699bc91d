"""ListSlice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .expressions import Columns, Expression, Where, apply, cast, with_elements
from .numeric import as_held, holding, number_of


def lower_list_slice(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``row[start:end]`` of each row; then, with ``pad``, padding to ``end - start`` elements.

    NVTabular pads only rows that are Python lists, such as those of Groupby. For rows that are arrays (lists
    that another operator computed, and lists of float32) it discards the padded result. Those keep their
    lengths here too.
    """
    return {name: _list_slice(op, columns[name], name, where) for name in names}


def _list_slice(op: Any, source: Expression, name: str, where: Where) -> Expression:
    if not source.is_list:
        raise where.refuse(name, "the column does not hold lists", "Leave it out of ListSlice")
    with_elements(source, name, where)
    shared: dict[str, Any] = {"start": int(op.start), "end": int(op.end)}
    origin = _origin(source)
    if op.pad and origin.op == "gather_list":
        raise where.refuse(
            name,
            "NVTabular pads joined lists or not, by what kind of rows the joined table has",
            "Leave pad out: packed lists are padded with 0",
        )
    of_python = origin.op == "collect_events" or (origin.op == "load_list" and origin.dtype != "float32")
    if not op.pad or not of_python:
        return apply("list_slice", source, shared=shared)
    length = int(op.max_elements)
    if length == np.iinfo(np.int64).max:
        raise where.refuse(name, "it pads to an end that is not given", "Give ListSlice an end")
    source, dtype, value = _padding(op.pad_value, source, name, where)
    shared |= {"length": length, "value": value}
    return apply("list_slice", source, shared=shared, dtype=dtype)


def _origin(source: Expression) -> Expression:
    """Return the column that these rows come from, through steps that keep lists lists and arrays arrays."""
    while source.op in ("list_slice", "fill_rows") or (source.op == "cast" and source.is_list):
        source = source.sources[0]
    return source


def _padding(
    value: Any, source: Expression, name: str, where: Where
) -> tuple[Expression, str, str | int | float]:
    """Return the column in a dtype that holds the pad value, that dtype's name, and the value in it."""
    if source.is_text:
        if not isinstance(value, str):
            raise where.refuse(
                name, f"pad_value {value!r} among text makes lists of mixed types", "Use pad_value=''"
            )
        return source, source.dtype, value
    if source.dtype == "bool":
        if value not in (0, 1):
            raise where.refuse(name, f"pad_value {value!r} is not a boolean", "Use pad_value=False")
        return source, source.dtype, int(value)
    number = number_of(value, "pad_value", name, where)
    held, dtype = holding(source, [number])
    if held is not source:
        held = cast(source, dtype)
    return held, dtype, as_held(held, number)
