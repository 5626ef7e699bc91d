"""Base classes of sources that sum weights over a user's history: settings, with reference, and source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..kinds import Settings
from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores
from ..spec import Array, Arrays
from .sparse_sums import best_allowed, sums_of
from .table import UserTensors


class HistorySums(Settings, frozen=True):
    """Base of the settings of a source that sums weights over a user's history.

    Only items whose sum is above zero are candidates.

    Parameters
    ----------
    name
        Its name in ``--explain``; the retrieval model of this name feeds it.
    quota
        Number of candidates that it may give; None is what the other quotas leave.
    """

    name: str
    quota: int | None = None

    personal: ClassVar[bool] = True

    def reads(self) -> tuple[str, ...]:
        """Return the history's rows ``[B, L]``."""
        return ("history_row",)

    def totals(self, arrays: Mapping[str, Array], history: list[int]) -> dict[int, float]:
        """Return item row → its float64 sum over a history, in plain Python."""
        raise NotImplementedError

    def reference(
        self, arrays: Mapping[str, Array], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return the allowed items with the largest sums above zero, ties by row."""
        totals = self.totals(arrays, user["history_row"].tolist())
        scored = [(row, float(np.float32(total))) for row, total in totals.items() if allowed[row]]
        return sorted([pair for pair in scored if pair[1] > 0], key=lambda pair: (-pair[1], pair[0]))[:count]

    def reference_score(self, arrays: Mapping[str, Array], user: UserTensors, row: int) -> float:
        """Return one item's sum, rounded to float32; 0 if the history gives it none."""
        return float(np.float32(self.totals(arrays, user["history_row"].tolist()).get(row, 0.0)))


class OpenedSums:
    """Base of an opened source of that kind.

    Parameters
    ----------
    items
        I, the pad row.
    """

    def __init__(self, items: int) -> None:
        self._items = items

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the ``count`` largest sums above zero that the mask allows."""
        return best_allowed(*self.sums(arrays["history_row"]), mask, self._items, count)

    def related(self, rows: Rows, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the candidates of users whose history is the given items."""
        return self.candidates({"history_row": rows}, mask, count)

    def score(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return the sums ``[B, M]`` of any items; -inf for the pad row."""
        return sums_of(*self.sums(arrays["history_row"]), rows, self._items)

    def sums(self, history: Rows) -> tuple[Rows, Scores]:
        """Return ascending cells ``[n]`` of a table B × (I + 1) and their sums, for histories ``[B, L]``."""
        raise NotImplementedError
