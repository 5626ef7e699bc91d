"""The operators of ``tiercel_export.operators`` for numbers and values, from Arithmetic to Cast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tiercel_serving.features.arithmetic import ALWAYS_FLOAT, OF_INTEGERS

from .expressions import Columns, Expression, Where, apply, cast, combine
from .own_times import scalar
from .vocabulary import Vocabulary, encode, plain_values


def lower_arithmetic(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``column operator other``, in int64 or float64."""

    def types(sources: tuple[Expression, ...]) -> tuple[str, str, str]:
        compute = _compute(sources, op.value, op.operator in ALWAYS_FLOAT)
        return compute, compute, compute

    return _of_two("compute", op, names, columns, where, types, swap=op.swap)


def lower_compare(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``column operator other``, as int64, float64 or text; a boolean."""

    def types(sources: tuple[Expression, ...]) -> tuple[str, str, str]:
        text = any(source.is_text for source in sources) or isinstance(op.value, str)
        return "O" if text else _compute(sources, op.value, False), "int64", "bool"

    return _of_two("compare", op, names, columns, where, types, text=True)


def lower_logic(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``and``, ``or`` or ``xor`` of the truth values of two columns."""
    return _of_two("logic", op, names, columns, where, lambda sources: ("bool", "int64", "bool"))


def _of_two(
    step: str,
    op: Any,
    names: list[str],
    columns: Mapping[str, Expression],
    where: Where,
    types: Any,
    *,
    swap: bool = False,
    text: bool = False,
) -> Columns:
    """Lower a binary operator of a column with a constant, or with another column.

    ``types(sources)`` returns three dtypes: the one that it computes in, and the physical and NVTabular's
    dtype of the result.
    """
    made = {}
    for name in names:
        if name == op.operand_name or (op.operand_name is not None and op.operand_name not in columns):
            continue
        others = [] if op.operand_name is None else [op.operand_name]
        sources = tuple(_operand(columns[of], of, where, text) for of in (name, *others))
        is_text = [source.is_text for source in sources] + ([] if others else [isinstance(op.value, str)])
        if len(set(is_text)) > 1:
            raise where.refuse(name, "text meets numbers", "Give both sides one type, by Cast('str') say")
        compute, physical, dtype = types(sources)
        shared: dict[str, Any] = {"operator": op.operator, "compute": compute}
        if swap:
            shared["swap"] = True
        if others:
            if swap:
                sources, shared = sources[::-1], {"operator": op.operator, "compute": compute}
            made[name] = combine(step, sources, shared=shared, physical=physical, dtype=dtype)
        elif compute == "O":
            shared["text"] = op.value
            made[name] = apply(step, sources[0], shared=shared, physical=physical, dtype=dtype)
        else:
            own = {"value": op.value}
            made[name] = apply(step, sources[0], shared=shared, own=own, physical=physical, dtype=dtype)
    return made


def _operand(source: Expression, name: str, where: Where, text: bool) -> Expression:
    scalar(source, name, where)
    if source.is_text and not text:
        raise where.refuse(name, "the column holds text", "Cast it to a number first, or leave it out")
    return source


def _compute(sources: tuple[Expression, ...], value: Any, always_float: bool) -> str:
    floats = always_float or isinstance(value, float) or any(source.is_float for source in sources)
    return "float64" if floats else "int64"


def lower_function(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``function(column)``, in int64 or float64."""
    made = {}
    for name in names:
        source = _operand(columns[name], name, where, False)
        compute = _compute((source,), None, op.function not in OF_INTEGERS)
        shared = {"function": op.function, "compute": compute}
        made[name] = apply("function", source, shared=shared, physical=compute, dtype=compute)
    return made


def lower_cyclical(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``<column>_sin`` and ``<column>_cos``."""
    made = {}
    for name in names:
        source = _operand(columns[name], name, where, False)
        for suffix in op.suffixes:
            made[f"{name}{suffix}"] = apply(
                "wave",
                source,
                shared={"function": suffix[1:]},
                own={"period": op.period},
                physical="float64",
                dtype="float64",
            )
    return made


def lower_not(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """Whether a number is 0 or null."""
    return {
        name: apply("not", _operand(columns[name], name, where, False), physical="int64", dtype="bool")
        for name in names
    }


def lower_is_null(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``isna()``."""
    return {
        name: apply("is_null", scalar(columns[name], name, where), physical="int64", dtype="bool")
        for name in names
    }


def lower_is_in(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """Whether a value is among the given ones, looked up in a vocabulary whose ids are all 1."""
    import pandas as pd

    kind, values = plain_values(pd.Series(op.values), "IsIn")
    source = f"IsIn {op.values!r}"
    made = {}
    for name in names:
        column = scalar(columns[name], name, where)
        if column.is_text != (kind == "text"):
            raise where.refuse(
                name, f"the column holds {column.dtype}, and its values are {kind}", "Give both one type"
            )
        vocabulary = Vocabulary(source, kind, values, np.ones(len(values), np.int64))
        made[name] = encode(column, vocabulary, 0, 0, "bool", cast=False)
    return made


def lower_cast(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``astype``; nulls stay null."""
    return {name: _cast(scalar(columns[name], name, where), op.dtype, name, where) for name in names}


def _cast(source: Expression, dtype: str, name: str, where: Where) -> Expression:
    if source.time_unit is not None:
        if dtype != "int64":
            raise where.refuse(name, f"times become int64, not {dtype}", "Use Cast('int64'), or DatePart")
        return apply("to_whole", source, shared={"dtype": dtype}, dtype=dtype)
    if source.is_text:
        if dtype == "str":
            return source
        if dtype == "bool":
            raise where.refuse(name, "text becomes no boolean", "Compare it with a text")
        source = apply("text_to_number", source, physical="float64", dtype="float64")
    if dtype == "str":
        return apply("number_to_text", source, physical="bytes", dtype="bytes")
    if dtype.startswith("float"):
        return cast(source, dtype)
    if dtype == "bool":
        return apply("to_truth", source, physical="int64", dtype="bool")
    return apply("to_whole", source, shared={"dtype": dtype}, physical="int64", dtype=dtype)
