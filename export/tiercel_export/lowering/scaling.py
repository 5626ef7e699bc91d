"""Normalize, NormalizeMinMax and ReduceDtypeSize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .expressions import INTEGER_DTYPES, Columns, Expression, Where, apply, cast
from .numeric import narrowest, numeric

#: Integer dtypes in which a difference may overflow with values that occur in practice.
NARROW_INTEGERS = ("int8", "int16", "uint8", "uint16", "uint32")


def lower_normalize(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``(x - mean) / std``, or ``x - mean`` where std is not above 0; then ``out_dtype``.

    A float32 column is computed in float32, any other in float64. For a list, its elements decide.
    """
    return {name: _normalize(op, numeric(columns[name], name, where), name, where) for name in names}


def _normalize(op: Any, source: Expression, name: str, where: Where) -> Expression:
    if name not in op.means:
        raise where.refuse(name, "it has no fitted mean", "Fit the workflow before it is compiled")
    mean, std = op.means[name], op.stds[name]
    std = std if std > 0 else 1.0  # x / 1.0 is x, to the last bit
    target = _float_target(op, name, where)
    compute = _compute_dtype(source, (mean, std), "mean or std", name, where)
    return apply(
        "normalize",
        source,
        shared={"dtype": target, "compute": compute},
        own={"mean": mean, "std": std},
        physical=target,
        dtype=target,
    )


def lower_min_max(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``(x - min) / (max - min)`` without clipping, or ``x / (2 * x)`` for a column that is constant at fit.

    Floats are computed as in :func:`lower_normalize`. If the fitted minima are integers, which they are if no
    column of the operator is a float, integers are subtracted in their own dtype and divided in float64.
    """
    return {name: _min_max(op, numeric(columns[name], name, where), name, where) for name in names}


def _min_max(op: Any, source: Expression, name: str, where: Where) -> Expression:
    if source.is_list:
        raise where.refuse(name, "NVTabular's NormalizeMinMax raises on lists", "Use Normalize")
    if source.dtype == "bool":
        raise where.refuse(name, "NVTabular's NormalizeMinMax raises on booleans", "Leave it out, or cast it")
    if name not in op.mins:
        raise where.refuse(name, "it has no fitted minimum", "Fit the workflow before it is compiled")
    low = op.mins[name]
    with np.errstate(all="ignore"):
        span = op.maxs[name] - low  # in the dtype of the statistics, as NVTabular does
    if not span >= 0:
        raise where.refuse(
            name,
            f"its fitted range is {low} to {op.maxs[name]}, on which NVTabular raises",
            "Leave out a column that is null in every row, or store integers as int64",
        )
    if span > 0 and isinstance(low, np.float32) and narrowest(source) in INTEGER_DTYPES:
        raise where.refuse(
            name,
            f"beside float32 columns NVTabular computes {narrowest(source)} in float32, unless a row of the "
            "batch is null, which makes it float64",
            "Store the column as int64, or give it a NormalizeMinMax of its own",
        )
    wrap = _wrap(source, low, span, name, where)
    target = _float_target(op, name, where)
    if span == 0:
        shared = {"dtype": target, "wrap": wrap}
        return apply("min_max_constant", source, shared=shared, physical=target, dtype=target)
    compute = _compute_dtype(source, (low, span), "range", name, where)
    if wrap != "none":
        compute = "int64"
    return apply(
        "min_max",
        source,
        shared={"dtype": target, "compute": compute, "wrap": wrap},
        own={"low": np.asarray(low).item(), "span": np.asarray(span).item()},
        physical=target,
        dtype=target,
    )


def _wrap(source: Expression, low: Any, span: Any, name: str, where: Where) -> str:
    """Return the integer dtype in which NVTabular subtracts or doubles, or ``none``.

    A batch with a null makes the column float64, which does not overflow. If values that occur in practice
    could show the difference, the column is refused.
    """
    own = narrowest(source)
    if own not in INTEGER_DTYPES or (span != 0 and not isinstance(low, (int, np.integer))):
        return "none"
    if own in NARROW_INTEGERS and (span == 0 or low != 0):
        raise where.refuse(
            name,
            f"NVTabular computes {'2 * x' if span == 0 else 'x - min'} in {own}, which wraps round, unless a "
            "row of the batch is null",
            "Store the column as int64, or as a float",
        )
    if source.physical != "int64":
        return "none"
    return "int32" if source.dtype == "int32" else "int64"


def _float_target(op: Any, name: str, where: Where) -> str:
    target = np.dtype(op.output_dtype).name
    if target not in ("float32", "float64"):
        raise where.refuse(name, f"out_dtype {target} is not float32 or float64", "Use one of them")
    return target


def _compute_dtype(source: Expression, state: tuple[float, ...], what: str, name: str, where: Where) -> str:
    """Return the float dtype in which NVTabular computes with fitted numbers, or refuse."""
    if source.physical == "float64" and narrowest(source) == "float32":
        raise where.refuse(
            name,
            "it is filled with a value that float32 can't hold, so that NVTabular computes the whole batch "
            "in float64 if a row is null, else in float32",
            "Store the column as float64, or use FillMissing with a value that float32 holds",
        )
    if source.physical != "float32":
        return "float64"
    # NumPy computes in float64 from 3.4e38 on, a little below float32's largest number.
    if any(np.result_type(np.empty(1, np.float32), number) != np.float32 for number in state):
        raise where.refuse(
            name, f"the fitted {what} is beyond float32's range", "Store the column as float64"
        )
    return "float32"


def lower_reduce_dtype(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``astype`` to the dtype chosen at fit; for integers, the smallest that holds all values."""
    return {**columns, **{name: _reduce(op, columns[name], name, where) for name in names}}


def _reduce(op: Any, source: Expression, name: str, where: Where) -> Expression:
    if name not in op.dtypes:
        raise where.refuse(name, "it has no fitted dtype", "Fit the workflow before it is compiled")
    if source.is_list:
        raise where.refuse(name, "NVTabular's ReduceDtypeSize raises on lists", "Leave the column out")
    target = np.dtype(op.dtypes[name].to_numpy)
    if source.is_text:
        # For pandas' string dtype NVTabular chooses a text dtype, and its cast turns None into "None".
        return apply("fill_text", source, shared={"value": "None"}) if target.kind == "U" else source
    if source.dtype == "bool":
        return apply("fill", source, own={"value": 1})  # pandas casts NaN to True
    if source.is_float and target in (np.float32, np.float64):
        return cast(source, target.name)
    if source.physical == "int64" and target.name in INTEGER_DTYPES and narrowest(source) == source.dtype:
        same = target.name == source.dtype
        return source if same else apply("wrap", source, shared={"dtype": target.name}, dtype=target.name)
    raise where.refuse(
        name,
        f"the column holds {source.dtype}"
        + (f" (or {narrowest(source)}, by the batch)" if narrowest(source) != source.dtype else "")
        + f", which can't become {target.name} exactly",
        "Leave the column out: served features are packed as int64 and float32 anyway",
    )
