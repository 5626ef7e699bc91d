r"""``multi_task``: several targets at once, each with its own score of a candidate.

.. math:: L = \sum_t w_t L_t

with constant weights :math:`w_t` (Caruana 1997, "Multitask learning", section 2). All targets learn from the
same lists; each has its own column of the interactions, labels and loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tiercel_serving.kinds import Settings
from tiercel_serving.problems import POSITIVE, Problem, choose, named_twice, out_of_range

from ..arrays.lists import IMPLICIT, RankingLists
from ..arrays.pairs import Array, IntArray
from ..errors import TrainingError
from .listwise_softmax import LIST_RANGES, SampledLists, listwise_softmax


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One target of a multi-task ranker: a column of ``rank_score``.

    Parameters
    ----------
    name
        Name of the score.
    column
        ``interaction`` (a user picked the item), or a column of the interactions.
    at_least
        An interaction is positive if its column holds at least this value. None takes the column's own value,
        which must be between 0 and 1 for ``softmax`` and ``logistic``.
    loss
        ``softmax``: in each list the positive candidates against the others. ``logistic``: each candidate by
        itself; its score is a log-odds. ``squared``: the value of a picked candidate, in standard deviations
        from the mean over the training lists; candidates that were not picked have no value.
    weight
        Weight of its loss in the sum.
    """

    name: str
    column: str = IMPLICIT
    at_least: float | None = None
    loss: Literal["softmax", "logistic", "squared"] = "softmax"
    weight: float = 1.0

    @property
    def ranks(self) -> bool:
        """Whether its score orders candidates, and so starts from retrieval's score."""
        return self.loss != "squared"

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and for settings that exclude each other."""
        wrong = list(out_of_range(self, {"weight": POSITIVE}))
        if not self.name:
            wrong.append(Problem("name", "expected a name, got none", "call it after what it is, as 'liked'"))
        if self.column == IMPLICIT and (self.at_least is not None or self.loss == "squared"):
            problem = f"{IMPLICIT!r} is the same for everything that was picked"
            wrong.append(Problem("column", problem, "name a column of the interactions"))
        if self.at_least is not None and self.loss == "squared":
            problem = f"{self.at_least!r}, but 'squared' learns the value itself"
            wrong.append(Problem("at_least", problem, "leave it out, or take loss='logistic'"))
        return wrong

    def labels(self, values: Array) -> npt.NDArray[np.float32]:
        """Return float32 labels ``[…]`` for a column's values: 0 to 1, or the values; NaN is no label."""
        if self.at_least is not None:
            values = np.where(np.isnan(values), 0.0, values >= self.at_least)
        elif self.ranks:
            values = np.nan_to_num(values)
        return np.asarray(values, np.float32)

    def unfit(self, values: Array) -> list[Problem]:
        """Return why the values ``[n]`` of a column of the interactions can't be learned."""
        labels = self.labels(values)
        present = labels[~np.isnan(labels)]
        if self.ranks and present.size and not 0 <= present.min() <= present.max() <= 1:
            problem = f"{self.column!r} is not everywhere a number between 0 and 1"
            return [Problem("column", problem, "say from which value on it counts: at_least=…")]
        if np.isinf(present).any():
            problem = f"{int(np.isinf(present).sum())} of {len(values)} {self.column!r} are infinite"
            return [Problem("column", problem, "drop those interactions, or make them null")]
        if present.size and present.min() < present.max():
            return []
        came = f"{present[0]:g} for every interaction" if present.size else "null everywhere"
        remedy = "change at_least, or leave the target out" if self.at_least is not None else "leave it out"
        return [Problem("column", f"the target {self.name!r} is constant: {came}", remedy)]


class MultiTask(Settings, frozen=True, tag="multi_task"):
    """Several targets, each with its own score; see :class:`Target`.

    Parameters
    ----------
    targets
        The targets, in the order of the scores. Without a ``WeightedSum`` the first orders the answer.
    folds, negatives, hard_negatives, context_dropout, batch_size
        As for :class:`~.listwise_softmax.ListwiseSoftmax`.
    """

    targets: tuple[Target, ...]
    folds: int = 3
    negatives: int = 100
    hard_negatives: float = 0.9
    context_dropout: float = 0.3
    batch_size: int = 64

    @property
    def tasks(self) -> int:
        """T, the number of targets."""
        return len(self.targets)

    @property
    def target(self) -> str:
        """``interaction``: every one is a positive of the lists, regardless of its columns."""
        return IMPLICIT

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the scores."""
        return tuple(target.name for target in self.targets)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The column of each score."""
        return tuple(target.column for target in self.targets)

    @property
    def ranks(self) -> tuple[bool, ...]:
        """Whether each score starts from retrieval's score."""
        return tuple(target.ranks for target in self.targets)

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and for missing, wrong or duplicate targets."""
        wrong = list(out_of_range(self, LIST_RANGES))
        if not self.targets:
            remedy = "write targets=(Target('watched'), Target('liked', column='rating', at_least=4))"
            return [*wrong, Problem("targets", "expected targets, got none", remedy)]
        for place, target in enumerate(self.targets):
            wrong += [problem.within(f"targets[{place}]") for problem in target.problems()]
        if not wrong:
            wrong += named_twice(self.names, "targets", "targets")
        return wrong

    def unfit(self, columns: Mapping[str, Array | None]) -> list[Problem]:
        """Return a problem for each target whose column is missing, not numeric, or not learnable.

        Parameters
        ----------
        columns
            The interactions' columns by name: ``[n]`` float64, None for a column that is not numeric.
        """
        wrong = []
        for place, target in enumerate(self.targets):
            if target.column == IMPLICIT:
                continue
            values = columns.get(target.column)
            if target.column not in columns:
                problem = f"the interactions have no column {target.column!r}"
                found = [Problem("column", problem, choose(target.column, [IMPLICIT, *columns]))]
            elif values is None:
                problem = f"{target.column!r} holds no numbers"
                found = [Problem("column", problem, "name a column of numbers, or prepare one")]
            else:
                found = target.unfit(values)
            wrong += [problem.within(f"targets[{place}]") for problem in found]
        return wrong

    def start(self, lists: RankingLists, kept: int, n_items: int) -> SeveralTargets:
        """Return the task applied to some lists.

        Raises
        ------
        TrainingError
            A target is constant over the lists, or there are positives and no negatives.
        """
        return SeveralTargets(self, lists, kept, n_items)


@dataclass(frozen=True)
class TargetLists(RankingLists):
    """Lists of one batch, with the counts ``[T]`` that each target's loss averages over.

    Every share of the batch has the counts of the whole batch, since each target counts something else.
    """

    counts: IntArray | None = None

    @property
    def mass(self) -> float:
        """1, since the loss of a share is its part of the whole batch's loss."""
        return 1.0


class SeveralTargets(SampledLists):
    """The task applied to some lists, whose ``targets`` must not be None."""

    def __init__(self, settings: MultiTask, lists: RankingLists, kept: int, n_items: int) -> None:
        super().__init__(settings, lists, kept, n_items)
        self._targets = settings.targets
        #: Mean and standard deviation of each target whose value is learned.
        self._moments = [(0.0, 1.0)] * len(settings.targets)
        if not len(self._useful):
            return
        assert lists.targets is not None
        picked = (lists.weights > 0) & (lists.rows != n_items)
        for place, target in enumerate(settings.targets):
            if target.column == IMPLICIT:
                continue
            labels = target.labels(lists.targets[picked, place])
            labels = labels[~np.isnan(labels)].astype(np.float64)
            if not labels.size or labels.min() == labels.max():
                came = f"{labels[0]:g}" if labels.size else "null"
                raise TrainingError(
                    f"ranking: the target {target.name!r} is {came} for all of the {int(picked.sum())} "
                    f"interactions that {len(lists)} lists of candidates hold; change its at_least, give the "
                    "ranker more lists (training.listed_users, serving.candidates), or leave it out"
                )
            if not target.ranks:
                self._moments[place] = (float(labels.mean()), float(labels.std()))

    def _sampled(self, lists: RankingLists, rng: np.random.Generator) -> TargetLists:
        batch = TargetLists(**vars(super()._sampled(lists, rng)))
        labels, picked, real = self._labelled(batch)
        each = zip(self._targets, labels, strict=True)
        counts = [target_count(target.loss, own, picked, real) for target, own in each]
        return replace(batch, counts=np.array(counts, np.int64))

    def _labelled(self, batch: RankingLists) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return each target's labels ``[B, K]``, and which candidates users picked and which are real."""
        assert batch.targets is not None
        values = np.moveaxis(batch.targets, 2, 0)
        labels = [target.labels(own) for target, own in zip(self._targets, values, strict=True)]
        real = torch.from_numpy(batch.rows != self._pad)
        return [torch.from_numpy(own) for own in labels], torch.from_numpy(batch.weights > 0) & real, real

    def loss(self, scores: Tensor, batch: RankingLists) -> Tensor:
        """Return the weighted sum of the targets' losses of scores ``[B, K, T]``."""
        assert isinstance(batch, TargetLists)
        assert batch.counts is not None
        labels, picked, real = self._labelled(batch)
        total = scores.new_zeros(())
        for place, (target, own) in enumerate(zip(self._targets, labels, strict=True)):
            mean = target_loss(target.loss, scores[:, :, place], own, picked, real, self._moments[place])
            share = target_count(target.loss, own, picked, real) / max(int(batch.counts[place]), 1)
            total = total + target.weight * (mean * share)
        return total


def target_loss(
    loss: str, scores: Tensor, labels: Tensor, picked: Tensor, real: Tensor, moments: tuple[float, float]
) -> Tensor:
    """Return one target's loss.

    Parameters
    ----------
    loss
        As in :class:`Target`.
    scores, labels
        ``[B, K]``; the labels of picked candidates count, and NaN is no label.
    picked, real
        ``[B, K]`` boolean: candidates that users picked, and candidates that are not padding.
    moments
        Mean and standard deviation of labels that are values.
    """
    if loss == "squared":
        valued = picked & ~labels.isnan()
        wanted = (torch.where(valued, labels, 0.0) - moments[0]) / moments[1]
        squares = (scores - wanted).square() * valued
        return squares.sum() / valued.sum().clamp(min=1)
    positives = torch.where(picked, labels, 0.0)
    if loss == "softmax":
        return listwise_softmax(scores, positives, real)
    each = functional.binary_cross_entropy_with_logits(scores, positives, reduction="none")
    return (each * real).sum() / real.sum().clamp(min=1)


def target_count(loss: str, labels: Tensor, picked: Tensor, real: Tensor) -> int:
    """Return how many lists or candidates :func:`target_loss` averages over."""
    if loss == "squared":
        return int((picked & ~labels.isnan()).sum())
    if loss == "softmax":
        return int((torch.where(picked, labels, 0.0) > 0).any(dim=1).sum())
    return int(real.sum())
