r"""Where the negatives of a batch come from, which positives take part, and how much each weighs.

Negatives are the batch's other items, items drawn from the whole catalogue for each batch, or both (Yang et
al. 2020, "Mixed negative sampling for learning two-tower neural networks in recommendations"). An item is
drawn with probability :math:`r_i \propto n_i^\alpha`, where n counts interactions: uniformly with α = 0, in
proportion to popularity with α = 1; word2vec uses α = ¾ (Mikolov et al. 2013, "Distributed representations of
words and phrases"). A negative of a batch with D interactions and n drawn items is item i with probability

.. math:: q_i = \frac{D\, p_i + n\, r_i}{D + n}, \qquad p_i = \frac{n_i}{\sum_j n_j}

by which the logQ correction divides.

Popular items can also count less among the positives: each interaction takes part in an epoch with
probability :math:`\min(1, \sqrt{t / p_i})` (Mikolov et al. 2013), or has the weight :math:`n_i^{-\gamma}`,
its inverse propensity by a power law (Yang et al. 2018, "Unbiased offline recommender evaluation for
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
        n: number of items drawn from the whole catalogue for each batch, shared by all its users.
    popularity_exponent
        α of the drawn items: 0 draws uniformly, 1 in proportion to an item's interactions.
    """

    in_batch: bool = True
    drawn: int = 0
    popularity_exponent: float = 0.0

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and if there are no negatives at all."""
        ranges = {"drawn": COUNT_OR_0, "popularity_exponent": AT_LEAST_0}
        wrong = list(out_of_range(self, ranges))
        if not wrong and not self.in_batch and not self.drawn:
            problem = "there are no negatives: in_batch is False, and none are drawn"
            wrong.append(Problem("drawn", problem, "draw some, such as 1024, or set in_batch=True"))
        return wrong


class Debiasing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How popular items count less among the positives.

    Parameters
    ----------
    subsampling
        t: an interaction whose item has a larger share of all interactions takes part in an epoch with
        probability √(t / share); 0 leaves out nothing.
    weight_exponent
        γ: a positive has the weight of its item's number of interactions to the power of -γ, scaled to a mean
        of 1; 0 weights all alike.
    """

    subsampling: float = 0.0
    weight_exponent: float = 0.0

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range."""
        return list(out_of_range(self, {"subsampling": SHARE, "weight_exponent": AT_LEAST_0}))

    def weights(self, pairs: Pairs, n_items: int) -> FloatArray:
        """Return the weight of a positive of each item, ``[I]`` float32; the mean over interactions is 1."""
        counts = np.maximum(np.bincount(pairs.items, minlength=n_items), 1).astype(np.float64)
        weights = counts**-self.weight_exponent
        mean = float(weights[pairs.items].mean()) if len(pairs) else 1.0
        return (weights / mean).astype(np.float32)

    def left_out(self, pairs: Pairs, n_items: int, rng: np.random.Generator) -> IntArray | None:
        """Return the positions of the interactions that an epoch leaves out; None without subsampling."""
        if not self.subsampling:
            return None
        share = np.bincount(pairs.items, minlength=n_items)[pairs.items] / max(len(pairs), 1)
        return np.flatnonzero(rng.random(len(pairs)) >= np.sqrt(self.subsampling / share))


class Draws:
    """Draws the negatives of batches over some interactions with a catalogue of ``n_items``."""

    def __init__(self, settings: Negatives, pairs: Pairs, n_items: int) -> None:
        self._settings = settings
        counts = np.bincount(pairs.items, minlength=n_items)
        self._share = np.maximum(counts, 1) / max(len(pairs), 1)
        chance = counts.astype(np.float64) ** settings.popularity_exponent
        self._chance = chance / max(chance.sum(), 1e-9)
        self._ends = np.cumsum(self._chance)

    def draw(self, rng: np.random.Generator) -> IntArray:
        """Return the drawn negatives ``[n]`` of one batch, as catalogue rows; an item may occur twice."""
        at = rng.random(self._settings.drawn) * self._ends[-1]
        drawn: IntArray = np.minimum(np.searchsorted(self._ends, at, side="right"), len(self._ends) - 1)
        return drawn

    def log_q(self, items: IntArray, in_batch: int) -> FloatArray:
        """Return the log probability ``[C]`` that a negative of a batch is each item; ``in_batch`` is D."""
        drawn = self._settings.drawn
        if not drawn:
            return np.asarray(np.log(self._share[items]), np.float32)
        many = in_batch if self._settings.in_batch else 0
        mixed = (many * self._share[items] + drawn * self._chance[items]) / max(many + drawn, 1)
        return np.asarray(np.log(np.maximum(mixed, 1e-12)), np.float32)
