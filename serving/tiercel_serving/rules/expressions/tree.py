"""What an expression is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

Constant = bool | int | float | str
Owner = Literal["item", "user", "request"]


@dataclass(frozen=True)
class Node:
    """One part of an expression."""

    def parts(self) -> Iterator[Node]:
        """Yield the nodes that it is directly made of."""
        for field in fields(self):
            value = getattr(self, field.name)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, Node):
                    yield one

    def walk(self) -> Iterator[Node]:
        """Yield itself and everything within it."""
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
    """``left operator right``, operator being one of ``+ - * /``."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Length(Node):
    """How long a list is."""

    of: Node


@dataclass(frozen=True)
class Compare(Node):
    """``left operator right``, operator being one of ``== != < <= > >=``."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Within(Node):
    """Whether a list has a value (``in``), or not (``not in``)."""

    value: Node
    among: Node
    negated: bool


@dataclass(frozen=True)
class Common(Node):
    """Whether two lists have an element in common (``any``), or none."""

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
    """A column of booleans, or its opposite."""

    of: Field
    negated: bool


@dataclass(frozen=True)
class Both(Node):
    """All of the parts."""

    all: tuple[Node, ...]


@dataclass(frozen=True)
class Either(Node):
    """One of the parts at least."""

    any: tuple[Node, ...]


_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


def opposite(node: Node) -> Node:
    """Return what holds where a condition doesn't, nulls apart: these hold no condition and no opposite.

    By De Morgan's laws it goes down to the single conditions, so that nobody need know what is false.
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
