r"""``softmax_dnn``: the next item, as a classification over the catalogue.

::

    history ─ embeddings, summed ÷ √n ┐
    user columns ─ embeddings ────────┼─ joined ─ hidden layers ─ [h, 1] = query ┐
    numbers ──────────────────────────┘                                         ├─ inner product
    item columns ─ embeddings and numbers, summed ─ [weights, bias] = vector ───┘

.. math:: P(i \mid u) = \frac{e^{q_u^\top v_i + b_i}}{\sum_j e^{q_u^\top v_j + b_j}}

(Covington et al. 2016, "Deep neural networks for YouTube recommendations", section 3). The softmax's weights
are the item vectors, not the embeddings that the history reads. In training the sum runs over the catalogue,
or over items drawn uniformly from it, which stand for the others (Bengio & Senécal 2008, "Adaptive importance
sampling to accelerate training of a neural probabilistic language model"). It excludes the user's own items.
In the paper an item's weights belong to its id; here they are the sum over all its columns, so that a new
item has weights too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tiercel_serving.problems import BELOW_1, COUNT, SHARE, WIDTH, Problem, out_of_range

from ..arrays.counted import Counted, cut
from ..arrays.inputs import ModelInputs
from ..arrays.packed import Packed
from ..arrays.pairs import Array, BoolArray, IntArray, Pairs
from ..tasks.sampled_softmax import draw_groups
from ..tasks.softmax_of_draws import sampled_softmax
from ..tasks.table import RetrievalBatch
from .descent import DESCENT, tensors
from .fitted import FittedVectors
from .history_items import HISTORY
from .layers import (
    PackedModule,
    SideEncoder,
    embedding,
    hidden_layers,
    pool_history,
    with_inputs,
    wrong_widths,
)
from .sparse_weights import telling_column
from .table import RetrievalData
from .vector_family import Epoch, VectorFamily
from .views import TrainingViews, drop_item_ids

#: Standard deviation of the initial embeddings of history and items.
SPREAD = 0.05


class SoftmaxDNN(VectorFamily, frozen=True, tag="softmax_dnn"):
    """A deep network with a softmax over the catalogue.

    Parameters
    ----------
    name
        Name of its candidate source.
    embedding_dimension
        E, the length of each column's embedding, and of the history's.
    layers
        Widths of the hidden layers; the last is the length of the query without the bias.
    history_dropout
        Mean share of the history that is left out at random in training.
    dropout
        Dropout of the hidden layers.
    id_dropout
        Share of a user's category ids that training replaces by null or unknown, so that the model also
        works for users it has not seen.
    item_id_dropout
        Share of a batch's items whose id training replaces by unknown, so that the other columns describe
        items that the model has not seen.
    negatives
        Number of items drawn uniformly for each batch, in addition to its targets; the whole catalogue if
        None, or if it has no more items.
    positives
        T: number of a user's interactions that share one query; the rest of the user's items is its history.
    batch_size
        Interactions in a batch.
    context_dropout
        Share of the interactions whose context is hidden in training, since requests may have none.
    learning_rate, weight_decay
        Learning rate and weight decay of the optimiser (AdamW).
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    """

    name: str = "softmax_dnn"
    embedding_dimension: int = 64
    layers: tuple[int, ...] = (128, 64)
    history_dropout: float = 0.5
    dropout: float = 0.3
    id_dropout: float = 0.1
    item_id_dropout: float = 0.0
    negatives: int | None = 4096
    positives: int = 16
    batch_size: int = 2048
    context_dropout: float = 0.3
    learning_rate: float = 5e-3
    weight_decay: float = 0.1
    max_epochs: int = 60
    patience: int = 6

    @property
    def dimension(self) -> int:
        """D: the width of the last layer, plus a constant 1 for the bias."""
        return self.layers[-1] + 1 if self.layers else 1

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and for missing or invalid layers."""
        ranges = {**DESCENT, "context_dropout": SHARE}
        ranges |= {"embedding_dimension": WIDTH, "positives": COUNT, "batch_size": COUNT, "negatives": COUNT}
        ranges |= dict.fromkeys(("history_dropout", "dropout", "id_dropout", "item_id_dropout"), BELOW_1)
        wrong = list(out_of_range(self, ranges, none={"negatives": "the whole catalogue"}))
        wrong += wrong_widths(self, "layers")
        if not self.layers:
            problem = "expected at least one hidden layer, got none"
            wrong.append(Problem("layers", problem, "write a tuple such as (128, 64)"))
        return wrong

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns``, since the model reads the history."""
        return {"history_columns": "name the item id feature: users are described by history and features"}

    def epoch(self, data: RetrievalData, fitted: Any, rng: np.random.Generator, label: str) -> Epoch:
        """Train on all interactions: a query that knows some of the user's others predicts each."""
        pairs, packed = data.pairs, data.packed
        network, weights = fitted.user_tower, fitted.item_tower
        place = telling_column(packed.item["item_cat"][:-1])[0]
        views = TrainingViews(pairs, packed, data.inputs.user, self.history_dropout, self.id_dropout)

        def loss(batch: CorpusBatch) -> Tensor:
            users = tensors(views.users(batch, rng), network.input_names)
            items = {name: array[batch.items] for name, array in packed.item.items()}
            items = drop_item_ids(items, place, self.item_id_dropout, rng)
            vectors = weights(**tensors(items, weights.input_names))
            return batch.loss(network(**users), vectors)

        return lambda number: self._batches(pairs, packed, rng).through(loss)

    def _batches(self, pairs: Pairs, packed: Packed, rng: np.random.Generator) -> Counted[CorpusBatch]:
        """Return all groups in random order, in batches of about ``batch_size`` interactions."""
        groups = draw_groups(pairs, self.positives, self.context_dropout, rng)
        size = max(1, round(self.batch_size * len(groups) / len(pairs)))
        count = packed.n_items

        def batch(chosen: IntArray) -> CorpusBatch:
            targets, users = groups.targets(chosen), groups.users[chosen].astype(np.int64)
            real = targets >= 0
            found = pairs.items[np.where(real, targets, 0)].astype(np.int64)
            if self.negatives is None or self.negatives >= count:
                drawn = np.arange(count)
            else:
                drawn = rng.choice(count, self.negatives, replace=False)
            items = np.union1d(drawn, found[real])
            places = np.where(real, np.searchsorted(items, found), 0)
            share = np.where(np.isin(items, drawn), len(drawn) / count, 0.0)
            had = _had(pairs, users, items)
            contexts = groups.contexts[chosen].astype(np.int64)
            return CorpusBatch(contexts, users, targets, items, places, real, share, had)

        return cut(rng.permutation(len(groups)), size).through(batch)

    def fresh(self, inputs: ModelInputs) -> FittedVectors:
        """Return the network, and the softmax's weights."""
        network = with_inputs(DeepNetwork, (*inputs.user.tensor_names, *HISTORY))(inputs, self)
        return FittedVectors(network, with_inputs(ItemWeights, inputs.item.tensor_names)(inputs, self))


@dataclass(frozen=True)
class CorpusBatch(RetrievalBatch):
    """One batch: B queries, each with at most T targets among C items.

    Parameters
    ----------
    places, real
        ``[B, T]`` positions of the targets in ``items``, and False where there is no target.
    share
        ``[C]`` probability with which an item is drawn; 0 for an item that is only a target.
    had
        ``[B, C]`` True for the user's own items, which are not negatives.
    """

    places: IntArray
    real: BoolArray
    share: Array
    had: BoolArray

    def loss(self, query: Tensor, vectors: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of the targets.

        An item drawn with probability p stands for 1/p items of the catalogue.
        """
        drawn = self.share > 0
        weights = np.where(drawn, 1 / np.where(drawn, self.share, 1.0), 1.0).astype(np.float32)
        return sampled_softmax(
            query,
            vectors,
            torch.zeros(len(self.items)),
            torch.from_numpy(weights),
            torch.from_numpy(self.places),
            torch.from_numpy(self.had | ~drawn),
            torch.from_numpy(self.real.astype(np.float32)),
        )


def _had(pairs: Pairs, users: IntArray, items: IntArray) -> BoolArray:
    """Return ``[B, C]``: which of the ascending ``items [C]`` each of ``users [B]`` has interacted with."""
    owner, rows = pairs.seen(users)
    place = np.minimum(np.searchsorted(items, rows), len(items) - 1)
    there = items[place] == rows
    had = np.zeros((len(users), len(items)), np.bool_)
    had[owner[there], place[there]] = True
    return had


class DeepNetwork(PackedModule):
    """User columns and history → query ``[B, D]`` float32, whose last element is 1."""

    def __init__(self, inputs: ModelInputs, settings: SoftmaxDNN):
        super().__init__()
        width = settings.embedding_dimension
        places = {column.name: column.cardinality for column in inputs.item.cat}
        self.shown = nn.ModuleList(embedding(places[name], width, SPREAD) for name in inputs.history)
        self.encoder = SideEncoder(inputs.user, width)
        joined = width * (1 + self.encoder.field_count) + self.encoder.number_count
        layers = tuple(settings.layers)
        self.hidden = hidden_layers(joined, layers[:-1], settings.dropout)
        self.last = nn.Linear((joined, *layers)[-2] if len(layers) > 1 else joined, layers[-1])

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the queries ``[B, D]``."""
        history = pool_history(list(self.shown), tensors["history_cat"], tensors["history_length"])
        parts = [history, *self.encoder.fields(tensors), *self.encoder.numbers(tensors)]
        query = self.last(self.hidden(torch.cat(parts, dim=1)))
        return torch.cat([query, torch.ones_like(query[:, :1])], dim=1)


class ItemWeights(PackedModule):
    """Item columns → the softmax's weights ``[B, D]`` float32, whose last element is the bias."""

    def __init__(self, inputs: ModelInputs, settings: SoftmaxDNN):
        super().__init__()
        self.encoder = SideEncoder(inputs.item, settings.dimension, spread=SPREAD)
        with torch.no_grad():
            for table in (*self.encoder.tables, *self.encoder.list_tables):
                table.weight[:, -1] = 0
        count = self.encoder.number_count
        self.number_layer = nn.Linear(count, settings.dimension, bias=False) if count else None

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors ``[B, D]``."""
        total: Tensor = torch.stack(self.encoder.fields(tensors)).sum(dim=0)
        if self.number_layer is not None:
            total = total + self.number_layer(self.encoder.numbers(tensors)[0])
        return total
