"""Tree → masks over items: vectorised, without ``eval``; conditions on the item alone are evaluated once.

Logic is three-valued: a condition is true, false, or unknown since something is null (Kleene 1952, section
64). A rule passes only items for which it is true. Negations are pushed down to single conditions
(``tree.opposite``), so only truth must be computed: on a null, neither a condition nor its opposite is true.

A condition that reads a column which the request leaves out is *absent*: it is ignored in conjunctions and in
alternatives, and a rule of absent conditions only passes everything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from ...columns import Column
from ...ranked.order import Rows
from ...spec import Array
from .given import Batch, Given, Operand, Truth
from .postings import Elements, Flags, Postings, flat, real_elements, valid_rows
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
from .types import constant_array, stored

_Scalar = Callable[[Batch], Operand]
_Condition = Callable[[Batch], Truth]

_NOBODY = Given({}, {}, {}, np.zeros(1))


def _unequal(left: Any, right: Any) -> Any:
    if np.asarray(left).dtype.kind == "f" or np.asarray(right).dtype.kind == "f":
        return (left < right) | (left > right)  # False for NaN, which is null
    return left != right


_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": _unequal,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def of_items_alone(node: Node) -> bool:
    """Whether a condition or value depends on the item alone."""
    return not any(isinstance(n, Now) or (isinstance(n, Field) and n.owner != "item") for n in node.walk())


def conjuncts(tree: Node) -> tuple[Node, ...]:
    """Return the conditions that must all hold."""
    return tree.all if isinstance(tree, Both) else (tree,)


class Masks:
    """Conditions over items, compiled: all of them must hold.

    Parameters
    ----------
    conditions
        Trees whose types fit (:class:`~.types.Schema`).
    columns
        The raw item columns ``[I]`` that they read.
    items
        I.
    """

    def __init__(self, conditions: Sequence[Node], columns: Mapping[str, Column], items: int) -> None:
        self._columns, self._items = columns, items
        compared = [node for tree in conditions for node in tree.walk() if isinstance(node, Compare)]
        fields = dict.fromkeys(one for node in compared for one in node.parts() if self._is_text(one))
        texts = [columns[one.name] for one in fields if isinstance(one, Field)]
        parts = [one.values[real_elements(one)] for one in texts]
        self._vocabulary = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.object_)
        self._code_of = {text: 2 * place + 1 for place, text in enumerate(self._vocabulary.tolist())}
        self._postings: dict[str, Postings] = {}
        self._run = self._all([self._condition(one) for one in conditions])
        # The compiled conditions hold what they need. Drop the columns, since text columns can be large.
        self._columns = {}

    def allows(self, given: Given, rows: Rows | None = None) -> Flags:
        """Return which items pass for which users, ``[B or 1, I or 1]``; for ``[B, n]`` rows, likewise."""
        truth = self._run(Batch(given, rows))
        true = truth.true if truth.absent is None else truth.true | truth.absent
        return true if true.ndim == 2 else true[None]

    def of_items(self) -> Flags:
        """Return ``[I]``: which items pass, if all conditions depend on the item alone."""
        return np.array(np.broadcast_to(self.allows(_NOBODY)[0], (self._items,)))

    def _is_text(self, node: Node) -> bool:
        """Whether a value is a text column of the item."""
        if not isinstance(node, Field) or node.owner != "item":
            return False
        return self._columns[node.name].values.dtype == np.object_

    # ------------------------------------------------------------------------------------------- conditions

    def _condition(self, node: Node) -> _Condition:
        if of_items_alone(node):
            true = self._decide(node)(Batch(_NOBODY, None)).true
            decided = np.array(np.broadcast_to(true[0] if true.ndim == 2 else true, (self._items,)))
            return lambda batch: Truth(batch.of(decided))
        return self._decide(node)

    def _decide(self, node: Node) -> _Condition:
        if isinstance(node, Both):
            return self._all([self._condition(part) for part in node.all])
        if isinstance(node, Either):
            return self._one([self._condition(part) for part in node.any])
        if isinstance(node, Compare):
            return self._compare(node)
        if isinstance(node, Flag):
            compared = Compare("!=" if node.negated else "==", node.of, Value(True))
            return self._compare(compared)
        if isinstance(node, IsNull):
            return self._null(node)
        if isinstance(node, Within):
            return self._overlap(node.value, node.among, node.negated)
        assert isinstance(node, Common)
        return self._overlap(node.left, node.right, node.negated)

    @staticmethod
    def _all(parts: list[_Condition]) -> _Condition:
        if len(parts) == 1:
            return parts[0]  # its own result says for which users it is absent

        def run(batch: Batch) -> Truth:
            truths = [part(batch) for part in parts]
            passed = [one.true if one.absent is None else one.true | one.absent for one in truths]
            return Truth(reduce(operator.and_, passed), _absent_all(truths))

        return run

    @staticmethod
    def _one(parts: list[_Condition]) -> _Condition:
        def run(batch: Batch) -> Truth:
            truths = [part(batch) for part in parts]
            passed = [one.true if one.absent is None else one.true & ~one.absent for one in truths]
            return Truth(reduce(operator.or_, passed), _absent_all(truths))

        return run

    def _compare(self, node: Compare) -> _Condition:
        sides = (node.left, node.right)
        text = any(map(self._is_text, sides))
        # Equality of texts does not need their order.
        exact = node.operator in ("==", "!=")
        left, right = (self._code(side, exact) if text else self._scalar(side) for side in sides)
        # Codes of texts are never NaN, so plain inequality does.
        compare = operator.ne if text and node.operator == "!=" else _COMPARE[node.operator]

        def run(batch: Batch) -> Truth:
            one, other = left(batch), right(batch)
            true = np.asarray(compare(one.values, other.values), np.bool_)
            for valid in (one.valid, other.valid):
                if valid is not None:
                    true = true & valid
            return Truth(true, _either(one.absent, other.absent))

        return run

    def _null(self, node: IsNull) -> _Condition:
        field = node.of
        if field.owner == "item":
            valid = valid_rows(self._columns[field.name])
            return lambda batch: Truth(batch.of(valid) if node.negated else ~batch.of(valid))
        if field.owner == "request":
            return lambda batch: Truth((batch.given.sent[field.name] == node.negated)[:, None])
        return lambda batch: Truth((valid_rows(batch.given.users[field.name]) == node.negated)[:, None])

    def _overlap(self, left: Node, right: Node, negated: bool) -> _Condition:
        """Compile whether two sides, values or lists, have an element in common."""
        if any(isinstance(side, Field) and side.owner == "item" for side in (left, right)):
            item = left if isinstance(left, Field) and left.owner == "item" else right
            assert isinstance(item, Field)
            return self._item_overlap(item, right if item is left else left, negated)

        def run(batch: Batch) -> Truth:
            one, other = (_elements(side, batch) for side in (left, right))
            both = np.concatenate([one.values, other.values])
            codes = np.unique(both, return_inverse=True)[1]
            cells = codes * len(batch.given.now)
            first, second = cells[: len(one.values)] + one.owner, cells[len(one.values) :] + other.owner
            users = len(batch.given.now)
            if one.shared or other.shared:
                first, second = codes[: len(one.values)], codes[len(one.values) :]
            found = np.zeros(users, np.bool_)
            hits = np.isin(first, second) if not one.shared else np.isin(second, first)
            found[(other if one.shared else one).owner[hits]] = True
            true = (found ^ negated) & one.valid & other.valid
            return Truth(true[:, None], _either(one.absent, other.absent))

        return run

    def _item_overlap(self, item: Field, other: Node, negated: bool) -> _Condition:
        postings = self._postings.setdefault(item.name, Postings(self._columns[item.name]))
        if isinstance(other, Field) and other.owner == "item":
            return self._items_overlap(item, other, negated)

        def run(batch: Batch) -> Truth:
            lists = _elements(other, batch)
            rows = batch.rows
            users = 1 if lists.shared else len(batch.given.now)
            if rows is not None and len(rows) != users:
                rows = np.broadcast_to(rows, (max(len(rows), users), rows.shape[1]))
                users = len(rows)
                lists = lists.spread(users)
            found = postings.having(lists, users, rows)
            if negated:
                np.logical_not(found, out=found)
            if not postings.complete:
                found &= postings.valid if rows is None else postings.valid.take(rows)
            if not _all(lists.valid):
                found &= lists.valid[:, None]
            return Truth(found, lists.absent)

        return run

    def _items_overlap(self, left: Field, right: Field, negated: bool) -> _Condition:
        """Compile whether two item columns have an element in common; evaluated once for every item."""
        one, other = (self._columns[field.name] for field in (left, right))
        first, second = flat(one), flat(other)
        codes = np.unique(np.concatenate([first[0], second[0]]), return_inverse=True)[1]
        cells = codes * self._items + np.concatenate([first[1], second[1]])
        hits = first[1][np.isin(cells[: len(first[0])], cells[len(first[0]) :])]
        found = np.zeros(self._items, np.bool_)
        found[hits] = True
        decided = (found ^ negated) & valid_rows(one) & valid_rows(other)
        return lambda batch: Truth(batch.of(decided))

    # ------------------------------------------------------------------------------------------------ values

    def _scalar(self, node: Node) -> _Scalar:
        if isinstance(node, Value):
            value = stored(node.value)
            return lambda batch: Operand(value)
        if isinstance(node, Now):
            return lambda batch: Operand(batch.given.now[:, None])
        if isinstance(node, Field):
            return self._column(node)
        if of_items_alone(node):
            values = np.broadcast_to(self._computed(node)(Batch(_NOBODY, None)).values, (self._items,))
            return lambda batch: Operand(batch.of(values))
        return self._computed(node)

    def _computed(self, node: Node) -> _Scalar:
        if isinstance(node, Length):
            return self._length(node.of)
        assert isinstance(node, Arithmetic)
        left, right = self._scalar(node.left), self._scalar(node.right)

        def run(batch: Batch) -> Operand:
            one, other = left(batch), right(batch)
            values = _calculated(node.operator, _as_floats(one), _as_floats(other))
            return Operand(values, None, _either(one.absent, other.absent))

        return run

    def _column(self, field: Field) -> _Scalar:
        if field.owner == "item":
            column = self._columns[field.name]
            values, valid = column.values, column.valid
            if valid is None:
                return lambda batch: Operand(batch.of(values))
            return lambda batch: Operand(batch.of(values), batch.of(valid))
        return lambda batch: _of_users(field, batch.given)

    def _length(self, of: Node) -> _Scalar:
        assert isinstance(of, Field)
        if of.owner == "item":
            lengths = _lengths(self._columns[of.name])
            return lambda batch: Operand(batch.of(lengths))

        def run(batch: Batch) -> Operand:
            column = (batch.given.requests if of.owner == "request" else batch.given.users)[of.name]
            absent = ~batch.given.sent[of.name][:, None] if of.owner == "request" else None
            return Operand(_lengths(column)[:, None], None, absent)

        return run

    def _code(self, node: Node, exact: bool) -> _Scalar:
        """Compile a text to its position among the items' texts: odd for these, even for those in between.

        If only equality matters (``exact``), a user's text that no item has may get any even number.
        """
        if isinstance(node, Value):
            code = self._coded(constant_array([node.value]))[0]
            return lambda batch: Operand(code)
        assert isinstance(node, Field)
        if node.owner == "item":
            column = self._columns[node.name]
            valid = valid_rows(column)
            codes = self._coded(np.where(valid, column.values, b""))
            if valid.all():
                return lambda batch: Operand(batch.of(codes))
            return lambda batch: Operand(batch.of(codes), batch.of(valid))

        def run(batch: Batch) -> Operand:
            operand = _of_users(node, batch.given)
            if not exact:
                return operand._replace(values=self._coded(operand.values))
            codes = [[self._code_of.get(text, 0)] for text in operand.values[:, 0].tolist()]
            return Operand(np.array(codes, np.int32), operand.valid, operand.absent)

        return run

    def _coded(self, values: Array) -> npt.NDArray[np.int32]:
        left = np.searchsorted(self._vocabulary, values)
        right = np.searchsorted(self._vocabulary, values, side="right")
        return (left + right).astype(np.int32)


def _all(flags: Flags) -> bool:
    """Whether all users' flags are set; for one flag per user, a list is faster than an array reduction."""
    return False not in flags.tolist()


def _absent(sent: Flags) -> Flags | None:
    """Return ``[B, 1]``: which users did not send a column, given ``sent [B]``; None if all did."""
    return None if _all(sent) else ~sent[:, None]


def _lengths(column: Column) -> npt.NDArray[np.float64]:
    assert column.offsets is not None
    return np.where(valid_rows(column), np.diff(column.offsets).astype(np.float64), np.nan)


def _of_users(field: Field, given: Given) -> Operand:
    absent = None
    if field.owner == "request":
        column, absent = given.requests[field.name], _absent(given.sent[field.name])
    else:
        column = given.users[field.name]
    valid = None if column.valid is None else column.valid[:, None]
    return Operand(column.values[:, None], valid, absent)


def _elements(node: Node, batch: Batch) -> Elements:
    """Return the elements of a list that is not an item column; a single value is a list of one."""
    if isinstance(node, Field):
        given = batch.given
        column = (given.requests if node.owner == "request" else given.users)[node.name]
        absent = _absent(given.sent[node.name]) if node.owner == "request" else None
        return Elements(*flat(column), valid_rows(column), absent, False)
    assert isinstance(node, Value | Values)
    values = constant_array((node.value,) if isinstance(node, Value) else node.values)
    return Elements(values, np.zeros(len(values), np.int64), np.ones(1, np.bool_), None, shared=True)


def _as_floats(operand: Operand) -> Array:
    values = np.asarray(operand.values, np.float64)
    return values if operand.valid is None else np.where(operand.valid, values, np.nan)


def _calculated(sign: str, left: Array, right: Array) -> Array:
    """Calculate in float64; an undefined result, such as x / 0, is NaN, which means null."""
    with np.errstate(all="ignore"):
        if sign == "/":
            return np.where(right == 0, np.nan, left / right)
        return {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](left, right)  # type: ignore[no-any-return]


def _either(one: Flags | None, other: Flags | None) -> Flags | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other


def _absent_all(truths: Sequence[Truth]) -> Flags | None:
    found = [one.absent for one in truths]
    if any(one is None for one in found):
        return None
    return reduce(operator.and_, [one for one in found if one is not None])
