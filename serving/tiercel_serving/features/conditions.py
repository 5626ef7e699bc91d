"""The steps of conditions, which filters of a session's events are made of: 0 and 1, never null.

A null compares as NaN does: it is equal to nothing, and neither below nor above anything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..spec import Array
from .registers import Columns, Elementwise, Register, Registers

#: Comparisons by the name that they have in the artefact; what is unequal is ``not`` of ``==``.
COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _flags(true: Any, valid: Array | None) -> Array:
    flags: Array = np.asarray(true if valid is None else true & valid).astype(np.int64)
    return flags


class CompareValue(Elementwise):
    """A column compared with a number, in the dtype in which NumPy 1 compares an array and a scalar."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._compare, self._value = COMPARISONS[step["operator"]], arrays["value"]

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compare."""
        return _flags(self._compare(x, self._value), valid), None


class CompareColumns:
    """Two columns compared with each other."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._compare = COMPARISONS[step["operator"]]
        self._left, self._right = step["in"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Compare: ``[1, m]``."""
        (left, of_left), (right, of_right) = (
            (registers[number], slice(row, row + 1)) for number, row in (self._left, self._right)
        )
        flags = _flags(self._compare(left.x[of_left], right.x[of_right]), None)
        for register, row in ((left, of_left), (right, of_right)):
            if register.valid is not None:
                flags = flags & register.valid[row]
        return Register(flags, None, left.offsets)


class Contained(Elementwise):
    """Whether a number is one of some."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._values = arrays["values"]

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Look each up."""
        return _flags(np.isin(x, self._values), valid), None


class ContainedText(Elementwise):
    """Whether a text is one of some."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._values = [value.encode("utf-8", "surrogatepass") for value in step["values"]]

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compare with each."""
        found = np.zeros(x.shape, np.bool_)
        for value in self._values:
            found |= (x == value).astype(np.bool_)
        return _flags(found, valid), None


class Both:
    """Whether two conditions hold; with ``operator`` ``or``, one of them; with ``xor``, one alone."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._combine = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}[step["operator"]]
        self._left, self._right = step["in"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Combine: ``[1, m]``."""
        (left, of_left), (right, of_right) = self._left, self._right
        x = self._combine(
            registers[left].x[of_left : of_left + 1], registers[right].x[of_right : of_right + 1]
        )
        return Register(x, None, registers[left].offsets)
