"""The nodes of an expression tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

Constant = bool | int | float | str
Owner = Literal["item", "user", "request"]


@dataclass(frozen=True)
class Node:
    """One node of an expression tree."""

    def parts(self) -> Iterator[Node]:
        """Yield the node's children."""
        for field in fields(self):
            value = getattr(self, field.name)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, Node):
                    yield one

    def walk(self) -> Iterator[Node]:
        """Yield the node and all of its descendants."""
        yield self
        for part in self.parts():
            yield from part.walk()


@dataclass(frozen=True)
class Value(Node):
    """A constant."""

    value: Constant


@dataclass(frozen=True)
class Values(Node):
    """Several constants."""

    values: tuple[Constant, ...]


@dataclass(frozen=True)
class Field(Node):
    """A column of the item, the user or the request."""

    owner: Owner
    name: str

    def __str__(self) -> str:
        written = f".{self.name}" if self.name.isidentifier() else f"[{self.name!r}]"
        return self.owner + written


@dataclass(frozen=True)
class Now(Node):
    """The time of the request, in seconds since 1970-01-01 UTC."""


@dataclass(frozen=True)
class Arithmetic(Node):
    """``left operator right``, with an operator of ``+ - * /``."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Length(Node):
    """The length of a list."""

    of: Node


@dataclass(frozen=True)
class Compare(Node):
    """``left operator right``, with an operator of ``== != < <= > >=``."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Within(Node):
    """Whether a list contains a value (``in``), or not (``not in``)."""

    value: Node
    among: Node
    negated: bool


@dataclass(frozen=True)
class Common(Node):
    """Whether two lists have an element in common (``any``), or, negated, none."""

    left: Node
    right: Node
    negated: bool


@dataclass(frozen=True)
class IsNull(Node):
    """Whether a column is null, or not."""

    of: Field
    negated: bool


@dataclass(frozen=True)
class Flag(Node):
    """A column of booleans, or its negation."""

    of: Field
    negated: bool


@dataclass(frozen=True)
class Both(Node):
    """The conjunction of the parts."""

    all: tuple[Node, ...]


@dataclass(frozen=True)
class Either(Node):
    """The disjunction of the parts."""

    any: tuple[Node, ...]


_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


def opposite(node: Node) -> Node:
    """Return the negation of a condition; on a null, neither the condition nor its negation holds.

    De Morgan's laws push the negation down to single conditions, so that only truth must be computed.
    """
    if isinstance(node, Compare):
        return Compare(_OPPOSITE[node.operator], node.left, node.right)
    if isinstance(node, Within):
        return Within(node.value, node.among, not node.negated)
    if isinstance(node, Common):
        return Common(node.left, node.right, not node.negated)
    if isinstance(node, IsNull):
        return IsNull(node.of, not node.negated)
    if isinstance(node, Flag):
        return Flag(node.of, not node.negated)
    if isinstance(node, Both):
        return Either(tuple(map(opposite, node.all)))
    if isinstance(node, Either):
        return Both(tuple(map(opposite, node.any)))
    raise TypeError(f"{node!r} is not a condition")
