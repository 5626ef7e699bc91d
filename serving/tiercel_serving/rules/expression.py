"""``expression``: an item passes if a condition over it, the user, the request and the time holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..problems import Problem
from .expressions.grammar import parse
from .expressions.masks import Masks, conjuncts, of_items_alone
from .expressions.plain import Plain
from .expressions.tree import Field, Node, Now
from .expressions.types import Schema, mixed, type_of
from .table import Asks

_parsed = lru_cache(maxsize=256)(parse)


class Expression(Settings, frozen=True, tag="expression"):
    """Keep an item only if ``expression`` holds, such as ``item.stock > 0 and item.year >= request.since``.

    The grammar is in :mod:`~tiercel_serving.rules.expressions.grammar`. On a null of an item or a user,
    neither a condition nor its opposite holds (test for nulls with ``is None``). A condition on a column that
    the request leaves out is ignored. Conditions on the item alone are evaluated once, the others for each
    request, before the search.

    Parameters
    ----------
    name
        Its name in ``--explain``.
    expression
        The condition.
    """

    name: str
    expression: str

    @property
    def reason(self) -> str:
        """Text of why an item that fails the rule was dropped."""
        return f"not ({' '.join(self.expression.split())})"

    def problems(self) -> list[Problem]:
        """Return a syntax error, a condition that reads no item column, and lists of mixed types."""
        tree = _parsed(self.expression)
        if isinstance(tree, Problem):
            return [tree]
        if not self.columns():
            remedy = "name one: a rule says which items may come, and to whom"
            return [Problem("expression", "it reads no column of the item", remedy)]
        return mixed(tree)

    def columns(self) -> tuple[str, ...]:
        """Return the raw item columns that it reads."""
        return self._named("item")

    def asks(self) -> Asks:
        """Return the inputs that it reads besides item columns."""
        clock = any(isinstance(node, Now) for node in self._tree.walk())
        return Asks(self._named("user"), self._named("request"), clock)

    def misfits(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return what does not fit the raw item columns."""
        return Schema({name: type_of(column) for name, column in columns.items()}).problems(self._tree)

    def unfit(self, schema: Schema) -> list[Problem]:
        """Return what does not fit items, users and requests; request columns' types go into the schema."""
        return schema.problems(self._tree)

    def passes(self, columns: Mapping[str, Column]) -> npt.NDArray[np.bool_]:
        """Return ``[n]``: which items satisfy all conditions that depend on the item alone."""
        items = len(columns[self.columns()[0]])
        own = [part for part in conjuncts(self._tree) if of_items_alone(part)]
        return Masks(own, columns, items).of_items() if own else np.ones(items, np.bool_)

    def open(self, columns: Mapping[str, Column]) -> Masks | None:
        """Compile the conditions that depend on more than the item, over columns ``[I]``; None if none do."""
        rest = [part for part in conjuncts(self._tree) if not of_items_alone(part)]
        return Masks(rest, columns, len(columns[self.columns()[0]])) if rest else None

    def reference(self, item: Mapping[str, Any]) -> bool:
        """Return whether one item satisfies all conditions that depend on the item alone."""
        plain = Plain(item, {}, {}, 0.0)
        return all(plain.passes(part) for part in conjuncts(self._tree) if of_items_alone(part))

    def reference_of(
        self, item: Mapping[str, Any], user: Mapping[str, Any], request: Mapping[str, Any], now: float
    ) -> bool:
        """Return whether one item passes for one user and request."""
        return Plain(item, user, request, now).passes(self._tree)

    @property
    def _tree(self) -> Node:
        tree = _parsed(self.expression)
        if isinstance(tree, Problem):
            raise ValueError(str(tree))  # callers have checked problems() before
        return tree

    def _named(self, owner: str) -> tuple[str, ...]:
        tree = _parsed(self.expression) if isinstance(self.expression, str) else None
        if not isinstance(tree, Node):
            return ()
        fields = [node for node in tree.walk() if isinstance(node, Field) and node.owner == owner]
        return tuple(dict.fromkeys(field.name for field in fields))
