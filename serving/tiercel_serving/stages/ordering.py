"""``ordering``: final scores, the best k, raw ids."""

from __future__ import annotations

import numpy as np

from ..errors import InvalidRequest
from ..ranked import sort_by_score
from ..release.opened import Release
from ..settings import UNKNOWN
from ..spec import Array, Arrays, StageSpec
from ..tables.store import ItemTable

_NOTHING = np.float32(-np.inf)


class Ordering:
    """Turn the ranker's scores into an answer.

    The final score is the weighted sum of the tasks; an unknown user keeps the popularity instead,
    unless the settings say ``rank``. Items come by (score descending, row ascending).

    Parameters
    ----------
    release
        The release.
    """

    def __init__(self, release: Release) -> None:
        self.spec: StageSpec = release.stages["ordering"]
        settings = release.settings
        items = ItemTable.open(release)
        self._ids, self._pad_row = items.ids, items.size
        self._k_default, self._k_max = settings.k_default, settings.k_max
        self._popular_bypass = settings.unknown_users == "popular"
        self._weights = np.array(settings.task_weights, np.float32) if settings.task_weights else None

    def check(self, arrays: Arrays) -> None:
        """Refuse a ``k`` outside of 1 … k_max."""
        check_k(arrays, self._k_max)

    def widths(self, arrays: Arrays) -> dict[str, int]:
        """Return how wide one request's ``item_id`` and ``score`` are: its largest k."""
        k = arrays.get("k")
        width = self._k_default if k is None else int(k.max())
        return {"item_id": width, "score": width}

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Order the kept.

        Parameters
        ----------
        arrays
            ``kept_row [B, K]``, ``kept_score [B, K]``, ``rank_score [B, K, T]``, ``status [B, 1]``,
            ``k [B, 1]``.

        Returns
        -------
        ``item_id`` and ``score`` ``[B, max k]``, ``count [B, 1]``.
        """
        kept, k = arrays["kept_row"], arrays["k"]
        width = int(k.max())
        scores, rows = sort_by_score(self._final_scores(arrays), kept)
        rows, scores = rows[:, :width], scores[:, :width]
        if width > kept.shape[1]:
            missing = ((0, 0), (0, width - kept.shape[1]))
            rows = np.pad(rows, missing, constant_values=self._pad_row)
            scores = np.pad(scores, missing)
        if rows[:, -1].max() != self._pad_row and k.min() == width:
            # Every slot is real: nearly every answer to one user.
            return {"item_id": self._ids[rows], "score": scores, "count": k}
        count = np.minimum(k, np.count_nonzero(kept != self._pad_row, axis=1)[:, None]).astype(np.int32)
        given = np.arange(width) < count
        rows, scores = np.where(given, rows, self._pad_row), np.where(given, scores, np.float32(0))
        return {"item_id": self._ids[rows], "score": scores, "count": count}

    def _final_scores(self, arrays: Arrays) -> Array:
        tasks = arrays["rank_score"]
        if self._weights is None:
            scores = tasks[:, :, 0]
        else:
            # Task by task, in order: one definition of the sum, whatever the batch.
            scores = tasks[:, :, 0] * self._weights[0]
            for task in range(1, len(self._weights)):
                scores = scores + tasks[:, :, task] * self._weights[task]
        if self._popular_bypass:
            unknown = arrays["status"] == UNKNOWN
            if unknown.any():
                scores = np.where(unknown, arrays["kept_score"], scores)
        # A model that answers NaN says nothing about the item: it goes last, and sorts as a number.
        scores = np.fmax(scores, _NOTHING)
        scores[arrays["kept_row"] == self._pad_row] = _NOTHING
        return scores


def check_k(arrays: Arrays, k_max: int) -> None:
    """Refuse a ``k`` ``[B, 1]`` outside of 1 … k_max; the first stage asks too, before any work is done."""
    k = arrays.get("k")
    if k is not None and (k.min(initial=1) < 1 or k.max(initial=1) > k_max):
        wrong = k[(k < 1) | (k > k_max)].reshape(-1)[0]
        raise InvalidRequest(f"k must be 1 to {k_max}, came {wrong}")
