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
        """Return ``rows [A]`` of the allowed items, most interactions first (ties by row), and ``scores``."""
        counts = np.bincount(material.rows, minlength=material.items)
        order = np.argsort(-counts, kind="stable").astype(np.int32)
        if material.allowed is not None:
            order = order[material.allowed[order]]
        highest = max(int(counts.max(initial=0)), 1)
        return Made({"rows": order, "scores": (counts[order] / highest).astype(np.float32)})

    def open(self, artefact: Artefact, items: int, threads: int) -> PopularList:
        """Open the list."""
        rows = artefact.array("rows")
        return PopularList(rows, artefact.array("scores", len(rows)), items)

    def reference(
        self, arrays: Mapping[str, Array], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return the first allowed items of the list."""
        listed = zip(arrays["rows"].tolist(), arrays["scores"].tolist(), strict=True)
        return [(row, score) for row, score in listed if allowed[row]][:count]


class PopularList:
    """One list of items.

    Parameters
    ----------
    rows, scores
        ``[A]`` int32 and float32, best first.
    items
        I, the pad row.
    """

    def __init__(self, rows: Array, scores: Array, items: int) -> None:
        # The place behind the last holds the pad row.
        self._rows = np.append(rows, items).astype(np.int64)
        self._scores = np.append(scores, _NOTHING).astype(np.float32)
        self._size = len(rows)

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the first ``count`` that the mask allows: the list is read on while somebody lacks some."""
        places = np.full((mask.users, count), self._size)
        listed, open_ended = 2 * count + 16, np.arange(mask.users)
        while len(open_ended):
            rows = self._rows[: min(listed, self._size)]
            allowed = mask.allows(np.broadcast_to(rows, (len(open_ended), len(rows))), open_ended)
            found, real = first_allowed(allowed, count)
            places[open_ended] = found if real is None else np.where(real, found, self._size)
            if real is None or len(rows) == self._size:
                break
            open_ended = open_ended[~real[:, -1]]
            listed *= 8
        return sort_by_score(self._scores[places], self._rows[places])
