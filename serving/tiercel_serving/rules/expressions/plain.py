"""The plain reference of expressions: one item at a time, with Python's operators and None for null."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any

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

#: The value of a column that a request leaves out.
ABSENT = object()

_OPERATORS: Mapping[str, Any] = {
    **{"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt},
    **{">=": operator.ge, "+": operator.add, "-": operator.sub, "*": operator.mul},
}


class Plain:
    """One item, one user, one request; columns by name, None for null.

    Parameters
    ----------
    item, user, request
        Column name → value; columns missing from ``request`` were not sent.
    now
        Seconds since 1970-01-01 UTC.
    """

    def __init__(
        self, item: Mapping[str, Any], user: Mapping[str, Any], request: Mapping[str, Any], now: float
    ) -> None:
        self._columns = {"item": item, "user": user, "request": request}
        self._now = now

    def passes(self, tree: Node) -> bool:
        """Whether a rule passes: it is true, or all of its conditions are absent."""
        said = self.said(tree)
        return said is True or said is ABSENT

    def said(self, node: Node) -> Any:
        """Return the truth of a condition: True, False, None (unknown) or ``ABSENT``."""
        if isinstance(node, Both | Either):
            told = [one for one in map(self.said, node.parts()) if one is not ABSENT]
            decides = isinstance(node, Either)
            if not told:
                return ABSENT
            return decides if decides in told else None if None in told else not decides
        if isinstance(node, IsNull):
            value = self.value(node.of)
            return (value is None or value is ABSENT) != node.negated
        if isinstance(node, Flag):
            return self._of([node.of], lambda flag: bool(flag) != node.negated)
        if isinstance(node, Compare):
            return self._of([node.left, node.right], _OPERATORS[node.operator])
        sides = [node.value, node.among] if isinstance(node, Within) else [*node.parts()]
        assert isinstance(node, Within | Common)
        return self._of(sides, lambda one, other: bool(_set(one) & _set(other)) != node.negated)

    def value(self, node: Node) -> Any:
        """Return a value or a list, None or ``ABSENT``."""
        if isinstance(node, Value):
            return node.value
        if isinstance(node, Values):
            return list(node.values)
        if isinstance(node, Now):
            return self._now
        if isinstance(node, Field):
            missing = ABSENT if node.owner == "request" else None
            value = self._columns[node.owner].get(node.name, missing)
            return missing if value is None else value
        if isinstance(node, Length):
            return self._of([node.of], len)
        assert isinstance(node, Arithmetic)
        return self._of([node.left, node.right], lambda left, right: _calculated(node.operator, left, right))

    def _of(self, nodes: Iterable[Node], function: Any) -> Any:
        values = [self.value(node) for node in nodes]
        if any(value is ABSENT for value in values):
            return ABSENT
        return None if any(value is None for value in values) else function(*values)


def _calculated(sign: str, left: Any, right: Any) -> float | None:
    one, other = float(left), float(right)
    if sign == "/":
        return None if other == 0 else one / other
    found: float = _OPERATORS[sign](one, other)
    return None if isnan(found) else found


def _set(value: Any) -> set[Any]:
    return {one for one in value if one is not None} if isinstance(value, list) else {value}
