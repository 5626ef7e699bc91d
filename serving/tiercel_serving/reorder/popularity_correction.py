"""``popularity_correction``: raises unpopular items, to correct the model's popularity bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..problems import AT_LEAST_0, Problem
from ..ranked.order import Scores
from ..spec import Arrays
from .inputs import of_source
from .numbers import holds_no_numbers, numbers_of, plain_number
from .per_request import Amount, amount_problems, batch_amount, user_amount


class PopularityCorrection(Settings, frozen=True, tag="popularity_correction"):
    r"""Score by :math:`s - \tau \ln(\pi_i / \max \pi)`: logit adjustment by an item's popularity.

    This is the post-hoc form of Menon et al. 2021, "Long-tail learning via logit adjustment". The most
    popular item keeps its score. An item of unknown or zero popularity counts as the least popular item with
    any.

    Parameters
    ----------
    source
        A source that is one list of popular items, such as ``popular``.
    column
        Or a raw item column with one number per item: its number of interactions.
    strength
        τ: 0 changes nothing, 1 removes the whole prior from a softmax model's scores.
    """

    source: str = ""
    column: str = ""
    strength: Amount = 0.1

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()
    wants: ClassVar[str] = "scores"

    def problems(self) -> list[Problem]:
        """Return an invalid strength, or that not exactly one of source and column is set."""
        wrong = list(amount_problems(self, {"strength": AT_LEAST_0}))
        if bool(self.source) == bool(self.column):
            problem = "expected a source or a column, one of both"
            wrong.append(Problem("column", problem, "name source= or column="))
        return wrong

    def columns(self) -> tuple[str, ...]:
        """Return the column, if it is set."""
        return (self.column,) if self.column else ()

    def sources(self) -> tuple[str, ...]:
        """Return the source, if it is set."""
        return (self.source,) if self.source else ()

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return a column that does not hold one number per item."""
        return [problem for name in self.columns() for problem in holds_no_numbers(columns[name], name)]

    def open(self, columns: Mapping[str, Column]) -> Correction:
        """Return the step."""
        numbers = numbers_of(columns[self.column or of_source(self.source)])
        known = numbers > 0
        least, most = numbers.min(where=known, initial=np.inf), numbers.max(where=known, initial=0)
        if not most:
            return Correction(np.zeros(len(numbers), np.float64), self.strength)
        return Correction(-np.log(np.where(known, numbers, least) / most), self.strength)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the adjusted scores."""
        name, strength = self.column or of_source(self.source), user_amount(self.strength, user)
        most, least = user["greatest"](name), user["least_positive"](name)
        new = []
        for score, candidate in zip(scores, candidates, strict=True):
            number = plain_number(candidate[name])
            share = 1.0 if not most > 0 else (number if number and number > 0 else least) / most
            new.append(float(np.float32(np.float64(score) - strength * log(share))))
        return new


class Correction:
    """Each item's gain ``[I + 1]`` at a strength of 1, float64."""

    def __init__(self, gains: npt.NDArray[np.float64], strength: Amount) -> None:
        self.gains, self.strength = gains, strength

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Add each item's gain."""
        gains = batch_amount(self.strength, arrays) * self.gains.take(arrays["kept_row"])
        return (scores + gains).astype(np.float32), None
