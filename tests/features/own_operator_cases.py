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
    """Return the sum of nodes, each under names of its own."""
    for number, node in enumerate(more):
        first = first + (node >> ops.Rename(postfix=f"_{number}"))
    return first


OWN_CASES = {
    "tiercel_export.Arithmetic": [
        lambda p: added(*(NUMBERS >> Arithmetic(sign, 7) for sign in ("+", "*", "//", "%"))),
        lambda p: added(
            NUMBERS >> Arithmetic("**", 2),
            NUMBERS >> Arithmetic("/", 1, swap=True),
            NUMBERS >> Arithmetic("//", 0),
            NUMBERS >> Arithmetic("%", 5, swap=True) >> ops.FillMissing(-1),
        ),
        lambda p: added(
            *(
                ["age", "price", "flag", "same"] >> Arithmetic(sign, column="rank")
                for sign in ("-", "/", "//", "max")
            )
        ),
        lambda p: ["age", "price"] >> Arithmetic("-", column=["rank"] >> ops.LogOp()) >> ops.Normalize(),
    ],
    "tiercel_export.Function": [
        lambda p: added(
            *(NUMBERS >> Function(of) for of in ("negative", "sign")),
            ["rank", "price", "flag", "tiny"] >> Function("square"),
        ),
        lambda p: added(*(NUMBERS >> Function(of) for of in ("sqrt", "log1p", "round"))),
    ],
    "tiercel_export.Cyclical": [
        lambda p: NUMBERS >> Cyclical(24),
        lambda p: ["age", "price"] >> Cyclical(7) >> ops.Normalize(),
    ],
    "tiercel_export.Compare": [
        lambda p: added(*(NUMBERS >> Compare(sign, 1) for sign in ("==", "!=", "<", ">="))),
        lambda p: added(
            NUMBERS >> Compare(">", 0.1),
            ["city", "town"] >> Compare("==", "東京"),
            ["city", "town"] >> Compare("!=", ""),
            ["city", "town"] >> Compare("<", "b"),
            ["town"] >> Compare("==", column="city"),
            ["town"] >> Compare(">=", column="city"),
            ["price", "rank", "flag"] >> Compare("!=", column="age"),
            ["rank", "score"] >> Compare("<", column="price") >> ops.Categorify(out_path=p),
        ),
    ],
    "tiercel_export.Logic": [
        lambda p: added(
            *(["flag", "age", "void"] >> Logic(how, column="price") for how in ("and", "or", "xor"))
        )
    ],
    "tiercel_export.Not": [lambda p: NUMBERS >> Not()],
    "tiercel_export.IsNull": [lambda p: [*NUMBERS, "city", "town"] >> IsNull()],
    "tiercel_export.IsIn": [
        lambda p: added(
            NUMBERS >> IsIn([20, 1, 7, -4]),
            NUMBERS >> IsIn([0.1, 1.5, 20.0, -0.0]),
            ["city", "town"] >> IsIn(["", "東京", "a"]),
            ["city", "town"] >> IsIn("c"),
        ),
    ],
    "tiercel_export.Cast": [
        lambda p: added(
            *(NUMBERS >> Cast(dtype) for dtype in ("int32", "int64", "float32", "float64", "bool"))
        ),
        lambda p: added(
            [*NUMBERS, "city"] >> Cast("str"),
            ["age", "flag"] >> Cast("str") >> ops.Categorify(out_path=p),
            ["town", "city"] >> Cast("float64"),
            ["town", "city"] >> Cast("int64"),
        ),
        lambda p: (
            ["age", "score"] >> Cast("str") >> TextSlice(0, 2) >> Cast("float32") >> ops.FillMissing(0.0)
        ),
    ],
    "tiercel_export.DatePart": [
        lambda p: added(
            ["age", "rank", "price"] >> DatePart("year", "month", "day", "week", "is_weekend", unit="s"),
            ["age"] >> DatePart("hour", "minute", "weekday", unit="ms", zone="America/New_York"),
            ["same"] >> DatePart("dayofyear", unit="s") >> ops.Categorify(out_path=p),
        ),
        lambda p: ["age"] >> DatePart("hour", unit="us", zone="Europe/Zurich") >> Cyclical(24),
    ],
    "tiercel_export.TimeDifference": [
        lambda p: added(
            ["rank", "price"] >> TimeDifference("age", "m", of="s"),
            ["rank", "same"] >> TimeDifference("age", "s", of="ms", column_of="us"),
            ["rank"] >> TimeDifference("age", of="s") >> ops.FillMissing(0) >> ops.Clip(0, 10),
        )
    ],
    "tiercel_export.TextSlice": [
        lambda p: added(
            ["city", "town"] >> TextSlice(0, 2),
            ["city", "town"] >> TextSlice(-2),
            ["city"] >> TextSlice(None, None, -1),
            ["city", "town"] >> TextSlice(0, 1) >> ops.Categorify(out_path=p),
        ),
    ],
    "tiercel_export.TextCase": [
        lambda p: added(*(["city", "town"] >> TextCase(case) for case in ("lower", "upper", "title")))
    ],
    "tiercel_export.TextStrip": [
        lambda p: added(["city", "town"] >> TextStrip(), ["city", "town"] >> TextStrip("Zah"))
    ],
    "tiercel_export.TextLength": [lambda p: ["city", "town"] >> TextLength()],
    "tiercel_export.TextSplitCount": [
        lambda p: added(["city", "town"] >> TextSplitCount("r"), ["city", "town"] >> TextSplitCount("東"))
    ],
}
