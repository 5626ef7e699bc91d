"""The output frame of an operator that can't be compiled: which columns it blocks, and which pass through.

Each function is ``frame(node, names, columns, stop)``. ``names`` are the columns that the operator is applied
to, ``columns`` those of its input frame, and ``stop(name)`` returns the placeholder of a blocked column. The
operator's own outputs are blocked elsewhere. :data:`ANYTHING` stands for columns of unknown names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from .expressions import Columns, Expression
from .source import source_of

#: Key in a frame that may have columns of any name; its value is the placeholder for all of them.
ANYTHING = ""

Stop: TypeAlias = Callable[[str], Expression]
Frame: TypeAlias = Callable[[Any, Sequence[str], Mapping[str, Expression], Stop], Columns]


def own_columns(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return no columns, because the operator returns only its own outputs."""
    return {}


def named_columns(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the columns that it is applied to, which LambdaOp returns too, dependencies included."""
    return {name: stop(name) for name in names}


def hashed_frame(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the whole frame, with the columns blocked that HashBucket hashes."""
    buckets = node.op.num_buckets
    changed = buckets if isinstance(buckets, dict) else names
    return {name: stop(name) if name in changed else column for name, column in columns.items()}


def fewer_rows(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the whole frame with every column blocked, because rows are missing."""
    return {name: stop(name) for name in columns}


def any_columns(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the columns that a trial on two made-up rows returns; if the trial fails, :data:`ANYTHING`."""
    known = set(node.input_schema.column_names)
    returned = _returned(node)
    if returned is None:
        return {name: stop(name) for name in (*columns, ANYTHING)}
    return {name: stop(name) for name in (*returned, *(name for name in columns if name not in known))}


def _returned(node: Any) -> list[str] | None:
    """Return an operator's output columns for a made-up frame of its input schema; None if it fails."""
    import pandas as pd

    frame = {}
    for column in node.input_schema:
        dtype = None if column.dtype.name == "unknown" else column.dtype.without_shape.to_numpy
        value = "a" if dtype is None or dtype.kind in "OUS" else dtype.type(1)
        frame[column.name] = [[value]] * 2 if column.is_list else [value] * 2
    try:
        selector = node.input_columns.resolve(node.input_schema)
        return [str(name) for name in node.op.transform(selector, pd.DataFrame(frame))]
    except Exception:
        return None


#: Pattern in a lambda's source → the operator of Tiercel or NVTabular that can replace it.
LIKELY: Sequence[tuple[str, str]] = (
    (r"\.dt\.(?:days|total_seconds)|timedelta", "TimeDifference(column=…)"),
    (r"\.dt\.(?!days|total_seconds)|to_datetime", "DatePart(…)"),
    (r"\bsin\(|\bcos\(", "Cyclical(period)"),
    (r"\.str\.split\(.*(?:len|count)\(|\.str\.count\(", "TextSplitCount(separator)"),
    (r"\.str\.slice\(|\.str\[|\.str\.get\(", "TextSlice(start, stop)"),
    (r"\.str\.len\(", "TextLength()"),
    (r"\.str\.(?:lower|upper|title|capitalize|casefold)\(", "TextCase(case)"),
    (r"\.str\.strip\(", "TextStrip()"),
    (r"\.isin\(", "IsIn(values)"),
    (r"\.(?:isna|isnull|notna|notnull)\(", "IsNull()"),
    (r"\.fillna\(", "nvtabular.ops.FillMissing(value)"),
    (r"\.clip\(", "nvtabular.ops.Clip(low, high)"),
    (r"\b(?:sqrt|exp|log|log1p|log2|log10|abs|floor|ceil|round)\(", "Function(name)"),
    (r"(?:==|!=|<=|>=|(?<![-<>])[<>](?![<>]))", "Compare(operator, value)"),
    (r"\.astype\(", "Cast(dtype)"),
    (r"\s[-+*/%]\s|\*\*|//", "Arithmetic(operator, value)"),
    (r"\s[&|]\s", "Logic(operator, column=…)"),
)
#: All operators, for a function whose source is unknown or matches no pattern.
OPERATORS = (
    "DatePart, TimeDifference, Cyclical, Arithmetic, Function, Compare, Logic, Not, IsNull, IsIn, Cast, "
    "TextSlice, TextLength, TextCase, TextStrip, TextSplitCount"
)


def advice_for_lambda(op: Any, remedy: str) -> str:
    """Return advice for replacing a LambdaOp: the operators that its source suggests, or all of them."""
    source = source_of(getattr(op, "f", None))
    likely = [operator for pattern, operator in LIKELY if re.search(pattern, source)]
    ours = "Write it with tiercel_export.operators, which are compiled"
    if likely:
        return f"{ours}: by its source {' and '.join(likely)} (docs/operators.md). {remedy}"
    return f"{ours}: {OPERATORS} (docs/operators.md). {remedy}"
