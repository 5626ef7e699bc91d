"""Conditions of filters: trace a filter's function once to find the condition that it applies to each row.

The function is called with a stand-in for the data frame, which records comparisons instead of computing
them. It supports ``df["a"] > 3`` and other comparisons of columns with numbers, text or columns, ``==`` and
``!=``, ``isin``, ``between``, ``isna``, ``notna``, ``&``, ``|``, ``^`` and ``~``. The function returns the
condition or ``df[condition]``. Anything else, such as an aggregation over the frame, raises :class:`Untold`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from .expressions import INTEGER_DTYPES, REFUSED, Expression, Where, apply, combine


class Untold(Exception):
    """The function does something other than compare columns."""


@dataclass(frozen=True, eq=False)
class Condition:
    """A condition on each row.

    Parameters
    ----------
    kind
        ``compare``, ``columns``, ``in``, ``null``, ``true``, ``not``, ``and``, ``or`` or ``xor``.
    parts
        Its operands: columns, values or conditions.
    """

    kind: str
    parts: tuple[Any, ...]

    def __and__(self, other: Any) -> Condition:
        return Condition("and", (self, condition(other)))

    def __or__(self, other: Any) -> Condition:
        return Condition("or", (self, condition(other)))

    def __xor__(self, other: Any) -> Condition:
        return Condition("xor", (self, condition(other)))

    def __invert__(self) -> Condition:
        return Condition("not", (self,))

    def __bool__(self) -> bool:
        raise Untold("it branches on a comparison")

    def __getattr__(self, name: str) -> Any:
        raise Untold(f"it uses .{name} of a comparison")

    def columns(self) -> set[str]:
        """Return the names of the columns that it reads."""
        found = set()
        for part in self.parts:
            if isinstance(part, Condition):
                found |= part.columns()
            elif isinstance(part, Named):
                found.add(part.name)
        return found


@dataclass(frozen=True, eq=False)
class Named:
    """A column of the frame, as an operand of a condition."""

    name: str


class _Column:
    """A column of the stand-in frame."""

    def __init__(self, name: str) -> None:
        self._name = Named(name)

    def _compared(self, operator: str, other: Any) -> Condition:
        if isinstance(other, _Column):
            return Condition("columns", (operator, self._name, other._name))
        if not isinstance(other, (str, bool, int, float, np.bool_, np.integer, np.floating)):
            raise Untold(f"it compares {self._name.name!r} with a {type(other).__name__}")
        return Condition("compare", (operator, self._name, other))

    def __eq__(self, other: Any) -> Any:
        return self._compared("==", other)

    def __ne__(self, other: Any) -> Any:
        return ~self._compared("==", other)

    def __lt__(self, other: Any) -> Condition:
        return self._compared("<", other)

    def __le__(self, other: Any) -> Condition:
        return self._compared("<=", other)

    def __gt__(self, other: Any) -> Condition:
        return self._compared(">", other)

    def __ge__(self, other: Any) -> Condition:
        return self._compared(">=", other)

    __hash__ = None  # type: ignore[assignment]
    eq, ne, lt, le, gt, ge = __eq__, __ne__, __lt__, __le__, __gt__, __ge__

    def isna(self) -> Condition:
        return Condition("null", (self._name,))

    def notna(self) -> Condition:
        return ~self.isna()

    isnull, notnull = isna, notna

    def between(self, left: Any, right: Any) -> Condition:
        return Condition("and", (self >= left, self <= right))

    def isin(self, values: Iterable[Any]) -> Condition:
        return Condition("in", (self._name, tuple(values)))

    def _true(self) -> Condition:
        return Condition("true", (self._name,))

    def __and__(self, other: Any) -> Condition:
        return self._true().__and__(other)

    def __or__(self, other: Any) -> Condition:
        return self._true().__or__(other)

    def __xor__(self, other: Any) -> Condition:
        return self._true().__xor__(other)

    def __invert__(self) -> Condition:
        return ~self._true()

    def __bool__(self) -> bool:
        raise Untold("it branches on a column")

    def __getattr__(self, name: str) -> Any:
        raise Untold(f"it uses .{name} of a column")


class _Frame:
    """The stand-in for a data frame; ``kept`` is the condition that it was filtered by, if any."""

    def __init__(self, names: Iterable[str], kept: Condition | None = None) -> None:
        self._names, self._kept = frozenset(names), kept

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self._names or self._kept is not None:
                raise Untold(f"it asks for the column {key!r}, which it was not given")
            return _Column(key)
        if isinstance(key, (Condition, _Column)) and self._kept is None:
            return _Frame(self._names, condition(key))
        raise Untold("it chooses rows or columns in another way than by one comparison")

    def __getattr__(self, name: str) -> Any:
        if name == "loc":
            return self
        if name in self._names:
            return self[name]
        raise Untold(f"it uses .{name} of the frame")

    def reset_index(self, *, drop: bool = False) -> _Frame:
        if not drop:
            raise Untold("it adds the frame's index")
        return self


def condition(value: Any) -> Condition:
    """Return a stand-in column or a condition as a condition."""
    if isinstance(value, _Column):
        return value._true()
    if isinstance(value, Condition):
        return value
    raise Untold(f"it combines a comparison with a {type(value).__name__}")


def condition_of(function: Callable[[Any], Any], names: Iterable[str]) -> Condition:
    """Return the condition that a filter's function applies to each row.

    Parameters
    ----------
    function
        Takes a data frame and returns a boolean column, or the frame without some rows.
    names
        The columns that the frame has.

    Raises
    ------
    Untold
        The function does something other than compare columns.
    """
    try:
        answer = function(_Frame(names))
    except Untold:
        raise
    except Exception as error:
        raise Untold(f"{type(error).__name__}: {error}") from error
    if isinstance(answer, _Frame) and answer._kept is not None:
        return answer._kept
    return condition(answer)


def not_null(names: Iterable[str]) -> Condition:
    """Return the condition that none of the given columns is null."""
    return reduce(lambda a, b: a & b, [_Column(name).notna() for name in names])


# ------------------------------------------------------------------------------------------------ as columns


def lower_condition(asked: Condition, columns: Mapping[str, Expression], where: Where) -> Expression:
    """Return a condition as a boolean column."""
    if asked.kind in ("and", "or", "xor"):
        sides = [lower_condition(part, columns, where) for part in asked.parts]
        shared = {"operator": asked.kind, "compute": "bool"}
        return combine("logic", sides, shared=shared, physical="int64", dtype="bool")
    if asked.kind == "not":
        return apply("not", lower_condition(asked.parts[0], columns, where))
    if asked.kind == "columns":
        return _compared_columns(asked, columns, where)
    named = next(part for part in asked.parts if isinstance(part, Named))
    source = _source(named.name, columns, where)
    if asked.kind == "null":
        return apply("is_null", source, physical="int64", dtype="bool")
    if asked.kind == "true":
        if source.dtype != "bool":
            raise where.refuse(
                named.name,
                f"it is taken for a condition, but holds {source.dtype}",
                "Compare it with a value",
            )
        return _compared(source, "==", True)
    if asked.kind == "in":
        return _contained(source, named.name, asked.parts[1], where)
    operator, _, value = asked.parts
    if source.is_text:
        if operator != "==":
            raise where.refuse(named.name, f"text is compared by {operator}", "Compare text by == or isin")
        return _contained(source, named.name, (value,), where)
    if isinstance(value, str):
        raise where.refuse(named.name, f"{source.dtype} is compared with the text {value!r}", "Use a number")
    return _compared(source, operator, value)


def _source(name: str, columns: Mapping[str, Expression], where: Where) -> Expression:
    source = columns[name]
    if source.op == REFUSED:
        raise dict(source.own)["error"]
    if source.is_list:
        raise where.refuse(name, "it compares lists", "Compare before the lists are made, or their count")
    return source


def _compared(source: Expression, operator: str, value: Any) -> Expression:
    plain = value.item() if isinstance(value, np.generic) else value
    plain = int(plain) if isinstance(plain, bool) else plain
    # NumPy 1 compares an array with a scalar in a dtype that depends on the scalar's value.
    dtype = np.result_type(np.empty(1, source.dtype), plain)
    rounded = np.array(plain, dtype).item()
    wide = np.promote_types(dtype, np.float32 if dtype.kind == "f" else np.int64).name
    return apply(
        "compare",
        source,
        shared={"operator": operator, "compute": wide},
        own={"value": rounded},
        physical="int64",
        dtype="bool",
    )


def _compared_columns(asked: Condition, columns: Mapping[str, Expression], where: Where) -> Expression:
    operator, left, right = asked.parts
    sides = [_source(part.name, columns, where) for part in (left, right)]
    if any(side.is_text for side in sides):
        raise where.refuse(left.name, f"it is compared with the column {right.name!r} as text", "Use numbers")
    compute = np.result_type(*(np.dtype(side.physical) for side in sides)).name
    shared = {"operator": operator, "compute": compute}
    return combine("compare", sides, shared=shared, physical="int64", dtype="bool")


def _contained(source: Expression, name: str, values: tuple[Any, ...], where: Where) -> Expression:
    plain = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
    if source.is_text and all(isinstance(value, str) for value in plain):
        return apply("contained_text", source, shared={"values": plain}, physical="int64", dtype="bool")
    whole = all(type(value) is int and -(2**63) <= value < 2**63 for value in plain)
    same = whole if source.dtype in INTEGER_DTYPES else source.is_float and _floats(plain)
    if not same or not plain:
        raise where.refuse(
            name, f"{source.dtype} is looked for among {list(plain)}", "List values of the column's own type"
        )
    return apply("contained", source, shared={"values": plain}, physical="int64", dtype="bool")


def _floats(values: tuple[Any, ...]) -> bool:
    return all(type(value) is float and value == value for value in values)
