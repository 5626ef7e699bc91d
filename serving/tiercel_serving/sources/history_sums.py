"""What sources share that add up what a user's history says for each item: settings, and plain reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..kinds import Settings
from ..spec import Array
from .table import UserTensors


class HistorySums(Settings, frozen=True):
    """Base of the settings of such a source.

    An item whose sum isn't above zero is no candidate: the history says nothing for it.

    Parameters
    ----------
    name
        What ``--explain`` calls it; the retrieval model of this name feeds it.
    quota
        How many candidates it may give; None is whatever the other quotas leave.
    """

    name: str
    quota: int | None = None

    personal: ClassVar[bool] = True

    def reads(self) -> tuple[str, ...]:
        """Return the history's rows ``[B, L]``."""
        return ("history_row",)

    def totals(self, arrays: Mapping[str, Array], history: list[int]) -> dict[int, float]:
        """Return item → its sum for a history, in float64, in plain Python."""
        raise NotImplementedError

    def reference(
        self, arrays: Mapping[str, Array], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return the allowed items with the largest sums above zero, ties by row."""
        totals = self.totals(arrays, user["history_row"].tolist())
        scored = [(row, float(np.float32(total))) for row, total in totals.items() if allowed[row]]
        return sorted([pair for pair in scored if pair[1] > 0], key=lambda pair: (-pair[1], pair[0]))[:count]

    def reference_score(self, arrays: Mapping[str, Array], user: UserTensors, row: int) -> float:
        """Return one item's sum."""
        return float(np.float32(self.totals(arrays, user["history_row"].tolist()).get(row, 0.0)))
