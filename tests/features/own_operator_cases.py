"""Graphs of the operators of ``tiercel_export.operators``, for the parity test of each table entry.

Columns are those of ``test_feature_operators.FIT``.
"""

from __future__ import annotations

from nvtabular import ops

from tiercel_export.operators import (
    Arithmetic,
    Cast,
    Compare,
    Cyclical,
    DatePart,
    Function,
    IsIn,
    IsNull,
    Logic,
    Not,
    TextCase,
    TextLength,
    TextSlice,
    TextSplitCount,
    TextStrip,
    TimeDifference,
)

NUMBERS = ["age", "rank", "price", "score", "flag", "tiny", "count", "void"]


def added(first, *more):
    """Return the sum of nodes, each with distinct column names."""
    for number, node in enumerate(more):
        first = first + (node >> ops.Rename(postfix=f"_{number}"))
    return first


OWN_CASES = {
    "tiercel_export.Arithmetic": [
        lambda p: added(
            *(NUMBERS >> Arithmetic(sign, 7) for sign in ("+", "//")),
            ["age", "price", "score"] >> Arithmetic("**", 2),
            ["price", "flag"] >> Arithmetic("/", 1, swap=True),
            ["age", "price"] >> Arithmetic("%", 0),
            ["rank"] >> Arithmetic("%", 5, swap=True) >> ops.FillMissing(-1),
        ),
        lambda p: added(
            *(
                ["age", "price", "flag", "same"] >> Arithmetic(sign, column="rank")
                for sign in ("-", "//", "max")
            ),
            ["age", "price"] >> Arithmetic("-", column=["rank"] >> ops.LogOp()) >> ops.Normalize(),
        ),
    ],
    "tiercel_export.Function": [
        lambda p: added(
            *(["age", "price", "flag"] >> Function(of) for of in ("negative", "sign", "log1p", "round")),
            ["rank", "price", "flag", "tiny"] >> Function("square"),
        ),
    ],
    "tiercel_export.Cyclical": [lambda p: NUMBERS >> Cyclical(24) >> ops.Normalize()],
    "tiercel_export.Compare": [
        lambda p: added(
            *(NUMBERS >> Compare(sign, 1) for sign in ("!=", ">=")),
            ["city", "town"] >> Compare("==", "東京"),
            ["city", "town"] >> Compare("!=", ""),
            ["town"] >> Compare(">=", column="city"),
            ["rank", "score"] >> Compare("<", column="price") >> ops.Categorify(out_path=p),
        ),
    ],
    "tiercel_export.Logic": [
        lambda p: added(*(["flag", "age", "void"] >> Logic(how, column="price") for how in ("and", "xor")))
    ],
    "tiercel_export.Not": [lambda p: NUMBERS >> Not()],
    "tiercel_export.IsNull": [lambda p: [*NUMBERS, "city", "town"] >> IsNull()],
    "tiercel_export.IsIn": [
        lambda p: added(
            NUMBERS >> IsIn([20, 1, 7, -4]),
            NUMBERS >> IsIn([0.1, 1.5, 20.0, -0.0]),
            ["city", "town"] >> IsIn(["", "東京", "a"]),
        ),
    ],
    "tiercel_export.Cast": [
        lambda p: added(
            *(NUMBERS >> Cast(dtype) for dtype in ("int32", "float32", "bool")),
            [*NUMBERS, "city"] >> Cast("str"),
            ["town"] >> Cast("int64"),
            ["age", "score"] >> Cast("str") >> TextSlice(0, 2) >> Cast("float32") >> ops.FillMissing(0.0),
        ),
    ],
    "tiercel_export.DatePart": [
        lambda p: added(
            ["age", "rank", "price"] >> DatePart("year", "month", "is_weekend", unit="s"),
            ["age"] >> DatePart("hour", unit="ms", zone="Europe/Zurich") >> Cyclical(24),
            ["same"] >> DatePart("dayofyear", unit="s") >> ops.Categorify(out_path=p),
        ),
    ],
    "tiercel_export.TimeDifference": [
        lambda p: added(
            ["rank", "price"] >> TimeDifference("age", "m", of="s"),
            ["rank", "same"] >> TimeDifference("age", "s", of="ms", column_of="us") >> ops.FillMissing(0),
        )
    ],
    "tiercel_export.TextSlice": [
        lambda p: added(
            ["city", "town"] >> TextSlice(-2),
            ["city"] >> TextSlice(None, None, -1),
            ["city", "town"] >> TextSlice(0, 1) >> ops.Categorify(out_path=p),
        ),
    ],
    "tiercel_export.TextCase": [lambda p: ["city", "town"] >> TextCase("upper")],
    "tiercel_export.TextStrip": [
        lambda p: added(["city", "town"] >> TextStrip(), ["city"] >> TextStrip("Zah"))
    ],
    "tiercel_export.TextLength": [lambda p: ["city", "town"] >> TextLength()],
    "tiercel_export.TextSplitCount": [lambda p: ["city", "town"] >> TextSplitCount("r")],
}
