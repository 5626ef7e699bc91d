"""What an operator that can't be compiled leaves in its frame: which columns it stops, and which pass on.

Each function is ``frame(node, names, columns, stop)``: the columns that the operator is applied to, those of
its input frame, and ``stop(name)``, which gives what stands for a column that is stopped. Its own outputs
are stopped elsewhere. :data:`ANYTHING` stands for columns of whatever name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from .expressions import Columns, Expression
from .source import source_of

#: The key of a frame that may have columns of any name, each of which would be this one.
ANYTHING = ""

Stop: TypeAlias = Callable[[str], Expression]
Frame: TypeAlias = Callable[[Any, Sequence[str], Mapping[str, Expression], Stop], Columns]


def own_columns(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return nothing: it gives back the columns that it makes, and no others."""
    return {}


def named_columns(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the columns that it is applied to: LambdaOp gives back its dependencies, too, if they are."""
    return {name: stop(name) for name in names}


def hashed_frame(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the whole frame: HashBucket changes the columns that its ``num_buckets`` name."""
    buckets = node.op.num_buckets
    changed = buckets if isinstance(buckets, dict) else names
    return {name: stop(name) if name in changed else column for name, column in columns.items()}


def fewer_rows(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the whole frame, every column with rows missing."""
    return {name: stop(name) for name in columns}


def any_columns(node: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return what arbitrary Python may return: it is tried on two rows; where that fails, anything."""
    known = set(node.input_schema.column_names)
    returned = _returned(node)
    if returned is None:
        return {name: stop(name) for name in (*columns, ANYTHING)}
    return {name: stop(name) for name in (*returned, *(name for name in columns if name not in known))}


def _returned(node: Any) -> list[str] | None:
    """Return the columns that an operator gives back of a made-up frame of its input schema."""
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


#: What a lambda's source may hold, and the operator that serves it: ours, or NVTabular's.
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
#: The operators, where nothing is known of the function.
OPERATORS = (
    "DatePart, TimeDifference, Cyclical, Arithmetic, Function, Compare, Logic, Not, IsNull, IsIn, Cast, "
    "TextSlice, TextLength, TextCase, TextStrip, TextSplitCount"
)


def advice_for_lambda(op: Any, remedy: str) -> str:
    """Return what to write in place of a LambdaOp: the operators that its source asks for, or all."""
    source = source_of(getattr(op, "f", None))
    likely = [operator for pattern, operator in LIKELY if re.search(pattern, source)]
    ours = "Write it with tiercel_export.operators, which are compiled"
    if likely:
        return f"{ours}: by its source {' and '.join(likely)} (docs/operators.md). {remedy}"
    return f"{ours}: {OPERATORS} (docs/operators.md). {remedy}"
