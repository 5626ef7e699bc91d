"""The reorder steps of a recommender, applied in order: final scores of the kept, and reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..flags import any_equal
from ..native.rows import blank_scores
from ..ranked.order import Rows, Scores
from ..settings import FALLBACK, UNKNOWN, ServingSettings
from ..spec import Array, Arrays
from .table import Explores, ReorderKind, Step

_NOTHING = np.float32(-np.inf)


def reasons_of(steps: Sequence[ReorderKind]) -> list[str]:
    """Return the texts of all steps' reasons; reason code i is text i - 1, and 0 is no reason."""
    return [text for step in steps for text in step.reasons]


class Final(NamedTuple):
    """The result of the steps for the kept: scores, rows, reasons and propensities, ``[B, K]`` each."""

    scores: Scores
    rows: Rows
    reasons: npt.NDArray[np.int32] | None
    propensity: Scores | None


class Steps:
    """Turn the ranker's scores into final ones.

    The steps start from the first task's score, or from retrieval's score if there is no ranker. A user about
    whom nothing is known keeps the fallback's score, unless the settings say ``rank``.

    ``columns`` are the columns ``[I + 1]`` that the steps read, raw ones and those of :mod:`.inputs`.
    ``items`` is I, the pad row.
    """

    def __init__(self, settings: ServingSettings, columns: Mapping[str, Column], items: int) -> None:
        self._pad = items
        self._bypass = settings.unknown_users == FALLBACK
        self._steps = [(step, step.open(columns)) for step in settings.reorder]
        self._has_reasons = bool(reasons_of(settings.reorder))
        #: Whether a step explores, so that items have propensities.
        self.explore = any(isinstance(step, Explores) for _, step in self._steps)

    @property
    def opened(self) -> Sequence[tuple[ReorderKind, Step]]:
        """The steps in order, each with its opened form."""
        return self._steps

    def apply(self, arrays: Arrays) -> Final:
        """Compute the final scores of the kept.

        Parameters
        ----------
        arrays
            ``kept_row``, ``kept_score`` ``[B, K]``, ``status [B, 1]``, ``rank_score [B, K, T]`` if there is a
            ranker, and the tensors that the steps read. With ``k [B, 1]``, only the first k places must be in
            their final order.

        Returns
        -------
        ``[B, K]`` float32 scores, -inf in empty slots; ``[B, K]`` rows, the pad row where a step dropped the
        item; ``[B, K]`` int32 codes of :func:`reasons_of`, or None if no step has reasons; ``[B, K]`` float32
        propensities, or None if no step explores.
        """
        kept, tasks = arrays["kept_row"], arrays.get("rank_score")
        scores: Scores = arrays["kept_score"] if tasks is None else tasks[:, :, 0]
        bypass: Array | None = None
        if self._bypass and tasks is not None and any_equal(arrays["status"], UNKNOWN):
            bypass = arrays["status"] == UNKNOWN
            scores = np.where(bypass, arrays["kept_score"], scores)
        rows, scores = kept, self._blank(scores, kept)
        reasons = np.zeros(kept.shape, np.int32) if self._has_reasons else None
        propensity = np.ones(kept.shape, np.float32) if self.explore else None
        first = 1
        # The next step may move up items beyond the first k, so all steps but the last order everything.
        whole = {name: array for name, array in arrays.items() if name != "k"} if self._steps[1:] else arrays
        for number, (kind, step) in enumerate(self._steps):
            last = number == len(self._steps) - 1
            changed, why = step.apply(scores, arrays if last else whole)
            if propensity is not None and isinstance(step, Explores):
                propensity = propensity * step.propensity(scores, changed, arrays)
            if bypass is not None and kind.of_ranker:
                changed, why = np.where(bypass, scores, changed), None if why is None else why * ~bypass
            dropped = (changed == _NOTHING) & (scores != _NOTHING)
            if dropped.any():
                rows = np.where(dropped, self._pad, rows)
            if why is not None and reasons is not None:
                reasons = np.where(why > 0, why + (first - 1), reasons)
            scores, first = self._blank(changed, rows), first + len(kind.reasons)
        return Final(scores, rows, reasons, propensity)

    def _blank(self, scores: Scores, rows: Rows) -> Scores:
        """Set the scores of empty slots, and NaN from a broken model, to -inf, so that they come last."""
        blanked = blank_scores(scores, rows, self._pad)
        if blanked is None:
            blanked = np.fmax(scores, _NOTHING)
            blanked[rows == self._pad] = _NOTHING
        return blanked
