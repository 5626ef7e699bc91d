"""Type checks of expressions, and inference of the types of request columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ...columns import Column
from ...problems import Problem, choose
from ...spec import Array
from .tree import (
    Arithmetic,
    Both,
    Common,
    Compare,
    Either,
    Field,
    Flag,
    IsNull,
    Length,
    Node,
    Now,
    Value,
    Values,
    Within,
)

NUMBERS = ("int64", "float64")


class Type(NamedTuple):
    """The type of a column: ``bool``, ``int64``, ``float64`` or ``bytes`` (text), or lists of these."""

    dtype: str
    is_list: bool = False

    def __str__(self) -> str:
        what = {"bool": "booleans", "bytes": "text"}.get(self.dtype, "numbers")
        return f"lists of {what}" if self.is_list else what


def type_of_dtype(dtype: str, is_list: bool) -> Type:
    """Return the type of a column from its dtype's name; widths of numbers are ignored."""
    kind = np.dtype(object if dtype == "bytes" else dtype).kind
    return Type({"b": "bool", "i": "int64", "u": "int64", "f": "float64"}.get(kind, "bytes"), is_list)


def type_of(column: Column) -> Type:
    """Return the type of a raw column."""
    return type_of_dtype(
        "bytes" if column.values.dtype == np.object_ else str(column.values.dtype), column.is_list
    )


class Schema:
    """The columns that an expression may read, and the inferred types of request columns.

    Parameters
    ----------
    items, users
        Types by column name; None if they are unknown, which accepts any column.
    requests
        Types of request columns that are known without the expression.

    Attributes
    ----------
    requests : dict of str to Type
        Those, and inferred types: a column that is compared gets the other side's type, and one used in
        arithmetic is a float.
    """

    def __init__(
        self,
        items: Mapping[str, Type] | None,
        users: Mapping[str, Type] | None = None,
        requests: Mapping[str, Type] | None = None,
    ) -> None:
        self._known = {"item": items, "user": users}
        self.requests: dict[str, Type] = dict(requests or {})

    def problems(self, tree: Node) -> list[Problem]:
        """Return unknown columns and type errors, and infer the types of request columns."""
        fields = [node for node in tree.walk() if isinstance(node, Field)]
        wrong = [problem for field in dict.fromkeys(fields) if (problem := self._unknown(field)) is not None]
        if wrong:
            return wrong
        # Two passes: a condition may need a type that a later one lets us infer.
        list(self._misfits(tree))
        wrong = list(self._misfits(tree))
        unsaid = [f for f in dict.fromkeys(fields) if f.owner == "request" and f.name not in self.requests]
        if not wrong and self._known["user"] is not None:
            wrong += [
                Problem(
                    "expression", f"nothing says what {f} holds", "compare it with a column or a constant"
                )
                for f in unsaid
            ]
        return wrong

    def type_of(self, node: Node) -> Type | None:
        """Return the type of a value or list; None if it is unknown."""
        if isinstance(node, Field):
            known = self.requests if node.owner == "request" else self._known[node.owner]
            return None if known is None else known.get(node.name)
        if isinstance(node, Value):
            return _type_of_constants([node.value])
        if isinstance(node, Values):
            found = _type_of_constants(node.values)
            return None if found is None else Type(found.dtype, True)
        return Type("int64") if isinstance(node, Length) else Type("float64")

    def _unknown(self, field: Field) -> Problem | None:
        if field.owner == "request":
            users = self._known["user"] or {}
            if field.name in users and field.name not in self.requests:
                problem = f"{field}: {field.name!r} is a column of the users"
                return Problem(
                    "expression", problem, f"write user.{field.name}: a value that is sent overrides it"
                )
            return None
        known = self._known[field.owner]
        if known is None or field.name in known:
            return None
        problem = f"{field}: the {field.owner}s have no column {field.name!r}"
        return Problem("expression", problem, choose(field.name, known))

    def _misfits(self, node: Node) -> Iterator[Problem]:
        if isinstance(node, Both | Either):
            for part in node.parts():
                yield from self._misfits(part)
        elif isinstance(node, Compare):
            yield from self._operand(node.left)
            yield from self._operand(node.right)
            yield from self._pair(node.operator, node.left, node.right, (False, False))
        elif isinstance(node, Within):
            yield from self._operand(node.value)
            yield from self._pair("in", node.value, node.among, (False, True))
        elif isinstance(node, Common):
            yield from self._pair("any", node.left, node.right, (True, True))
        elif isinstance(node, Flag):
            yield from self._must_be(node.of, Type("bool"))
        else:
            assert isinstance(node, IsNull)

    def _operand(self, node: Node) -> Iterator[Problem]:
        if isinstance(node, Arithmetic):
            for part in (node.left, node.right):
                yield from self._operand(part)
                yield from self._must_be(part, Type("float64"))
        elif isinstance(node, Length):
            found = self.type_of(node.of)
            if found is not None and not found.is_list:
                yield Problem(
                    "expression", f"len() of {node.of}, which holds {found}", "give it a list column"
                )

    def _must_be(self, node: Node, wanted: Type) -> Iterator[Problem]:
        found = self.type_of(node)
        if found is None:
            self._infer(node, wanted)
        elif not _alike(found, wanted):
            use = "calculated with" if wanted.dtype != "bool" else "a condition"
            remedy = "use a column of numbers" if wanted.dtype != "bool" else "compare it with something"
            yield Problem("expression", f"{_said(node)} holds {found}, and can't be {use}", remedy)

    def _pair(self, operator: str, left: Node, right: Node, lists: tuple[bool, bool]) -> Iterator[Problem]:
        found = [self.type_of(left), self.type_of(right)]
        for node, one, is_list in zip((left, right), found, lists, strict=True):
            if one is not None and one.is_list != is_list:
                what = "a list" if is_list else "one value"
                remedy = (
                    "use any(…, …) for two lists, in for a value and a list, == and the like for two values"
                )
                problem = f"{operator} needs {what} where {_said(node)} holds {one}"
                yield Problem("expression", problem, remedy)
                return
        for node, own, other, is_list in (
            (left, found[0], found[1], lists[0]),
            (right, found[1], found[0], lists[1]),
        ):
            if own is None and other is not None:
                self._infer(node, Type(other.dtype, is_list))
        one, other = found
        if one is not None and other is not None and not _alike(one, other):
            problem = f"{_said(left)} holds {found[0]}, and {_said(right)} {found[1]}"
            yield Problem("expression", problem, "compare what is of one type")
        elif operator in ("<", "<=", ">", ">=") and Type("bool") in found:
            yield Problem(
                "expression", f"{operator} between booleans", "use == or !=, or the column by itself"
            )

    def _infer(self, node: Node, wanted: Type) -> None:
        if isinstance(node, Field) and node.owner == "request":
            self.requests[node.name] = wanted


def _alike(one: Type, other: Type) -> bool:
    return one.dtype == other.dtype or (one.dtype in NUMBERS and other.dtype in NUMBERS)


def _type_of_constants(values: Sequence[object]) -> Type | None:
    """Return the type of constants, or None for no constants; :func:`mixed` reports mixed types."""
    kinds = {bool: "bool", int: "int64", float: "float64", str: "bytes"}
    found = list(dict.fromkeys(kinds[type(value)] for value in values))
    if not found or (len(found) > 1 and set(found) <= set(NUMBERS)):
        return Type("float64") if found else None
    return Type(found[0])


def mixed(tree: Node) -> list[Problem]:
    """Return a problem for each list of constants of mixed types."""
    wrong = []
    for node in tree.walk():
        if isinstance(node, Values):
            types = {str(_type_of_constants([value])) for value in node.values}
            if len(types) > 1:
                remedy = "list values of one type"
                wrong.append(
                    Problem("expression", f"{node.values!r} holds {' and '.join(sorted(types))}", remedy)
                )
    return wrong


def _said(node: Node) -> str:
    if isinstance(node, Field):
        return str(node)
    if isinstance(node, Value):
        return repr(node.value)
    if isinstance(node, Values):
        return repr(node.values)
    return "now" if isinstance(node, Now) else "what is calculated"


def stored(value: object) -> object:
    """Return a constant as columns store it: text as ``bytes``."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def constant_array(values: Sequence[object]) -> Array:
    """Return constants of one type as a column's array."""
    found = _type_of_constants(values)
    if found is None or found.dtype != "bytes":
        return np.array(values, found and found.dtype)
    out = np.empty(len(values), np.object_)
    out[:] = [stored(value) for value in values]
    return out
