"""``gumbel_top_k``: exploration that draws random rankings, in which better items tend to come first.

Kool, van Hoof and Welling 2019, "Stochastic beams and where to find them: the Gumbel-top-k trick".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..native.order import put_by_draw
from ..problems import POSITIVE, Problem
from ..ranked.order import Rows, Scores, order_by_score, pick, sorted_scores
from ..spec import Arrays
from .chance import SEED, SEEDS, plain_uniform, uniform
from .per_request import Amount, PerRequest, amount_problems, batch_amount, user_amount
from .placing import in_order, unsorted
from .plain import scores_in_order

_DRAW = 1


class GumbelTopK(Settings, frozen=True, tag="gumbel_top_k"):
    r"""Order by :math:`s_i + T g_i` with :math:`g_i = -\ln(-\ln u_i)`: a draw from Plackett-Luce.

    Each place goes to one of the remaining items with probability proportional to :math:`e^{s/T}`; that
    probability is the item's propensity. A request without a ``seed`` gets the order of the scores.

    Parameters
    ----------
    temperature
        T, above 0; the lower it is, the closer the draw is to the order of the scores.
    seed
        The seed that requests send: a whole number, which should differ from request to request.
    """

    temperature: Amount = 0.1
    seed: PerRequest = SEED

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return a temperature that is not above 0, and an invalid seed."""
        amounts = {"temperature": POSITIVE, "seed": SEEDS}
        return list(amount_problems(self, amounts, optional=("seed",)))

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def open(self, columns: Mapping[str, Column]) -> PlackettLuce:
        """Return the step."""
        return PlackettLuce(self)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores, reassigned to the candidates in the new order."""
        seed, temperature = self.seed.of_user(user), user_amount(self.temperature, user)
        if seed is None:
            return list(scores)
        drawn = []
        for score, candidate in zip(scores, candidates, strict=True):
            noise = -log(-log(plain_uniform(seed, candidate["row"], _DRAW)))
            drawn.append(float(np.float32(score + temperature * noise)))
        order = sorted(range(len(drawn)), key=lambda at: (-drawn[at], candidates[at]["row"]))
        return scores_in_order(order, scores)


class PlackettLuce:
    """The opened step."""

    def __init__(self, kind: GumbelTopK) -> None:
        self._kind = kind

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Add the noise, and reassign the scores in the drawn order."""
        seeds, rows = self._kind.seed.in_batch(arrays), arrays["kept_row"]
        without = np.isnan(seeds)
        # For one flag per user, a list is faster than an array reduction.
        if [False] not in (said := without.tolist()):
            return scores, None
        noise = uniform(seeds, rows, _DRAW)
        np.log(noise, noise)
        np.negative(noise, noise)
        np.log(noise, noise)
        new = _drawn(scores, noise, batch_amount(self._kind.temperature, arrays), rows)
        return (np.where(without, scores, new) if [True] in said else new), None

    def propensity(self, before: Scores, after: Scores, arrays: Arrays) -> Scores:
        """Return ``[B, K]``, each item's probability of its place given those before it; 1 without a seed."""
        seeds = self._kind.seed.in_batch(arrays)
        order = order_by_score(after, arrays["kept_row"])
        logits = pick(before, order) / batch_amount(self._kind.temperature, arrays)
        with np.errstate(invalid="ignore"):
            left = np.logaddexp.accumulate(logits[:, ::-1], axis=1)[:, ::-1]
            chances = np.exp(logits - left)
        out = unsorted(np.nan_to_num(chances, nan=1.0).astype(np.float32), order)
        return np.where(np.isnan(seeds), np.float32(1), out)


def _drawn(
    scores: Scores, noise: npt.NDArray[np.float64], temperature: npt.NDArray[np.float64], rows: Rows
) -> Scores:
    """Return the scores, reassigned in the order of score minus noise times temperature."""
    new = put_by_draw(scores, noise, temperature, rows)
    if new is not None:
        return new
    drawn = (scores - noise * temperature).astype(np.float32)
    return in_order(sorted_scores(scores), order_by_score(drawn, rows))
