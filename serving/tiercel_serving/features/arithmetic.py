"""The steps that compute with numbers: arithmetic, functions, comparison, logic, casts.

Integers and booleans are computed in int64, which wraps on overflow as in NumPy. With a float operand,
float64 is used. ``operator`` and ``function`` are names of NumPy's operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..spec import Array
from .registers import Columns, Elementwise, Register, Registers, nan_where_null, where_all_valid

#: Arithmetic on two operands.
ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "//": np.floor_divide,
    "%": np.remainder,
    "**": np.power,
    "min": np.minimum,
    "max": np.maximum,
}
#: Operators whose result is always float64.
ALWAYS_FLOAT = ("/", "**")
#: Operators whose result is null for a divisor of 0.
DIVIDING = ("//", "%")

COMPARISON: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}

LOGIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}

#: Functions of one number that keep integers, and functions that return float64.
OF_INTEGERS: Mapping[str, Callable[[Any], Any]] = {
    "abs": np.abs,
    "negative": np.negative,
    "sign": np.sign,
    "square": np.square,
}
OF_FLOATS: Mapping[str, Callable[[Any], Any]] = {
    "sqrt": np.sqrt,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "log10": np.log10,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "reciprocal": np.reciprocal,
    "sin": np.sin,
    "cos": np.cos,
}
WAVES: Mapping[str, Callable[[Any], Any]] = {"sin": np.sin, "cos": np.cos}


def computed(operator: str, x: Array, y: Array) -> tuple[Array, Array | None]:
    """Return ``x operator y`` for two arrays of one dtype, and which results are valid; None means all.

    Parameters
    ----------
    operator
        A key of :data:`ARITHMETIC`.
    x, y
        Both int64 or both float64, with shapes that broadcast.
    """
    if operator not in DIVIDING:
        return ARITHMETIC[operator](x, y), None
    divides = y != 0
    if divides.all():
        return ARITHMETIC[operator](x, y), None
    answer = ARITHMETIC[operator](x, np.where(divides, y, 1))
    return answer, np.broadcast_to(divides, answer.shape)


def wave(function: str, x: Array, period: Any) -> Array:
    """Return the sine or cosine of ``2 * pi * x / period`` in float64, evaluated from left to right."""
    return np.asarray(WAVES[function](2.0 * np.pi * x / period))


def whole(x: Array, dtype: npt.DTypeLike) -> tuple[npt.NDArray[np.int64], Array | None]:
    """Return numbers as int64, rounded towards zero, and which ones ``dtype`` can hold; None means all."""
    limits = np.iinfo(dtype)
    if x.dtype.kind != "f":
        held = (x >= limits.min) & (x <= limits.max)
        return x, None if held.all() else held
    x = np.trunc(x)
    # The largest int64 has no exact float64, but the bound above it, 2**63, has.
    held = (x >= float(limits.min)) & (x < float(limits.max) + 1 if limits.bits < 64 else x < 2.0**63)
    return np.where(held, x, 0).astype(np.int64), None if held.all() else held


class _OfTwo:
    """Base of the steps on columns and a constant, or on two columns, depending on ``in``.

    The constant of each column is in the array ``value [C, 1]``, or it is the text ``text``. ``swap`` makes
    it the first operand.
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._in: Any = step["in"]
        self._operator: str = step["operator"]
        self._dtype = np.dtype(step["compute"])
        self._swap: bool = step.get("swap", False)
        self._value: Any = arrays.get("value")
        if "text" in step:
            self._value = np.empty((1, 1), np.object_)
            self._value[0, 0] = step["text"].encode("utf-8", "surrogatepass")

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Compute :meth:`apply` on both operands."""
        if isinstance(self._in, int):
            offsets = registers[self._in].offsets
            x, valid = self._operand(registers[self._in], slice(None))
            y = self._value
            x, y = (y, x) if self._swap else (x, y)
        else:
            (first, row), (second, other) = self._in
            offsets = registers[first].offsets
            x, valid = self._operand(registers[first], slice(row, row + 1))
            y, also = self._operand(registers[second], slice(other, other + 1))
            valid = where_all_valid(valid, also)
        return Register(*self.apply(x, y, valid), offsets)

    def _operand(self, register: Register, rows: slice) -> tuple[Array, Array | None]:
        x = register.x[rows]
        if x.dtype.kind == "f":
            real = ~np.isnan(x)
            return x.astype(self._dtype, copy=False), None if real.all() else real
        valid = None if register.valid is None else register.valid[rows]
        if x.dtype == np.object_:
            return (x if valid is None else np.where(valid, x, b"")), valid
        return x.astype(self._dtype, copy=False), valid

    def apply(self, x: Array, y: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Return ``x operator y``, and which results are valid."""
        raise NotImplementedError


class Compute(_OfTwo):
    """Arithmetic; null if an operand is null, or if ``//`` or ``%`` divides by 0."""

    def apply(self, x: Array, y: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compute."""
        answer, divides = computed(self._operator, x, y)
        valid = where_all_valid(valid, divides)
        if answer.dtype.kind == "f":
            return nan_where_null(answer, valid), None
        return answer, valid


class Compare(_OfTwo):
    """Comparison as 0 and 1; with a null operand only ``!=`` holds."""

    def apply(self, x: Array, y: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compare."""
        holds = COMPARISON[self._operator](x, y)
        if valid is not None:
            holds = np.where(valid, holds, self._operator == "!=")
        return holds.astype(np.int64), None


class Logic(_OfTwo):
    """``and``, ``or`` and ``xor`` as 0 and 1; 0 and null are false."""

    def apply(self, x: Array, y: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Combine."""
        return LOGIC[self._operator](x, y).astype(np.int64), None

    def _operand(self, register: Register, rows: slice) -> tuple[Array, Array | None]:
        return truth(register.x[rows], None if register.valid is None else register.valid[rows]), None


def truth(x: Array, valid: Array | None) -> Array:
    """Return which numbers are true, that is not 0 and not null."""
    holds = x != 0
    if x.dtype.kind == "f":
        return np.asarray(holds & ~np.isnan(x))
    return holds if valid is None else np.asarray(holds & valid)


class Not(Elementwise):
    """``not`` as 0 and 1; a null is false, so the result is 1."""

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Negate."""
        return (~truth(x, valid)).astype(np.int64), None


class Function(Elementwise):
    """A function of one number; null for a null."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        name: str = step["function"]
        self._call = OF_INTEGERS[name] if name in OF_INTEGERS else OF_FLOATS[name]
        self._dtype = np.dtype(step["compute"])

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compute."""
        y = self._call(x.astype(self._dtype, copy=False))
        return (nan_where_null(y, valid), None) if self._dtype.kind == "f" else (y, valid)


class Wave(Elementwise):
    """:func:`wave` with a period for each column; null for a null."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._call = partial(wave, step["function"])
        self._period = arrays["period"]

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compute."""
        return nan_where_null(self._call(x.astype(np.float64, copy=False), self._period), valid), None


class ToWhole(Elementwise):
    """Numbers as int64, rounded towards zero; null for a number that the step's dtype can't hold."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._dtype = np.dtype(step["dtype"])

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Round."""
        y, held = whole(x, self._dtype)
        return y, where_all_valid(valid, held)


class ToTruth(Elementwise):
    """Numbers as booleans: 0 for 0 and 1 for any other; a null stays null."""

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compare with 0."""
        if x.dtype.kind == "f":
            real = ~np.isnan(x)
            valid = None if real.all() else real
        return (x != 0).astype(np.int64), valid
