"""``dlrm``: pairwise inner products of user and item embeddings, and two small networks.

::

    user columns, history ─ embeddings ─ U [B, u, E] ┐
                                                     ├─ U·I [B, K, u·i] ─ top network ┐
    item columns, bottom(numbers) ───── I [B, K, i, E]┘                               +─ rank_score
    kept_score ──────────────────────────────────────────── × learned scale ──────────┘  [B, K, T]

The user side is computed once per user, not once per candidate. The initial score is that of retrieval (the
last layers start at zero), so an untrained ranker keeps retrieval's order, and training learns only how to
change it (Naumov et al. 2019, "Deep learning recommendation model for personalization and recommendation
systems"; the paper takes the products of all pairs of fields, here each pairs a user's with an item's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from tiercel_serving.kinds import Settings
from tiercel_serving.problems import BELOW_1, WIDTH, Problem, out_of_range

from ..arrays.inputs import ModelInputs
from ..tasks.listwise_softmax import ListwiseSoftmax
from ..tasks.table import RANKING_TASKS, RankingTask, task_problems
from .descent import DESCENT
from .fitted import FittedRanker, fit_ranker
from .layers import (
    PackedModule,
    SideEncoder,
    embedding,
    hidden_layers,
    pool_history,
    with_inputs,
    wrong_widths,
    zero_linear,
)
from .ranker import prior_scales
from .table import Course, Plan, RankingData

#: Standard deviation of the ranker's initial embeddings: large enough for inner products to have gradients.
SPREAD = 0.05


class DLRM(Settings, frozen=True, tag="dlrm"):
    """Deep learning recommendation model.

    Parameters
    ----------
    embedding_dimension
        E, the length of each column's embedding, and the width at which columns interact.
    bottom_layers, top_layers
        Widths of the hidden layers before and after the interaction.
    use_retrieval_score
        Whether the model sees the retrieval score; otherwise all candidates start with equal scores.
    use_history
        Whether the model sees the items of the user's history.
    history_dropout
        Share of the history's items that is left out at random in training.
    dropout
        Dropout of the hidden layers and of the user's embeddings.
    learning_rate, weight_decay
        Learning rate and weight decay of the optimiser (AdamW).
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    task
        The training objective.
    """

    embedding_dimension: int = 32
    bottom_layers: tuple[int, ...] = ()
    top_layers: tuple[int, ...] = (64,)
    use_retrieval_score: bool = True
    use_history: bool = True
    history_dropout: float = 0.3
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    max_epochs: int = 8
    patience: int = 2
    task: RankingTask = ListwiseSoftmax()

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, for invalid layers, and for the task."""
        ranges = {**DESCENT, "embedding_dimension": WIDTH, "dropout": BELOW_1, "history_dropout": BELOW_1}
        wrong = [*out_of_range(self, ranges), *wrong_widths(self, "bottom_layers", "top_layers")]
        return wrong + task_problems(self.task, RANKING_TASKS)

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns`` if the model reads the history."""
        remedy = "name the item id feature, or set use_history=False"
        return {"history_columns": remedy} if self.use_history else {}

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> Interactions:
        """Build the network with fresh weights from torch's global random state.

        Its ``forward(user_cat, …, item_cat, …, kept_score, kept_source) → [B, K, T]`` float32 takes its
        packed tensors by name. ``scale`` is the initial factor of the retrieval score, which turns it into
        log-probabilities.
        """
        if not (inputs.item.cat or inputs.item.lists):
            raise ValueError("the ranker needs at least one categorical item column, such as the item id")
        inputs = inputs if self.use_history else replace(inputs, history=())
        retrieved = ("kept_score", "kept_source") if self.use_retrieval_score else ()
        names = (*inputs.user_names, *inputs.item.tensor_names, *retrieved)
        return with_inputs(Interactions, names)(self, inputs, scale)

    def fit(self, data: RankingData, plan: Plan) -> tuple[FittedRanker, Course]:
        """Train on the lists; if no epoch improves on the initial model, return the initial model."""
        return fit_ranker(self, data, plan)

    def load(self, folder: Path, inputs: ModelInputs) -> FittedRanker:
        """Read the network."""
        return FittedRanker(self.build(inputs)).restored(folder)


class Interactions(PackedModule):
    """User tensors, candidates ``[B, K, …]`` and their retrieval scores → ``rank_score [B, K, T]``."""

    def __init__(self, settings: DLRM, inputs: ModelInputs, scale: float):
        super().__init__()
        width, dropout, tasks = settings.embedding_dimension, settings.dropout, settings.task.tasks
        self.user_encoder = SideEncoder(inputs.user, width, spread=SPREAD)
        self.item_encoder = SideEncoder(inputs.item, width, spread=SPREAD)
        cardinalities = inputs.item.cardinalities
        self.history_tables = nn.ModuleList(
            embedding(cardinalities[name], width, SPREAD) for name in inputs.history
        )
        self.sees_history, self.sees_score = bool(self.history_tables), settings.use_retrieval_score
        history, score = self.sees_history, self.sees_score
        self.user_bottom = _Bottom(self.user_encoder.number_count + history, settings)
        self.item_bottom = _Bottom(self.item_encoder.number_count + 2 * score, settings)
        users = self.user_encoder.field_count + history + self.user_bottom.used
        items = self.item_encoder.field_count + self.item_bottom.used
        pairs = users * items
        numbers = pairs + width * (self.user_bottom.used + self.item_bottom.used)
        self.drop = nn.Dropout(dropout)
        layers = tuple(settings.top_layers)
        self.top = hidden_layers(numbers, layers, dropout)
        self.last = zero_linear(layers[-1] if layers else numbers, tasks)
        self.pair_weights = zero_linear(pairs, tasks, bias=False)
        if score:
            self.scale = nn.Parameter(prior_scales(settings.task, scale))
            self.source_bias = nn.Embedding(inputs.sources + 1, tasks)
            nn.init.zeros_(self.source_bias.weight)

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the scores ``[B, K, T]``; those of padded candidates are meaningless."""
        user, user_numbers = self._user(tensors)
        item, item_numbers = self._items(tensors)
        batch, count, fields, width = item.shape
        # [B, K·i, E] × [B, E, u]: one matrix product per user, regardless of K.
        pairs = torch.matmul(item.reshape(batch, count * fields, width), user.transpose(1, 2))
        pairs = pairs.reshape(batch, count, fields * user.shape[1])
        parts = [pairs]
        if user_numbers is not None:
            parts.append(user_numbers.unsqueeze(1).expand(-1, count, -1))
        if item_numbers is not None:
            parts.append(item_numbers)
        score = self.last(self.top(torch.cat(parts, dim=-1))) + self.pair_weights(pairs)
        if self.sees_score:
            score = score + tensors["kept_score"].unsqueeze(-1) * self.scale
            score = score + self.source_bias(tensors["kept_source"])
        result: Tensor = score
        return result

    def _user(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the user's vectors [B, u, E] and the bottom network's output [B, E]."""
        vectors = self.user_encoder.fields(tensors)
        numbers = self.user_encoder.numbers(tensors)
        if self.sees_history:
            length = tensors["history_length"]
            vectors.append(pool_history(list(self.history_tables), tensors["history_cat"], length))
            numbers.append(torch.log1p(length.to(torch.float32)))
        bottom = self.user_bottom(torch.cat(numbers, dim=-1)) if numbers else None
        if bottom is not None:
            vectors.append(bottom)
        return self.drop(_side_by_side(vectors)), bottom

    def _items(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the candidates' vectors [B, K, i, E] and the bottom network's output [B, K, E]."""
        vectors = self.item_encoder.fields(tensors)
        numbers = self.item_encoder.numbers(tensors)
        if self.sees_score:
            score = tensors["kept_score"]
            # Candidates are sorted best first: the second number is the distance from the best score.
            numbers.append(torch.stack([score, score - score[:, :1]], dim=-1))
        bottom = self.item_bottom(torch.cat(numbers, dim=-1)) if numbers else None
        if bottom is not None:
            vectors.append(bottom)
        return _side_by_side(vectors), bottom


def _side_by_side(vectors: Sequence[Tensor]) -> Tensor:
    """Return n vectors ``[..., E]`` as ``[..., n, E]``; ``torch.stack`` would export an operator for each."""
    width = vectors[0].shape[-1]
    return torch.cat(list(vectors), dim=-1).reshape(*vectors[0].shape[:-1], len(vectors), width)


class _Bottom(nn.Module):
    """Numbers → one vector of width E; ``used`` is False if there are none."""

    def __init__(self, inputs: int, settings: DLRM):
        super().__init__()
        self.used = inputs > 0
        if self.used:
            widths = tuple(settings.bottom_layers)
            self.hidden = hidden_layers(inputs, widths, 0.0)
            self.last = nn.Linear(widths[-1] if widths else inputs, settings.embedding_dimension)

    def forward(self, numbers: Tensor) -> Tensor:
        vector: Tensor = self.last(self.hidden(numbers))
        return vector
