r"""``two_tower``: a user tower and an item tower, combined by an inner product of unit vectors.

::

    user columns ─ embeddings ┐
    numbers ────── linear ────┼─ sum ─ + hidden layers ─ L2 norm ─ query [B, D] ┐
    history ─ item embeddings ┘                                                 ├─ inner product
              └──── shared ──┐                                                  │
    item columns ─ embeddings┼─ sum ─ + hidden layers ─ L2 norm ─ vector [B, D] ┘
    numbers ────── linear ───┘

.. math:: s = u^\top v / (\|u\| \, \|v\|)

(Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations": unit
vectors, a temperature, and in-batch negatives corrected by how often they are drawn).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor, nn

from tiercel_serving.kinds import Settings
from tiercel_serving.problems import BELOW_1, WIDTH, Problem, out_of_range

from ..arrays.counted import Counted
from ..arrays.inputs import ModelInputs, Side
from ..errors import TrainingError
from ..tasks.sampled_softmax import SampledSoftmax
from ..tasks.table import RETRIEVAL_TASKS, RetrievalTask, task_problems
from .descent import DESCENT, descend, seeded, tensors
from .fitted import FittedVectors
from .layers import (
    PackedModule,
    SideEncoder,
    hidden_layers,
    pool_history,
    with_inputs,
    wrong_widths,
    zero_linear,
)
from .sparse_weights import telling_column
from .table import Course, Plan, RetrievalData
from .views import TrainingViews, drop_item_ids

#: Standard deviation of the initial embeddings of history items, which carry most of what is learned.
ITEM_SPREAD = 0.1


class TwoTower(Settings, frozen=True, tag="two_tower"):
    """Two towers.

    Parameters
    ----------
    name
        Name of its candidate source.
    dimension
        D, the length of the query and of the item vectors.
    embedding_dimension
        E, the length of each categorical column's embedding.
    user_layers, item_layers
        Widths of the hidden layers of each tower.
    use_history
        Whether the user tower sees the items of the user's history.
    history_dropout
        Share of the history's items that is left out at random in training.
    dropout
        Dropout of the hidden layers and of the user's embeddings.
    id_dropout
        Share of a user's category ids that training replaces by null or unknown, so that the model also
        works for users it has not seen.
    item_id_dropout
        Share of a batch's items whose id training replaces by unknown, so that the other columns describe
        items that the model has not seen.
    learning_rate, weight_decay
        Learning rate and weight decay of the optimiser (AdamW).
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    task
        The training objective.
    """

    name: str = "two_tower"
    dimension: int = 64
    embedding_dimension: int = 64
    user_layers: tuple[int, ...] = ()
    item_layers: tuple[int, ...] = ()
    use_history: bool = True
    history_dropout: float = 0.5
    dropout: float = 0.0
    id_dropout: float = 0.1
    item_id_dropout: float = 0.0
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    max_epochs: int = 24
    patience: int = 4
    task: RetrievalTask = SampledSoftmax()

    form: ClassVar[str] = "vectors"

    @property
    def scale(self) -> float:
        """Factor that turns its scores into log-probabilities, up to a constant."""
        return self.task.scale

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, for invalid layers, and for the task."""
        ranges = {**DESCENT, "dimension": WIDTH, "embedding_dimension": WIDTH}
        ranges |= dict.fromkeys(("dropout", "history_dropout", "id_dropout", "item_id_dropout"), BELOW_1)
        wrong = [*out_of_range(self, ranges), *wrong_widths(self, "user_layers", "item_layers")]
        return wrong + task_problems(self.task, RETRIEVAL_TASKS)

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns`` if the model reads the history."""
        remedy = "name the item id feature, or set use_history=False"
        return {"history_columns": remedy} if self.use_history else {}

    def fit(self, data: RetrievalData, plan: Plan) -> tuple[FittedVectors, Course]:
        """Train both towers."""
        pairs, packed = data.pairs, data.packed
        if not len(pairs):
            raise TrainingError(f"{plan.label}: there are no interactions to learn from")
        with seeded(plan.seed) as rng:
            towers = Towers(self, data.inputs)
            views = TrainingViews(pairs, packed, data.inputs.user, self.history_dropout, self.id_dropout)
            objective = self.task.start(pairs, packed.n_items)
            place = telling_column(packed.item["item_cat"][:-1])[0]

            def loss(batch: Any) -> Tensor:
                rows, mine, weight = plan.ranks.share(batch, len(batch.users))
                shown = {name: array[rows] for name, array in views.users(batch, rng).items()}
                users = tensors(shown, towers.user_tower.input_names)
                items = {name: array[batch.items] for name, array in packed.item.items()}
                items = drop_item_ids(items, place, self.item_id_dropout, rng)
                vectors = towers.item_tower(**tensors(items, towers.item_tower.input_names))
                return objective.loss(towers.user_tower(**users), vectors, mine) * weight

            def epoch(number: int) -> Counted[Tensor]:
                return Counted(objective.epoch(rng)).through(loss)

            fitted = FittedVectors(towers.user_tower, towers.item_tower)
            course = descend(self, towers, fitted, epoch, plan, max_epochs=self.max_epochs, rng=rng)
        return fitted, course

    def load(self, folder: Path, inputs: ModelInputs) -> FittedVectors:
        """Read both towers."""
        towers = Towers(self, inputs)
        return FittedVectors(towers.user_tower, towers.item_tower).restored(folder)


class Tower(PackedModule):
    """Base of both towers: columns → sum of embeddings → residual hidden layers → unit vector."""

    def __init__(self, side: Side, settings: TwoTower, layers: tuple[int, ...]):
        super().__init__()
        width, dimension = settings.embedding_dimension, settings.dimension
        self.encoder = SideEncoder(side, width)
        count = self.encoder.number_count
        self.number_layer = nn.Linear(count, width) if count else nn.Identity()
        self.project = nn.Linear(width, dimension, bias=False) if width != dimension else None
        self.bias = nn.Parameter(torch.zeros(dimension))
        self.hidden = hidden_layers(dimension, layers, settings.dropout)
        self.last = zero_linear(layers[-1], dimension) if layers else None

    def columns(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the vectors ``[B, E]`` to add up."""
        numbers = self.encoder.numbers(tensors)
        return self.encoder.fields(tensors) + [self.number_layer(number) for number in numbers]

    def finish(self, vectors: list[Tensor]) -> Tensor:
        """Add up ``[B, E]`` vectors and return unit vectors ``[B, D]``."""
        total = vectors[0]
        for vector in vectors[1:]:
            total = total + vector
        if self.project is not None:
            total = self.project(total)
        total = total + self.bias
        if self.last is not None:
            total = total + self.last(self.hidden(total))
        return F.normalize(total, dim=-1, eps=1e-6)


class ItemTower(Tower):
    """Item columns → ``[B, D]`` float32 unit vectors."""

    def __init__(self, settings: TwoTower, inputs: ModelInputs):
        super().__init__(inputs.item, settings, tuple(settings.item_layers))
        places = {column.name: place for place, column in enumerate(inputs.item.cat)}
        with torch.no_grad():
            for name in inputs.history or tuple(places)[:1]:
                self.table(places[name]).weight[3:].normal_(std=ITEM_SPREAD)

    def table(self, place: int) -> nn.Embedding:
        """Return the embedding of the categorical column at ``place``."""
        table = self.encoder.tables[place]
        assert isinstance(table, nn.Embedding)
        return table

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the item vectors ``[B, D]``."""
        return self.finish(self.columns(tensors))


class UserTower(Tower):
    """User columns and history → query ``[B, D]`` float32, unit vectors.

    The embeddings of the history are shared with the item tower.
    """

    def __init__(self, settings: TwoTower, inputs: ModelInputs, item_tower: ItemTower):
        super().__init__(inputs.user, settings, tuple(settings.user_layers))
        places = {column.name: place for place, column in enumerate(inputs.item.cat)}
        width = settings.embedding_dimension
        tables = [item_tower.table(places[name]) for name in inputs.history]
        self.history_tables = nn.ModuleList(tables)
        self.history_layer = nn.Linear(width, width, bias=False) if tables else None
        if self.history_layer is not None:
            nn.init.eye_(self.history_layer.weight)
        self.drop = nn.Dropout(settings.dropout)

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the queries ``[B, D]``."""
        vectors = [self.drop(vector) for vector in self.columns(tensors)]
        if self.history_layer is not None:
            tables = list(self.history_tables)
            pooled = pool_history(tables, tensors["history_cat"], tensors["history_length"])
            vectors.append(self.history_layer(pooled))
        return self.finish(vectors)


class Towers(nn.Module):
    """Both towers, with their shared embeddings once; fresh weights come from torch's random state.

    ``user_tower(user_cat, …, history_cat, history_length)`` and ``item_tower(item_cat, …)`` name their
    packed tensors in their signatures.
    """

    def __init__(self, settings: TwoTower, inputs: ModelInputs):
        super().__init__()
        if not inputs.item.cat:
            raise ValueError("the item tower needs at least one categorical column, such as the item id")
        inputs = inputs if settings.use_history else replace(inputs, history=())
        self.item_tower = with_inputs(ItemTower, inputs.item.tensor_names)(settings, inputs)
        self.user_tower = with_inputs(UserTower, inputs.user_names)(settings, inputs, self.item_tower)
