"""``epsilon_slot``: one position of the answer sometimes goes to a random candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..problems import COUNT, SHARE, Problem, out_of_range
from ..ranked.order import Rows, Scores
from ..spec import Arrays
from .chance import SEED, SEEDS, plain_uniform, uniform
from .per_request import Amount, PerRequest, amount_problems, batch_amount, user_amount
from .placing import Line
from .plain import line_of, scores_in_order

_WHETHER, _WHICH = 2, 3


class EpsilonSlot(Settings, frozen=True, tag="epsilon_slot"):
    r"""With probability ε, draw the item of ``place`` from the m candidates that are not placed before it.

    This is ε-greedy (Sutton and Barto 2018, "Reinforcement learning", 2.2) for one place of the answer. The
    item placed there has the propensity :math:`\varepsilon / m`, plus :math:`1 - \varepsilon` if it would be
    there without exploration. A request without a ``seed`` explores nothing.

    Parameters
    ----------
    place
        The place; 1 is the top.
    share
        ε, 0 to 1.
    seed
        The seed that requests send: a whole number, which should differ from request to request.
    """

    place: int = 10
    share: Amount = 0.1
    seed: PerRequest = SEED

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ("explored",)

    def problems(self) -> list[Problem]:
        """Return an invalid place, share or seed."""
        amounts = amount_problems(self, {"share": SHARE, "seed": SEEDS}, optional=("seed",))
        return [*out_of_range(self, {"place": COUNT}), *amounts]

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def open(self, columns: Mapping[str, Column]) -> Slot:
        """Return the step."""
        return Slot(self)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores, reassigned to the candidates in the new order."""
        seed, line = self.seed.of_user(user), line_of(scores, candidates)
        left = [at for at in line[self.place - 1 :] if scores[at] != float("-inf")]
        if seed is None or not left or plain_uniform(seed, 0, _WHETHER) >= user_amount(self.share, user):
            return list(scores)
        drawn = left[int(plain_uniform(seed, 0, _WHICH) * len(left))]
        before = line[: self.place - 1]
        return scores_in_order([*before, drawn, *(at for at in line if at not in (*before, drawn))], scores)


class Slot:
    """The opened step."""

    def __init__(self, kind: EpsilonSlot) -> None:
        self._kind, self._before = kind, kind.place - 1

    def _explores(self, seeds: npt.NDArray[np.float64], arrays: Arrays) -> npt.NDArray[np.bool_]:
        """Return ``[B, 1]``: which users explore, if there is something to draw from."""
        numbers = uniform(seeds, np.zeros(seeds.shape, np.int64), _WHETHER)
        explores: npt.NDArray[np.bool_] = numbers < batch_amount(self._kind.share, arrays)
        return explores & ~np.isnan(seeds)

    def _draw(self, line: Line, arrays: Arrays) -> tuple[npt.NDArray[np.bool_], Rows, Rows]:
        """Return ``[B, 1]`` each: which users explore, the drawn place in the line, and m."""
        seeds, left = self._kind.seed.in_batch(arrays), np.count_nonzero(line.real, axis=1)[:, None]
        left = left - self._before
        nobody = np.zeros(left.shape, np.int64)
        drawn = self._before + (uniform(seeds, nobody, _WHICH) * left).astype(np.int64)
        return self._explores(seeds, arrays) & (left > 0), drawn, left

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, npt.NDArray[np.int32]]:
        """Move the drawn item up to the place."""
        seeds, why = self._kind.seed.in_batch(arrays), np.zeros(scores.shape, np.int32)
        if not self._explores(seeds, arrays).any():
            return scores, why
        line = Line.of(scores, arrays)
        explores, drawn, _ = self._draw(line, arrays)
        if not explores.any():
            return scores, why
        width = scores.shape[1]
        before = np.broadcast_to(np.arange(min(self._before, width)), (len(scores), min(self._before, width)))
        new = line.placed(np.where(explores, np.concatenate([before, drawn], axis=1), width))
        user = np.flatnonzero(explores)
        why[user, line.order[user, drawn[user, 0]]] = 1
        return np.where(explores, new, scores), why

    def propensity(self, before: Scores, after: Scores, arrays: Arrays) -> Scores:
        """Return ``[B, K]``, the probability of the item at the place; 1 for all others."""
        line, out = Line.of(before, arrays), np.ones(before.shape, np.float32)
        explores, drawn, left = self._draw(line, arrays)
        share = np.broadcast_to(batch_amount(self._kind.share, arrays), left.shape)
        stands = np.where(explores, drawn, self._before)
        chance = share / np.maximum(left, 1) + (1 - share) * (stands == self._before)
        user = np.flatnonzero(~np.isnan(self._kind.seed.in_batch(arrays))[:, 0] & (left[:, 0] > 0))
        out[user, line.order[user, stands[user, 0]]] = chance[user, 0]
        return out
