"""Operators for NVTabular graphs, in place of lambdas: NVTabular runs them, and Tiercel compiles them.

``docs/operators.md`` has a table of them. They are computed by the functions that the compiled program runs,
so that both give the same bits.
"""

from .numbers import Arithmetic, Compare, Cyclical, Function, Logic, Not
from .texts import TextCase, TextLength, TextSlice, TextSplitCount, TextStrip
from .times import DatePart, TimeDifference
from .values import Cast, IsIn, IsNull

__all__ = [
    "Arithmetic",
    "Cast",
    "Compare",
    "Cyclical",
    "DatePart",
    "Function",
    "IsIn",
    "IsNull",
    "Logic",
    "Not",
    "TextCase",
    "TextLength",
    "TextSlice",
    "TextSplitCount",
    "TextStrip",
    "TimeDifference",
]
