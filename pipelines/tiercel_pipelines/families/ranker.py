"""Base of the rankers trained by gradient descent: settings, and networks that start from retrieval's score.

::

    user tensors [B, …] ──── CandidateFields ─ U [B, u, E] ┐
    candidates [B, K, …] ─── CandidateFields ─ I [B, K, i, E]┴─ the family's score [B, K, T] ┐
    kept_score, kept_source ─────────────────────── RetrievalPrior [B, K, T] ─────────────── + ─ rank_score

The last layer of every family starts at zero, so an untrained ranker keeps retrieval's order, and training
learns only how to change it. Everything that depends only on the user is computed once, not K times.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from tiercel_serving.kinds import Settings
from tiercel_serving.problems import BELOW_1, WIDTH, Problem, Range, out_of_range

from ..arrays.inputs import ModelInputs
from ..tasks.listwise_softmax import ListwiseSoftmax
from ..tasks.table import RANKING_TASKS, NamedScores, RankingTask, task_problems
from .descent import DESCENT
from .fitted import FittedRanker, fit_ranker
from .layers import PackedModule, with_inputs, wrong_widths
from .table import Columns, Course, Plan, RankingData


class GradientRanker(Settings, frozen=True):
    """Base of the settings of a ranker that torch trains.

    Parameters
    ----------
    use_retrieval_score
        Whether the model sees the retrieval score; otherwise all candidates start with equal scores.
    learning_rate, weight_decay
        Learning rate and weight decay of the optimiser (AdamW).
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    task
        The training objective.
    """

    use_retrieval_score: bool = True
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    max_epochs: int = 8
    patience: int = 2
    task: RankingTask = ListwiseSoftmax()

    #: Ranges of the family's own numeric settings.
    ranges: ClassVar[Mapping[str, Range]] = {}

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and those of the task."""
        wrong = list(out_of_range(self, {**DESCENT, **self.ranges}))
        return wrong + task_problems(self.task, RANKING_TASKS)

    def needs(self) -> Mapping[str, str]:
        """Return nothing, since the model takes any features."""
        return {}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return the problems with the features; see :class:`~.table.FitsFeatures`."""
        return []

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> RankingNetwork:
        """Build the network with fresh weights from torch's global random state.

        Its ``forward(user_cat, …, item_cat, …, kept_score, kept_source) → [B, K, T]`` float32 takes its
        packed tensors by name. ``scale`` is the initial factor of the retrieval score, which turns it into
        log-probabilities.
        """
        raise NotImplementedError

    def fit(self, data: RankingData, plan: Plan) -> tuple[FittedRanker, Course]:
        """Train on the lists; if no epoch improves on the initial model, return the initial model."""
        return fit_ranker(self, data, plan)

    def load(self, folder: Path, inputs: ModelInputs) -> FittedRanker:
        """Read the network."""
        return FittedRanker(self.build(inputs)).restored(folder)


class NeuralRanker(GradientRanker, frozen=True):
    """Base of the settings of a ranking network over embeddings.

    Parameters
    ----------
    embedding_dimension
        E, the length of each column's embedding.
    use_history
        Whether the model sees the items of the user's history.
    history_dropout
        Share of the history's items that is left out at random in training.
    dropout
        Dropout of the hidden layers.
    """

    embedding_dimension: int = 16
    use_history: bool = True
    history_dropout: float = 0.3
    dropout: float = 0.2

    #: Names of the fields that hold widths of hidden layers.
    widths: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return the base class's problems, and one for missing or invalid layers."""
        ranges = {"embedding_dimension": WIDTH, "dropout": BELOW_1, "history_dropout": BELOW_1}
        wrong = [*super().problems(), *out_of_range(self, ranges), *wrong_widths(self, *self.widths)]
        return wrong + [
            Problem(name, "expected at least one hidden layer, got none", "write a tuple such as (64, 32)")
            for name in self.widths
            if isinstance(layers := getattr(self, name), tuple | list) and not layers
        ]

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns`` if the model reads the history."""
        remedy = "name the item id feature, or set use_history=False"
        return {"history_columns": remedy} if self.use_history else {}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem if the model would see no feature of the user."""
        if user or self.use_history:
            return []
        problem = "False, but no other feature of the user reaches the ranker"
        return [Problem("use_history", problem, "set use_history=True, or tag a user feature")]


class SequenceRanker(NeuralRanker, frozen=True):
    """Base of the settings of a ranking network that attends to the single items of the history."""

    def problems(self) -> list[Problem]:
        """Return the base class's problems, and one if ``use_history`` is False."""
        if self.use_history:
            return super().problems()
        remedy = "take MLP(…) or another family that can do without, or leave it True"
        problem = f"{self.use_history!r}, but a {type(self).__name__} attends to the history"
        return [*super().problems(), Problem("use_history", problem, remedy)]

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns``, since the model always reads the history."""
        return {"history_columns": "name the item id feature, or take a family that needs no history"}


class RankingNetwork(PackedModule):
    """User tensors, candidates ``[B, K, …]`` and their retrieval scores → ``rank_score [B, K, T]``.

    Subclasses create their layers after ``super().__init__`` and implement :meth:`score`.
    """

    def __init__(self, settings: GradientRanker, inputs: ModelInputs, scale: float):
        super().__init__()
        self.tasks = settings.task.tasks
        prior = settings.use_retrieval_score
        scales = prior_scales(settings.task, scale)
        self.prior = RetrievalPrior(inputs.sources, scales) if prior else None

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the scores ``[B, K, T]``; those of padded candidates are meaningless."""
        score = self.score(tensors)
        return score if self.prior is None else score + self.prior(tensors)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what is added to retrieval's score, ``[B, K, T]``; initially zero, up to a constant."""
        raise NotImplementedError


class RetrievalPrior(nn.Module):
    """Retrieval's score × a learned factor, and a bias for each source: ``[B, K, T]``."""

    def __init__(self, sources: int, scales: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scales)
        self.source_bias = nn.Embedding(sources + 1, len(scales))
        nn.init.zeros_(self.source_bias.weight)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``[B, K, T]``."""
        score = tensors["kept_score"].unsqueeze(-1) * self.scale
        biased: Tensor = score + self.source_bias(tensors["kept_source"])
        return biased


def prior_scales(task: RankingTask, scale: float) -> Tensor:
    """Return each score's initial factor of retrieval's score, ``[T]``; 0 for scores that do not rank."""
    ranks = task.ranks if isinstance(task, NamedScores) else (True,) * task.tasks
    return torch.tensor([float(scale) if one else 0.0 for one in ranks])


Network = TypeVar("Network", bound=RankingNetwork)


def build_network(kind: type[Network], settings: Any, inputs: ModelInputs, scale: float) -> Network:
    """Build a ``kind`` network whose ``forward`` takes the tensors that the settings let it see."""
    if not (inputs.item.cat or inputs.item.lists):
        raise ValueError("the ranker needs at least one categorical item column, such as the item id")
    inputs = inputs if settings.use_history else replace(inputs, history=())
    retrieved = ("kept_score", "kept_source") if settings.use_retrieval_score else ()
    names = (*inputs.user_names, *inputs.item.tensor_names, *retrieved)
    return with_inputs(kind, names)(settings, inputs, scale)
