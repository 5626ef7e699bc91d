"""The rules of a recommender combined: which candidates are kept, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..native.rows import keep_first
from ..ranked.order import Rows, Scores, first_allowed, pick
from ..settings import BEYOND_KEPT, EMPTY_SLOT, FIRST_RULE_REASON, KEPT
from ..spec import Array
from .table import RuleKind

#: The outputs of :meth:`KeptRules.keep`.
_KEPT = ("kept_row", "kept_index", "kept_score", "kept_source", "filter_reason")


def reason_table(
    rules: Sequence[RuleKind], columns: Mapping[str, Column], items: int
) -> npt.NDArray[np.int32]:
    """Return the reason code of every catalogue row, by the first rule that it fails, from columns ``[I]``.

    Returns
    -------
    ``[I + 1]`` int32: ``KEPT``, ``FIRST_RULE_REASON + i``, and ``EMPTY_SLOT`` for the pad row.
    """
    reasons = np.full(items + 1, KEPT, np.int32)
    reasons[-1] = EMPTY_SLOT
    for number, rule in enumerate(rules):
        failed = (reasons[:-1] == KEPT) & ~rule.passes(columns)
        reasons[:-1][failed] = FIRST_RULE_REASON + number
    return reasons


def allowed_items(
    rules: Sequence[RuleKind], columns: Mapping[str, Column], items: int
) -> npt.NDArray[np.bool_]:
    """Return ``[I]``: which items pass every rule."""
    allowed: npt.NDArray[np.bool_] = reason_table(rules, columns, items)[:-1] == KEPT
    return allowed


class KeptRules:
    """Keep the first K of N candidates that pass every rule; ``reasons`` is from :func:`reason_table`."""

    def __init__(self, reasons: npt.NDArray[np.int32], candidates: int, kept: int) -> None:
        self._reasons, self._kept, self._pad = reasons, kept, len(reasons) - 1
        self._places = np.arange(candidates)

    def keep(self, rows: Rows, scores: Scores, source: npt.NDArray[np.int32]) -> dict[str, Array]:
        """Filter candidates ``[B, N]``, given best first, and return a reason for each.

        Returns
        -------
        ``kept_row``, ``kept_index``, ``kept_score``, ``kept_source`` ``[B, K]`` and ``filter_reason
        [B, N]``.
        """
        found = keep_first(rows, scores, source, self._reasons, self._kept)
        if found is not None:
            return dict(zip(_KEPT, found, strict=True))
        reason = self._reasons[rows]
        passed = reason == KEPT
        kept_index, real = first_allowed(passed, self._kept)
        kept_row = pick(rows, kept_index)
        kept_score, kept_source = pick(scores, kept_index), pick(source, kept_index)
        last = kept_index[:, -1:]
        if real is not None:
            empty = ~real
            kept_row[empty], kept_score[empty], kept_source[empty] = self._pad, 0, 0
            last = np.where(empty[:, -1:], rows.shape[1], last)
        # Candidates that pass after the last kept one are beyond the first K.
        passed &= self._places > last
        reason[passed] = BEYOND_KEPT
        kept = kept_row, kept_index, kept_score, kept_source, reason
        return dict(zip(_KEPT, kept, strict=True))
