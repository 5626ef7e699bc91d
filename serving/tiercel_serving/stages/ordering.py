"""``ordering``: final scores, the best k, raw ids."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import InvalidRequest
from ..flags import all_equal, any_equal
from ..ranked.order import order_by_score, pick, sort_by_score
from ..release.opened import Release
from ..reorder.inputs import source_columns
from ..reorder.per_request import per_request
from ..reorder.steps import Steps
from ..spec import Array, Arrays, StageSpec


class Ordering:
    """Turn scores into an answer: the reorder steps, then items by (score descending, row ascending)."""

    def __init__(self, name: str, release: Release) -> None:
        self.spec: StageSpec = release.stages[name]
        settings, items = release.settings, release.items
        self._release, self._set = release, per_request(settings.reorder)
        self._ids, self._pad_row = items.ids, items.size
        self._k_default, self._k_max = settings.k_default, settings.k_max
        self.renew()

    def renew(self) -> None:
        """Open the steps over the current items."""
        settings, items = self._release.settings, self._release.items
        columns = items.columns((c for step in settings.reorder for c in step.columns()), pad=True)
        columns |= source_columns(settings.reorder, self._known_of_items, items.size)
        self._steps = Steps(settings, columns, items.size)

    def _known_of_items(self, source: str) -> Mapping[str, Array]:
        """Return the arrays of a source, with the vectors of added items appended to its own."""
        arrays, live = self._release.artefact(f"source_{source}", "source").arrays, self._release.live_items
        if live is None or "vectors" not in arrays:
            return arrays
        own = self._release.manifest.catalogue.items
        rows, vectors = live.vectors(source)
        new = rows >= own
        held = arrays.get("rows", np.arange(len(arrays["vectors"])))
        if not new.any():
            return {"vectors": arrays["vectors"], "rows": held}
        both = np.concatenate([arrays["vectors"], vectors[new]])
        return {"vectors": both, "rows": np.append(held, rows[new])}

    def check(self, arrays: Arrays) -> None:
        """Reject a ``k`` outside of 1 … k_max, and numbers of steps beyond the recipe's limits."""
        check_k(arrays, self._k_max)
        for one in self._set:
            one.check(arrays)

    def widths(self, arrays: Arrays) -> dict[str, int]:
        """Return output → width for one request: its largest k."""
        k = arrays.get("k")
        width = self._k_default if k is None else int(k.max())
        return dict.fromkeys(("item_id", "score", "propensity"), width)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Apply the steps and return the best items.

        ``arrays`` holds ``k [B, 1]``, and what :meth:`~tiercel_serving.reorder.steps.Steps.apply` reads.

        Returns
        -------
        ``item_id`` and ``score`` ``[B, max k]``, ``count [B, 1]``; ``reorder_reason [B, K]`` if a step has
        reasons, ``propensity [B, max k]`` if a step explores.
        """
        scores, kept, reasons, propensity = self._steps.apply(arrays)
        answer = self._best(scores, kept, arrays["k"])
        if propensity is not None:
            width = answer["score"].shape[1]
            best = pick(propensity, order_by_score(scores, kept))[:, :width]
            given = np.arange(width) < answer["count"]
            answer["propensity"] = np.where(given, best, np.float32(0))
        return answer if reasons is None else {**answer, "reorder_reason": reasons}

    def _best(self, scores: Array, kept: Array, k: Array) -> dict[str, Array]:
        width = int(k.item() if k.size == 1 else k.max())
        scores, rows = sort_by_score(scores, kept)
        return self._answer(scores[:, :width], rows[:, :width], k)

    def _answer(self, scores: Array, rows: Array, k: Array) -> dict[str, Array]:
        """Return the answer for the best scores and rows ``[B, max k]``; pad rows are last."""
        width = rows.shape[1]
        if not any_equal(rows[:, -1], self._pad_row) and all_equal(k, width):
            # Every slot is real, as in nearly every answer to a single user.
            return {"item_id": self._ids(rows), "score": scores, "count": k}
        count = np.minimum(k, np.count_nonzero(rows != self._pad_row, axis=1)[:, None]).astype(np.int32)
        given = np.arange(width) < count
        rows, scores = np.where(given, rows, self._pad_row), np.where(given, scores, np.float32(0))
        return {"item_id": self._ids(rows), "score": scores, "count": count}


def check_k(arrays: Arrays, k_max: int) -> None:
    """Reject a ``k`` ``[B, 1]`` outside of 1 … k_max; the first stage does so too, before any work."""
    k = arrays.get("k")
    if k is not None and (k.min(initial=1) < 1 or k.max(initial=1) > k_max):
        wrong = k[(k < 1) | (k > k_max)].reshape(-1)[0]
        raise InvalidRequest(f"k must be 1 to {k_max}, got {wrong}")
