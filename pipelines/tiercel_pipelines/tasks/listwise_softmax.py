"""``listwise_softmax``: in each list, the items that a user picked against those that the user did not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tiercel_serving.kinds import Settings
from tiercel_serving.problems import COUNT, SHARE, Problem, Range, out_of_range

from ..arrays.counted import cut
from ..arrays.lists import IMPLICIT, RankingLists
from ..arrays.pairs import Array, BoolArray, left_align
from ..errors import TrainingError
from .table import MASKED

#: Ranges of the settings that define how lists are made.
LIST_RANGES: Mapping[str, Range] = {
    "folds": Range(2, whole=True),
    "negatives": COUNT,
    "hard_negatives": SHARE,
    "context_dropout": SHARE,
    "batch_size": Range(2, whole=True),
}


class ListwiseSoftmax(Settings, frozen=True, tag="listwise_softmax"):
    """Each positive of a list against the list's negatives; see :func:`listwise_softmax`.

    Parameters
    ----------
    target
        What it learns: ``interaction`` (a user picked the item; items that the user did not pick are the
        negatives), or a column of the interactions between 0 and 1, which weights the positives.
    folds
        Number of folds of the training part, at least 2. The ranker learns from interactions that retrieval
        did not know, so the retrieval models are trained without each fold in turn. More folds take more
        time, and give histories closer to those in serving.
    negatives
        Negatives in the list of a user.
    hard_negatives
        Share of the negatives drawn from the ``serving.kept`` best candidates, the others from all
        candidates.
    context_dropout
        Share of the lists whose context is hidden in training.
    batch_size
        Users in a batch.
    """

    target: str = IMPLICIT
    folds: int = 3
    negatives: int = 100
    hard_negatives: float = 0.9
    context_dropout: float = 0.3
    batch_size: int = 64

    tasks: ClassVar[int] = 1

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and for a missing target."""
        wrong = list(out_of_range(self, LIST_RANGES))
        if not self.target:
            remedy = f"set target={IMPLICIT!r} (which items a user picked), or a column of the interactions"
            wrong.append(Problem("target", f"expected a target, got {self.target!r}", remedy))
        return wrong

    def start(self, lists: RankingLists, kept: int, n_items: int) -> SampledLists:
        """Return the task applied to some lists."""
        return SampledLists(self, lists, kept, n_items)


class SampledLists:
    """The task applied to some lists; a ranker sees their first ``kept`` items, and ``n_items`` is padding.

    Raises
    ------
    TrainingError
        There are positives and no negatives.
    """

    def __init__(self, settings: Any, lists: RankingLists, kept: int, n_items: int) -> None:
        self._settings, self._lists, self._kept, self._pad = settings, lists, kept, n_items
        self._useful = np.flatnonzero((lists.weights[:, :kept] > 0).any(axis=1))
        if len(self._useful) and not ((lists.weights <= 0) & (lists.rows != n_items)).any():
            raise TrainingError(
                f"ranking: none of the {len(lists)} lists has a candidate that its user did not pick, so "
                "there is nothing to tell apart; raise serving.candidates and kept, or leave the ranker out"
            )

    def epoch(self, rng: np.random.Generator) -> Iterator[RankingLists]:
        """Return batches of the lists with a positive, in random order, each with its sampled candidates."""
        batches = cut(rng.permutation(self._useful), self._settings.batch_size)
        return batches.through(lambda some: self._sampled(self._lists.take(some), rng))

    def _sampled(self, lists: RankingLists, rng: np.random.Generator) -> RankingLists:
        settings, pad = self._settings, self._pad
        chosen = sample_candidates(lists, self._kept, settings.negatives, settings.hard_negatives, pad, rng)
        width = int(chosen.sum(axis=1).max())
        places = np.broadcast_to(np.arange(chosen.shape[1]), chosen.shape)
        # One more column of padding, for the unused positions of shorter rows.
        place = left_align(places, chosen, width, chosen.shape[1])

        def taken(array: Array, fill: int = 0) -> Array:
            return np.take_along_axis(np.pad(array, ((0, 0), (0, 1)), constant_values=fill), place, axis=1)

        targets = None
        if lists.targets is not None:
            targets = np.stack([taken(one) for one in np.moveaxis(lists.targets, 2, 0)], axis=2)
        return replace(
            lists,
            rows=taken(lists.rows, pad),
            scores=taken(lists.scores),
            sources=taken(lists.sources),
            weights=taken(lists.weights),
            targets=targets,
        )

    def loss(self, scores: Tensor, batch: RankingLists) -> Tensor:
        """Return the listwise softmax of the first task's scores."""
        real = torch.from_numpy(batch.rows != self._pad)
        return listwise_softmax(scores[:, :, 0], torch.from_numpy(batch.weights), real)


def sample_candidates(
    lists: RankingLists, kept: int, negatives: int, hard: float, n_items: int, rng: np.random.Generator
) -> BoolArray:
    """Choose which candidates of each list take part in one training step: ``[B, N]`` True for those.

    The best candidate always takes part, since scores are seen relative to its score, and so does every
    positive among the first ``kept``. Of the ``negatives`` of each list, the share ``hard`` is drawn from the
    first ``kept`` candidates, which are those that the ranker has to order, and the others from all N.
    """
    width = lists.rows.shape[1]
    real = lists.rows != n_items
    near = np.arange(width) < kept
    positive = (lists.weights > 0) & real & near
    free = real & ~positive & (lists.weights <= 0)
    drawn = rng.random(lists.rows.shape)
    wanted = round(negatives * hard)
    first = _lowest(np.where(free & near, drawn, np.inf), wanted)
    second = _lowest(np.where(free & ~first, drawn, np.inf), negatives - wanted)
    best = real & (np.arange(width) == 0)
    return np.asarray(positive | first | second | best)


def _lowest(values: npt.NDArray[np.float64], count: int) -> BoolArray:
    """Mark the ``count`` lowest finite values of each row."""
    if count <= 0:
        return np.zeros(values.shape, dtype=np.bool_)
    count = min(count, values.shape[1])
    limit = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
    return np.asarray((values <= limit) & np.isfinite(values))


def listwise_softmax(scores: Tensor, weights: Tensor, real: Tensor) -> Tensor:
    r"""Return the softmax of each positive against its list's negatives, averaged over lists.

    For a list with positives ``P`` and negatives ``N``,

    .. math:: \frac{1}{\sum_P w_p} \sum_{p \in P} -w_p \log \frac{e^{s_p}}{e^{s_p} + \sum_{n \in N} e^{s_n}}

    so positives do not compete with each other. Lists without a positive do not count.

    Parameters
    ----------
    scores
        ``[B, K]``.
    weights
        ``[B, K]`` weight of each positive, 0 for negatives.
    real
        ``[B, K]`` boolean: False is padding.
    """
    positive = weights > 0
    negatives = scores.masked_fill(positive | ~real, MASKED)
    rest = torch.logsumexp(negatives, dim=1, keepdim=True)
    losses = (torch.logaddexp(scores, rest.expand_as(scores)) - scores) * weights
    total = weights.sum(dim=1)
    lists = losses.sum(dim=1) / total.clamp(min=1e-9)
    return lists.sum() / (total > 0).sum().clamp(min=1)
