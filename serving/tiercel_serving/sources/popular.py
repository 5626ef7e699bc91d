"""``popular``: the items with the most interactions, for everybody alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..kinds import Settings
from ..ranked import Mask, Rows, Scores, first_allowed, sort_by_score
from ..release.artefacts import Artefact
from ..spec import Array, Arrays
from .table import Made, Material, UserTensors

_NOTHING = np.float32(-np.inf)


class Popular(Settings, frozen=True, tag="popular"):
    """Items by how many interactions they have; the score is that number over the largest.

    Parameters
    ----------
    name
        What ``--explain`` calls it.
    quota
        How many candidates it may give; None is whatever the other quotas leave.
    """

    name: str = "popular"
    quota: int | None = None

    personal: ClassVar[bool] = False
    form: ClassVar[str | None] = None

    def make(self, material: Material) -> Made:
        """Return ``rows [I]``, most interactions first (ties by row), and ``scores [I]`` float32."""
        counts = np.bincount(material.rows, minlength=material.items)
        order = np.argsort(-counts, kind="stable").astype(np.int64)
        highest = max(int(counts.max(initial=0)), 1)
        return Made({"rows": order, "scores": (counts[order] / highest).astype(np.float32)})

    def open(self, artefact: Artefact, items: int, threads: int) -> PopularList:
        """Open the list."""
        return PopularList(artefact.array("rows", items), artefact.array("scores", items))

    def reference(
        self, arrays: Mapping[str, Array], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return the first allowed items of the list."""
        listed = zip(arrays["rows"].tolist(), arrays["scores"].tolist(), strict=True)
        return [(row, score) for row, score in listed if allowed[row]][:count]


class PopularList:
    """One list of all items.

    Parameters
    ----------
    rows, scores
        ``[I]`` int64 and float32, best first.
    """

    def __init__(self, rows: Array, scores: Array) -> None:
        self._rows, self._scores, self._pad = rows, scores, len(rows)

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the first ``count`` that the mask allows."""
        listed = self._rows[: count + mask.most]
        places, real = first_allowed(mask.allows(np.broadcast_to(listed, (mask.users, len(listed)))), count)
        if not len(listed):
            return np.full(places.shape, _NOTHING), np.full(places.shape, self._pad)
        rows, scores = self._rows[places], self._scores[places]
        if real is not None:
            rows, scores = np.where(real, rows, self._pad), np.where(real, scores, _NOTHING)
        return sort_by_score(scores, rows)
