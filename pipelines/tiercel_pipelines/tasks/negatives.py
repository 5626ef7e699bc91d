r"""Where the negatives of a batch come from, which positives take part, and how much each weighs.

Negatives are the batch's other items, items drawn from the whole catalogue for each batch, or both (Yang et
al. 2020, "Mixed negative sampling for learning two-tower neural networks in recommendations"). Drawn ones
come with chance :math:`r_i \propto n_i^\alpha`, n counting interactions: evenly with α = 0, as popular as
they are with 1, word2vec's between (Mikolov et al. 2013, "Distributed representations of words and
phrases", α = ¾). A draw of a batch with D items in it and n drawn ones is item i with chance

.. math:: q_i = \frac{D\, p_i + n\, r_i}{D + n}, \qquad p_i = \frac{n_i}{\sum_j n_j}

which is what the logQ correction divides by.

Popular items are also held back among the positives: each interaction takes part in an epoch with chance
:math:`\min(1, \sqrt{t / p_i})` (Mikolov et al. 2013), or weighs :math:`n_i^{-\gamma}`, its inverse
propensity by a power law (Yang et al. 2018, "Unbiased offline recommender evaluation for
missing-not-at-random feedback").
"""

from __future__ import annotations

import msgspec
import numpy as np

from tiercel_serving.problems import AT_LEAST_0, COUNT_OR_0, SHARE, Problem, out_of_range

from ..arrays.lists import FloatArray
from ..arrays.pairs import IntArray, Pairs


class Negatives(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the negatives of a batch come from.

    Parameters
    ----------
    in_batch
        Whether the batch's other items are negatives.
    drawn
        n, how many more are drawn from the whole catalogue for each batch; every user of it shares them.
    popularity_exponent
        α of the drawn ones: 0 draws evenly, 1 as often as an item is in the interactions.
    """

    in_batch: bool = True
    drawn: int = 0
    popularity_exponent: float = 0.0

    def problems(self) -> list[Problem]:
        """Return numbers out of their ranges, and that there are no negatives at all."""
        ranges = {"drawn": COUNT_OR_0, "popularity_exponent": AT_LEAST_0}
        wrong = list(out_of_range(self, ranges))
        if not wrong and not self.in_batch and not self.drawn:
            problem = "there are no negatives: in_batch is False, and none are drawn"
            wrong.append(Problem("drawn", problem, "draw some, such as 1024, or set in_batch=True"))
        return wrong


class Debiasing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How popular items are held back among the positives.

    Parameters
    ----------
    subsampling
        t: an item with a larger share of the interactions takes part in an epoch with chance √(t / share);
        0 leaves out nothing.
    weight_exponent
        γ: a positive weighs its item's number of interactions to the power of -γ, the mean being 1; 0 weighs
        all alike.
    """

    subsampling: float = 0.0
    weight_exponent: float = 0.0

    def problems(self) -> list[Problem]:
        """Return numbers out of their ranges."""
        return list(out_of_range(self, {"subsampling": SHARE, "weight_exponent": AT_LEAST_0}))

    def weights(self, pairs: Pairs, n_items: int) -> FloatArray:
        """Return what a positive of each item ``[I]`` weighs, float32; the interactions' mean is 1."""
        counts = np.maximum(np.bincount(pairs.items, minlength=n_items), 1).astype(np.float64)
        weights = counts**-self.weight_exponent
        mean = float(weights[pairs.items].mean()) if len(pairs) else 1.0
        return (weights / mean).astype(np.float32)

    def left_out(self, pairs: Pairs, n_items: int, rng: np.random.Generator) -> IntArray | None:
        """Return the positions of the interactions that an epoch leaves out; None is the common nothing."""
        if not self.subsampling:
            return None
        share = np.bincount(pairs.items, minlength=n_items)[pairs.items] / max(len(pairs), 1)
        return np.flatnonzero(rng.random(len(pairs)) >= np.sqrt(self.subsampling / share))


class Draws:
    """The negatives of batches over some interactions with a catalogue of ``n_items``."""

    def __init__(self, settings: Negatives, pairs: Pairs, n_items: int) -> None:
        self._settings = settings
        counts = np.bincount(pairs.items, minlength=n_items)
        self._share = np.maximum(counts, 1) / max(len(pairs), 1)
        chance = counts.astype(np.float64) ** settings.popularity_exponent
        self._chance = chance / max(chance.sum(), 1e-9)
        self._ends = np.cumsum(self._chance)

    def draw(self, rng: np.random.Generator) -> IntArray:
        """Return the drawn negatives ``[n]`` of one batch, catalogue rows; an item may come twice."""
        at = rng.random(self._settings.drawn) * self._ends[-1]
        drawn: IntArray = np.minimum(np.searchsorted(self._ends, at, side="right"), len(self._ends) - 1)
        return drawn

    def log_q(self, items: IntArray, in_batch: int) -> FloatArray:
        """Return the log probability ``[C]`` that a draw of a batch is each item, ``in_batch`` being D."""
        drawn = self._settings.drawn
        if not drawn:
            return np.asarray(np.log(self._share[items]), np.float32)
        many = in_batch if self._settings.in_batch else 0
        mixed = (many * self._share[items] + drawn * self._chance[items]) / max(many + drawn, 1)
        return np.asarray(np.log(np.maximum(mixed, 1e-12)), np.float32)
