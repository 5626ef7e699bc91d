"""``score_floor``: drops items below a score, instead of filling the answer with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..problems import Problem, Range
from ..ranked.order import Scores
from ..spec import Arrays
from .per_request import Amount, amount_problems, batch_amount, user_amount

_ANY = Range(float("-inf"), open_low=True, high=float("inf"), open_high=True)


class ScoreFloor(Settings, frozen=True, tag="score_floor"):
    """Drop every item whose score after the previous steps is below ``least``.

    Parameters
    ----------
    least
        The lowest score that is kept.
    """

    least: Amount

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ("its score is below the floor",)

    def problems(self) -> list[Problem]:
        """Return a floor that is not a finite number."""
        return list(amount_problems(self, {"least": _ANY}))

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def open(self, columns: Mapping[str, Column]) -> Floor:
        """Return the step."""
        return Floor(self.least)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores; -inf for those below the floor."""
        least = user_amount(self.least, user)
        return [score if score >= least else float("-inf") for score in scores]


class Floor:
    """The opened step."""

    def __init__(self, least: Amount) -> None:
        self.least = least

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, npt.NDArray[np.int32]]:
        """Drop items below the floor."""
        below = scores < batch_amount(self.least, arrays)
        why = (below & (scores > -np.inf)).astype(np.int32)
        return np.where(below, np.float32(-np.inf), scores), why
