"""``filtering``: the first K candidates that pass every business rule."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..errors import ArtefactCorrupt
from ..ranked import first_allowed, pick
from ..release.opened import Release
from ..settings import BEYOND_KEPT, EMPTY_SLOT, FIRST_RULE_REASON, KEPT, Rule
from ..spec import Array, Arrays, StageSpec
from ..tables.store import ItemTable

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Filtering:
    """Keep the first K candidates that pass every rule, and say of each why it was kept or not.

    Parameters
    ----------
    release
        The release; its rules are decided for every item once, here.
    """

    def __init__(self, release: Release) -> None:
        self.spec: StageSpec = release.stages["filtering"]
        settings = release.settings
        self._kept = settings.kept
        self._places = np.arange(settings.candidates)
        self._reasons = reason_table(ItemTable.open(release), settings.rules)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Filter ``retrieved_row [B, N]``.

        Returns
        -------
        ``kept_row``, ``kept_index``, ``kept_score``, ``kept_source`` ``[B, K]`` and
        ``filter_reason [B, N]``.
        """
        retrieved = arrays["retrieved_row"]
        reason = self._reasons[retrieved]
        passed = reason == KEPT
        kept_index, real = first_allowed(passed, self._kept)
        kept_row = pick(retrieved, kept_index)
        kept_score, kept_source = (
            pick(arrays["retrieval_score"], kept_index),
            pick(arrays["source"], kept_index),
        )
        last = kept_index[:, -1:]
        if real is not None:
            empty = ~real
            kept_row[empty], kept_score[empty], kept_source[empty] = len(self._reasons) - 1, 0, 0
            last = np.where(empty[:, -1:], retrieved.shape[1], last)
        # Whatever passed behind the last kept candidate came too late.
        passed &= self._places > last
        reason[passed] = BEYOND_KEPT
        return {
            "kept_row": kept_row,
            "kept_index": kept_index,
            "kept_score": kept_score,
            "kept_source": kept_source,
            "filter_reason": reason,
        }


def reason_table(items: ItemTable, rules: tuple[Rule, ...]) -> npt.NDArray[np.int32]:
    """Return for every catalogue row the reason of the first rule that it fails.

    Parameters
    ----------
    items
        The items with their raw columns.
    rules
        In order; a null fails every rule.

    Returns
    -------
    ``[I + 1]`` int32: ``KEPT``, ``FIRST_RULE_REASON + i``, and ``EMPTY_SLOT`` for the pad row.
    """
    reasons = np.full(items.size + 1, KEPT, np.int32)
    for number, rule in enumerate(rules):
        stored = items.raw(rule.column)
        if stored is None:
            raise ArtefactCorrupt(
                f"stage filtering: rule {rule.name!r} speaks of column {rule.column!r}, which the items do "
                "not hold; export again with this column among the raw item columns"
            )
        passes = np.zeros(items.size + 1, np.bool_)
        passes[:-1] = rule_passes(stored.take(np.arange(items.size)), rule)
        reasons[(reasons == KEPT) & ~passes] = FIRST_RULE_REASON + number
    reasons[-1] = EMPTY_SLOT
    return reasons


def rule_passes(column: Column, rule: Rule) -> npt.NDArray[np.bool_]:
    """Return for each row of a column whether ``column operator value`` holds; not for nulls.

    For a list column, ``in`` and ``not in`` ask whether any element of the row is among the values.

    Raises
    ------
    ValueError
        The operator or the value does not fit the column.
    """
    negated = rule.operator == "not in"
    if rule.operator in ("in", "not in"):
        wanted = rule.value if isinstance(rule.value, (list, tuple)) else [rule.value]
        holds = _any_of(column.values, [_comparable(column, rule, value) for value in wanted])
    elif column.is_list:
        raise ValueError(f"rule {rule.name!r}: column {rule.column!r} is a list; use `in` or `not in`")
    elif rule.operator in _COMPARISONS:
        holds = _compare(column, rule)
    else:
        raise ValueError(f"rule {rule.name!r}: operator {rule.operator!r} is none that filtering knows")
    valid = np.ones(len(column.values), np.bool_) if column.valid is None else column.valid.copy()
    if column.values.dtype.kind == "f":
        valid &= ~np.isnan(column.values)
    if column.offsets is None:
        return (holds ^ negated) & valid
    counts = np.concatenate([[0], np.cumsum(holds & valid)])
    found = counts[column.offsets[1:]] > counts[column.offsets[:-1]]
    row_valid = True if column.row_valid is None else column.row_valid
    return np.asarray((found ^ negated) & row_valid, np.bool_)


def _any_of(values: Array, wanted: list[Any]) -> npt.NDArray[np.bool_]:
    holds = np.zeros(len(values), np.bool_)
    for value in wanted:
        holds |= np.asarray(values == value, np.bool_)
    return holds


def _compare(column: Column, rule: Rule) -> npt.NDArray[np.bool_]:
    value, values = _comparable(column, rule, rule.value), column.values
    if values.dtype == np.object_ and column.valid is not None:
        # Whatever stands at a null's place may not compare with bytes.
        values = np.where(column.valid, values, b"")
    return np.asarray(_COMPARISONS[rule.operator](values, value), np.bool_)


def _comparable(column: Column, rule: Rule, value: Any) -> Any:
    """Return a rule's value in the column's own type."""
    if column.values.dtype == np.object_:
        if not isinstance(value, (str, bytes)):
            raise ValueError(
                f"rule {rule.name!r}: column {rule.column!r} holds text, but its value is {value!r}"
            )
        return value.encode() if isinstance(value, str) else value
    if isinstance(value, (str, bytes)):
        raise ValueError(f"rule {rule.name!r}: column {rule.column!r} holds numbers, not {value!r}")
    return value
