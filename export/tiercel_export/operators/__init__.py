"""Operators for NVTabular graphs, in place of lambdas: NVTabular runs them, and Tiercel compiles them.

``docs/operators.md`` has a table of them. They use the same functions as the compiled program, so that both
give identical results.
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
