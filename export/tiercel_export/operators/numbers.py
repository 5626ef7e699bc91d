"""Operators on numbers: arithmetic, functions, comparison and logic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tiercel_serving.features.arithmetic import (
    ALWAYS_FLOAT,
    ARITHMETIC,
    COMPARISON,
    LOGIC,
    OF_FLOATS,
    OF_INTEGERS,
    computed,
    truth,
    wave,
)
from tiercel_serving.features.registers import where_all_valid
from tiercel_serving.spec import Array

from ..errors import WorkflowError
from .base import (
    OwnOperator,
    is_text,
    made,
    numbers,
    one_of,
    plain_number,
    text_objects,
)


class _OfTwo(OwnOperator):
    """Base class of binary operators on a column and a constant, or another column."""

    _operators: Any = ()

    def __init__(self, operator: str, value: Any = None, *, column: Any = None) -> None:
        super().__init__()
        kind = type(self).__name__
        self.operator = one_of(operator, self._operators, kind)
        if (value is None) == (column is None):
            raise WorkflowError(
                f"{kind}({operator!r}): expected either a constant or column=…, got "
                f"{'neither' if column is None else 'both'}; give it one of them"
            )
        self.column = column
        self.value = None if value is None else self._constant(value, f"{kind}({operator!r})")

    def _constant(self, value: Any, what: str) -> Any:
        return plain_number(value, what)

    @property
    def operand(self) -> Any:
        """The second column."""
        return self.column


class Arithmetic(_OfTwo):
    """``["price"] >> Arithmetic("*", 1.08)``, or ``["price"] >> Arithmetic("-", column="cost")``.

    Parameters
    ----------
    operator
        ``+``, ``-``, ``*``, ``/``, ``//``, ``%``, ``**``, ``min`` or ``max``, in ``column operator other``.
    value
        The other operand, if it is a constant.
    column
        The other operand, if it is a column: the name of a raw column, or a node of one column.
    swap
        Whether the other operand comes first: ``Arithmetic("/", 1, swap=True)`` is ``1 / column``.

    Notes
    -----
    Integers and booleans give int64 and wrap around on overflow. ``/`` and ``**``, and any operation with a
    float, are computed in float64. The result is null if an operand is null, and where ``//`` or ``%``
    divides by 0. ``/`` by 0 is infinite, or null for 0 / 0, as in pandas.

    Raises
    ------
    WorkflowError
        The operator is unknown, or the constant is not a number; or, at fit, a column is not numeric.
    """

    _operators = ARITHMETIC

    def __init__(self, operator: str, value: Any = None, *, column: Any = None, swap: bool = False) -> None:
        super().__init__(operator, value, column=column)
        self.swap = bool(swap)

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Compute."""
        x, valid = numbers(series, self)
        y, also = (np.array([self.value]), None) if other is None else numbers(other, self)
        dtype = compute_dtype(self.operator, x.dtype, y.dtype)
        first, second = _rows(x, dtype), _rows(y, dtype)
        answer, divides = computed(self.operator, *((second, first) if self.swap else (first, second)))
        valid = where_all_valid(valid, also)
        return made(answer[0], where_all_valid(valid, None if divides is None else divides[0]), series)


def compute_dtype(operator: str, *dtypes: Any) -> str:
    """Return the dtype in which an operator is computed for these dtypes: ``int64`` or ``float64``."""
    floats = operator in ALWAYS_FLOAT or any(np.dtype(dtype).kind == "f" for dtype in dtypes)
    return "float64" if floats else "int64"


def _rows(x: Array, dtype: str) -> Array:
    """Return ``[1, n]``, the shape in the program, since NumPy may use other instructions for another."""
    return x.astype(dtype).reshape(1, -1)


class Function(OwnOperator):
    """A function of one number: ``["price"] >> Function("sqrt")``.

    Parameters
    ----------
    function
        ``abs``, ``negative``, ``sign`` or ``square``, which keep integers as int64; or ``sqrt``, ``exp``,
        ``expm1``, ``log``, ``log1p``, ``log2``, ``log10``, ``floor``, ``ceil``, ``round`` (half to even),
        ``reciprocal``, ``sin`` or ``cos`` (of radians), which compute in float64.

    Notes
    -----
    The result is null for a null, and where the function is undefined, such as the root of -1.

    Raises
    ------
    WorkflowError
        The function is unknown; or, at fit, a column is not numeric.
    """

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = one_of(function, (*OF_INTEGERS, *OF_FLOATS), "Function")

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Compute."""
        x, valid = numbers(series, self)
        if self.function in OF_INTEGERS:
            return made(OF_INTEGERS[self.function](x), valid, series)
        return made(OF_FLOATS[self.function](_rows(x, "float64"))[0], valid, series)


class Cyclical(OwnOperator):
    """The position of a number within a period, as sine and cosine.

    ``["hour"] >> Cyclical(24)`` makes ``hour_sin`` and ``hour_cos``.

    Parameters
    ----------
    period
        The length of the period: 24 for hours, 7 for weekdays, 12 for months.

    Notes
    -----
    ``sin(2 * pi * x / period)``, computed in float64 and in this order. A null gives null. On another machine
    the last bit may differ, as with LogOp.

    Raises
    ------
    WorkflowError
        The period is not a finite number above 0; or, at fit, a column is not numeric.
    """

    suffixes = ("_sin", "_cos")

    def __init__(self, period: float) -> None:
        super().__init__()
        self.period = float(plain_number(period, "Cyclical: period"))
        if not 0 < self.period < np.inf:
            raise WorkflowError(f"Cyclical: expected a period above 0, got {period!r}")

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Compute one of the waves."""
        x, valid = numbers(series, self)
        return made(wave(suffix[1:], _rows(x, "float64"), np.array([[self.period]]))[0], valid, series)


class Compare(_OfTwo):
    """``["rating"] >> Compare(">", 3)``, or ``["device"] >> Compare("==", column="usual_device")``.

    Parameters
    ----------
    operator
        ``==``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``, in ``column operator other``.
    value, column
        As for :class:`Arithmetic`, or text, which is compared with text by code points.

    Notes
    -----
    The result is boolean and never null. As in pandas, ``!=`` is true and all other operators are false if an
    operand is null. Numbers are compared as int64, or as float64 if one is a float.

    Raises
    ------
    WorkflowError
        The operator is unknown, or the constant is neither number nor text; or, at fit, text is compared with
        numbers.
    """

    _operators = COMPARISON

    def _constant(self, value: Any, what: str) -> Any:
        return value if isinstance(value, str) else plain_number(value, what)

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Compare."""
        if isinstance(self.value, str) or (self.value is None and is_text(series)):
            x, valid = text_objects(series, self)
            y, also = ((np.array([self.value], object), None)) if other is None else text_objects(other, self)
        else:
            x, valid = numbers(series, self)
            y, also = (np.array([self.value]), None) if other is None else numbers(other, self)
            dtype = compute_dtype(self.operator, x.dtype, y.dtype)
            x, y = x.astype(dtype), y.astype(dtype)
        holds = COMPARISON[self.operator](x, y).astype(np.bool_)
        valid = where_all_valid(valid, also)
        return made(holds if valid is None else np.where(valid, holds, self.operator == "!="), None, series)


class Logic(_OfTwo):
    """``["is_new"] >> Logic("and", column="is_cheap")``.

    Parameters
    ----------
    operator
        ``and``, ``or`` or ``xor``.
    column
        The other operand: the name of a raw column, or a node of one column.

    Notes
    -----
    The result is boolean and never null. As operands, 0 and null are false, and any other number is true.

    Raises
    ------
    WorkflowError
        The operator is unknown; or, at fit, a column holds neither numbers nor booleans.
    """

    _operators = LOGIC

    def __init__(self, operator: str, *, column: Any) -> None:
        super().__init__(operator, column=column)

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Combine."""
        return made(LOGIC[self.operator](_truth(series, self), _truth(other, self)), None, series)


class Not(OwnOperator):
    """``["is_new"] >> Not()``: True where a number is 0, a boolean is False, or either is null."""

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Negate."""
        return made(~_truth(series, self), None, series)


def _truth(series: Any, operator: Any) -> Array:
    return truth(*numbers(series, operator))
