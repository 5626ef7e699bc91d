"""The contracts of tasks, and their tables: the batches that a model learns from, and its loss.

These tasks are for models that torch trains. Their batches name rows of the data set; the family turns rows
into tensors, so that one task serves every model of its kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from tiercel_serving.kinds import Kind, Kinds
from tiercel_serving.problems import Problem

from ..arrays.lists import RankingLists
from ..arrays.pairs import Array, IntArray, Pairs

#: Stands for minus infinity in losses: its exponential is 0, and unlike infinity it never makes a NaN.
MASKED = -1e9

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RetrievalBatch:
    """One batch of a retrieval model: B users, C items.

    Parameters
    ----------
    contexts
        ``[B]`` rows of the packed user tensors.
    users
        ``[B]`` user rows.
    targets
        ``[B, T]`` positions of the targets in the pairs; no history contains them. -1 is none.
    items
        ``[C]`` catalogue rows.
    """

    contexts: IntArray
    users: IntArray
    targets: IntArray
    items: IntArray


class RetrievalObjective(Protocol):
    """A retrieval task applied to some interactions."""

    def epoch(self, rng: np.random.Generator) -> Iterator[RetrievalBatch]:
        """Yield the batches of one epoch."""
        ...

    def loss(self, query: Tensor, vectors: Tensor, batch: Any) -> Tensor:
        """Return the loss of queries ``[B, D]`` and item vectors ``[C, D]`` of a batch."""
        ...


@runtime_checkable
class RetrievalTask(Protocol):
    """The objective of a model of queries and item vectors."""

    @property
    def scale(self) -> float:
        """Factor that turns inner products into log-probabilities, up to a constant."""
        ...

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def start(self, pairs: Pairs, n_items: int) -> RetrievalObjective:
        """Return the task applied to some interactions with a catalogue of ``n_items``."""
        ...


class RankingObjective(Protocol):
    """A ranking task applied to some lists."""

    def epoch(self, rng: np.random.Generator) -> Iterator[RankingLists]:
        """Yield the batches of one epoch: lists with the candidates that take part."""
        ...

    def loss(self, scores: Tensor, batch: RankingLists) -> Tensor:
        """Return the loss of scores ``[B, K, T]``."""
        ...


@runtime_checkable
class ListSettings(Protocol):
    """How the lists that a ranker learns from are made: part of its task."""

    @property
    def tasks(self) -> int:
        """T, the number of scores of a candidate."""
        ...

    @property
    def target(self) -> str:
        """``interaction``, or the column of the interactions between 0 and 1 that weights the positives."""
        ...

    @property
    def folds(self) -> int:
        """Number of folds of the training part, for lists whose positives retrieval did not know."""
        ...

    @property
    def context_dropout(self) -> float:
        """Share of the lists without context."""
        ...


@runtime_checkable
class RankingTask(ListSettings, Protocol):
    """The objective of a ranker, and the lists that it learns from."""

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def start(self, lists: RankingLists, kept: int, n_items: int) -> RankingObjective:
        """Return the task applied to some lists; in serving, a ranker sees their first ``kept`` items."""
        ...


@runtime_checkable
class NamedScores(Protocol):
    """A task whose scores have names, and each a column of the interactions."""

    @property
    def names(self) -> tuple[str, ...]:
        """``[T]`` the names of the scores."""
        ...

    @property
    def target_columns(self) -> tuple[str, ...]:
        """``[T]`` the column of each, or ``interaction``."""
        ...

    @property
    def ranks(self) -> tuple[bool, ...]:
        """``[T]`` whether each orders candidates, and so starts from retrieval's score."""
        ...

    def unfit(self, columns: Mapping[str, Array | None]) -> list[Problem]:
        """Return why scores can't be learned from the interactions' columns; None is not numeric."""
        ...


def score_names(task: object) -> tuple[str, ...]:
    """Return the names of a ranking task's scores; empty if they have none."""
    return task.names if isinstance(task, NamedScores) else ()


#: Every task of retrieval models.
RETRIEVAL_TASKS: Kinds[RetrievalTask] = Kinds(
    "retrieval task",
    {
        "sampled_softmax": Kind("tiercel_pipelines.tasks.sampled_softmax:SampledSoftmax"),
        "bpr": Kind("tiercel_pipelines.tasks.bpr:BPR"),
        "binary_cross_entropy": Kind("tiercel_pipelines.tasks.binary_cross_entropy:BinaryCrossEntropy"),
    },
)

#: Every task of rankers.
RANKING_TASKS: Kinds[RankingTask] = Kinds(
    "ranking task",
    {
        "listwise_softmax": Kind("tiercel_pipelines.tasks.listwise_softmax:ListwiseSoftmax"),
        "multi_task": Kind("tiercel_pipelines.tasks.multi_task:MultiTask"),
    },
)


def task_problems(task: Any, table: Kinds[Any]) -> list[Problem]:
    """Return what is wrong with a family's task: that it is not in the table, or its own problems."""
    wrong = table.misfit(task, "task")
    return wrong or [problem.within("task") for problem in task.problems()]
