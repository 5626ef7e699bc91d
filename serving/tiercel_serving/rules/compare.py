"""``compare``: an item passes if ``column operator value`` holds for its raw column."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..problems import Problem, choose

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SETS = ("in", "not in")


class Compare(Settings, frozen=True, tag="compare"):
    """Keep an item only if ``column operator value`` holds for its raw item column.

    A null in the column fails every rule. For a list column, ``in`` and ``not in`` test whether any element
    of the row is among the values.

    Parameters
    ----------
    name
        Its name in ``--explain``.
    column
        A raw item column.
    operator
        One of ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in``, ``not in``.
    value
        A number or text; several for ``in`` and ``not in``.
    """

    name: str
    column: str
    operator: str
    value: Any

    OPERATORS: ClassVar[tuple[str, ...]] = (*_COMPARISONS, *_SETS)

    @property
    def reason(self) -> str:
        """Text of why an item that fails the rule was dropped."""
        return f"not {self.column} {self.operator} {json.dumps(_listed(self.value), ensure_ascii=False)}"

    def problems(self) -> list[Problem]:
        """Return an unknown operator, or a value that it can't take."""
        if self.operator not in self.OPERATORS:
            problem = f"the rule {self.name!r} has no known operator: {self.operator!r}"
            return [Problem("operator", problem, choose(self.operator, self.OPERATORS))]
        several = isinstance(self.value, list | tuple | set | frozenset)
        if self.operator in _SETS and not several:
            problem = f"the rule {self.name!r} compares by {self.operator!r} with {self.value!r}"
            return [Problem("value", problem, "give a tuple of values")]
        values = _listed(self.value) if several else [_listed(self.value)]
        odd = [value for value in values if not _can_be_kept(value)]
        if odd or (several and self.operator not in _SETS):
            problem = f"the rule {self.name!r} compares by {self.operator!r} with {self.value!r}"
            return [Problem("value", problem, "give a number or text (several for in and not in)")]
        return []

    def columns(self) -> tuple[str, ...]:
        """Return the one column that it reads."""
        return (self.column,)

    def misfits(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return an operator or a value that does not fit the column's type."""
        column = columns[self.column]
        text = column.values.dtype == np.object_
        holds = ("lists of " if column.is_list else "") + ("strings" if text else "numbers")
        about = f"the rule {self.name!r} compares {self.column!r}, which holds {holds}"
        if column.is_list and self.operator not in _SETS:
            return [Problem("operator", about, "use 'in' or 'not in', or a column with one value an item")]
        values = _listed(self.value)
        wrong = [v for v in (values if isinstance(values, list) else [values]) if isinstance(v, str) != text]
        if wrong:
            return [Problem("value", f"{about}, with {wrong[0]!r}", "give a value of the column's type")]
        return []

    def passes(self, columns: Mapping[str, Column]) -> npt.NDArray[np.bool_]:
        """Return ``[n]``: for which items the comparison holds; False for nulls."""
        column = columns[self.column]
        negated = self.operator == "not in"
        values = column.values
        if self.operator in _SETS:
            holds = np.zeros(len(values), np.bool_)
            for value in _listed(self.value):
                holds |= np.asarray(values == _stored(value), np.bool_)
        else:
            if values.dtype == np.object_ and column.valid is not None:
                # The value at a null's place is arbitrary, and may not be comparable with bytes.
                values = np.where(column.valid, values, b"")
            holds = np.asarray(_COMPARISONS[self.operator](values, _stored(self.value)), np.bool_)
        valid = np.ones(len(column.values), np.bool_) if column.valid is None else column.valid.copy()
        if column.values.dtype.kind == "f":
            valid &= ~np.isnan(column.values)
        if column.offsets is None:
            return (holds ^ negated) & valid
        counts = np.concatenate([[0], np.cumsum(holds & valid)])
        found = counts[column.offsets[1:]] > counts[column.offsets[:-1]]
        row_valid = True if column.row_valid is None else column.row_valid
        return np.asarray((found ^ negated) & row_valid, np.bool_)

    def reference(self, item: Mapping[str, Any]) -> bool:
        """Return whether one item passes."""
        value = item[self.column]
        if value is None:
            return False
        if self.operator in _SETS:
            elements = value if isinstance(value, list) else [value]
            return any(element in self.value for element in elements) == (self.operator == "in")
        return bool(_COMPARISONS[self.operator](value, self.value))


def _can_be_kept(value: Any) -> bool:
    """Whether JSON can hold a value: text without lone surrogates, a boolean, a finite number."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return isinstance(value, bool | int) or (isinstance(value, float) and bool(np.isfinite(value)))


def _listed(value: Any) -> Any:
    """Return several values as a list; NumPy scalars become Python numbers, which JSON can hold."""
    if isinstance(value, list | tuple | set | frozenset):
        return [_listed(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _stored(value: Any) -> Any:
    """Return a value as columns store it: text as ``bytes``."""
    return value.encode() if isinstance(value, str) else value
