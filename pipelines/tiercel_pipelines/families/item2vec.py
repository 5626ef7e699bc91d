r"""``item2vec``: items as words, histories as sentences or as bags.

.. math:: -\log \sigma(v_i^\top c_j) - \sum_{k=1}^{n} \log \sigma(-v_i^\top c_{j_k}), \qquad
    j_k \sim \mathrm{count}(j)^{\alpha}

over items i and others j of the same history, at most ``window`` positions away (Mikolov et al. 2013,
"Distributed representations of words and phrases and their compositionality", eq. 4; Barkan & Koenigstein
2016, "Item2Vec: neural item embedding for collaborative filtering", where a history is a bag; Grbovic et
al. 2015, "E-commerce in your inbox: product recommendations at scale", where it has an order: prod2vec).

At the minimum of the loss (Levy & Goldberg 2014, "Neural word embedding as implicit matrix factorization"),

.. math:: v_i^\top c_j = \log P(j \mid i) - \alpha \log \mathrm{count}(j) + \mathrm{const}

so the served score is :math:`\bar v^\top c_j + \alpha \log \mathrm{count}(j)` with the mean :math:`\bar v`
over the history. Up to a constant, it is the logarithm of the geometric mean of P(j | i) over the history's
items. A user without history gets popular items. An item's vector is the sum over its history columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from tiercel_serving.problems import AT_LEAST_0, COUNT, WIDTH, Problem, Range, out_of_range

from ..arrays.counted import Counted, cut
from ..arrays.inputs import ModelInputs
from ..arrays.pairs import Array, IntArray, Pairs
from .descent import DESCENT
from .fitted import FittedVectors
from .history_items import HISTORY, HistoryItems, catalogue_tensor, history_items
from .history_mean import id_table
from .layers import PackedModule, with_inputs
from .table import Columns, RetrievalData
from .vector_family import Epoch, VectorFamily

#: Standard deviation of the initial vectors.
_SPREAD = 0.1


class Item2Vec(VectorFamily, frozen=True, tag="item2vec"):
    """Skip-gram with negative sampling over histories.

    Parameters
    ----------
    name
        Name of its candidate source.
    dimension
        D, the length of the served vectors; one element is the item's popularity.
    window
        Maximum distance of two items in the time-ordered history; None treats the history as a bag.
    contexts
        Number of other items of its history that each item is paired with in an epoch.
    negatives
        n, the number of items drawn for each such pair.
    negative_exponent
        α: 0 draws uniformly from the items with interactions, 1 in proportion to their number.
    batch_size
        Pairs in a batch.
    learning_rate, weight_decay
        Learning rate and weight decay of the optimiser (AdamW).
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    """

    name: str = "item2vec"
    dimension: int = 64
    window: int | None = None
    contexts: int = 4
    negatives: int = 8
    negative_exponent: float = 0.75
    batch_size: int = 4096
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    max_epochs: int = 30
    patience: int = 4

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range."""
        ranges = {**DESCENT, "negative_exponent": AT_LEAST_0}
        ranges |= {"dimension": Range(2, WIDTH.high, whole=True)}
        ranges |= dict.fromkeys(("contexts", "negatives", "batch_size", "window"), COUNT)
        return list(out_of_range(self, ranges, none={"window": "the whole history"}))

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns``, since the model reads the history."""
        return {"history_columns": "name the item id feature: users are described by their history"}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem if there is a window, but no timestamp to order a history by."""
        if timed or self.window is None:
            return []
        problem = "places of a history are counted in order of time, but the interactions have no timestamp"
        return [Problem("window", problem, "name the data set's timestamp, or write window=None")]

    def epoch(self, data: RetrievalData, fitted: Any, rng: np.random.Generator, label: str) -> Epoch:
        """Train on pairs of items from each history."""
        pairs, packed = data.pairs, data.packed
        items, contexts = fitted.user_tower.items, fitted.item_tower.contexts
        counts = np.bincount(pairs.items, minlength=packed.n_items).astype(np.float64)
        drawn_to = np.cumsum(np.where(counts > 0, counts**self.negative_exponent, 0.0))
        fitted.item_tower.weigh(packed.item["item_cat"][:-1], counts, self.negative_exponent)

        def vectors(module: HistoryItems, rows: IntArray) -> Tensor:
            found: Tensor = module(item_cat=catalogue_tensor(packed.item, torch.from_numpy(rows)))
            return found

        def loss(centre: IntArray, wanted: IntArray) -> Tensor:
            drawn = rng.random((len(centre), self.negatives)) * drawn_to[-1]
            drawn = np.searchsorted(drawn_to, drawn, side="right")
            own = vectors(items, centre)
            positive = softplus(-(own * vectors(contexts, wanted)).sum(1))
            negative = softplus((own.unsqueeze(1) * vectors(contexts, drawn)).sum(2))
            free = torch.from_numpy(drawn != wanted[:, None])
            found: Tensor = (positive + (negative * free).sum(1)).mean()
            return found

        def losses(number: int) -> Counted[Tensor]:
            met = self._met(pairs, rng)
            batches = cut(rng.permutation(len(met[0])), self.batch_size)
            return batches.through(
                lambda some: loss(*(pairs.items[places[some]].astype(np.int64) for places in met))
            )

        return losses

    def _met(self, pairs: Pairs, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return positions ``[p]`` of items, and for each that of another item of the same history."""
        place = np.tile(np.arange(len(pairs)), self.contexts)
        first, last = pairs.offsets[pairs.users[place]], pairs.offsets[pairs.users[place] + 1] - 1
        if self.window is not None:
            first, last = np.maximum(first, place - self.window), np.minimum(last, place + self.window)
        # A user with a single item has no other.
        there = last > first
        place, first, last = place[there], first[there], last[there]
        other = first + rng.integers(0, np.maximum(last - first, 1))
        return place, other + (other >= place)

    def fresh(self, inputs: ModelInputs) -> FittedVectors:
        """Return the query and the item module."""
        items = history_items(inputs, self.dimension - 1, _SPREAD)
        contexts = history_items(inputs, self.dimension - 1, 0.0)
        query = with_inputs(MeanVector, HISTORY)(items)
        return FittedVectors(query, with_inputs(ContextVectors, ("item_cat",))(inputs, contexts))


class MeanVector(PackedModule):
    """History → the mean of its items' vectors, followed by 1: ``[B, D]``."""

    def __init__(self, items: HistoryItems):
        super().__init__()
        self.items = items

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the queries ``[B, D]``."""
        vectors, length = self.items.shown(tensors["history_cat"]), tensors["history_length"]
        places = torch.arange(vectors.shape[1], device=vectors.device)
        real = (places < length).unsqueeze(-1).to(vectors.dtype)
        mean = (vectors * real).sum(dim=1) / length.clamp(min=1).to(vectors.dtype)
        return torch.cat([mean, torch.ones_like(mean[:, :1])], dim=1)


class ContextVectors(PackedModule):
    """``item_cat [B, C]`` → context vectors ``[B, D]`` of items, whose last element is α log count."""

    popularity: Tensor

    def __init__(self, inputs: ModelInputs, contexts: HistoryItems):
        super().__init__()
        self.contexts = contexts
        place = id_table(inputs, contexts)
        self.column = contexts.places[place]
        self.register_buffer("popularity", torch.zeros(inputs.item.cat[self.column].cardinality))

    def weigh(self, item_cat: Array, counts: Array, exponent: float) -> None:
        """Set the popularity of each id from ``counts [I]``, the mean count if several items share an id."""
        ids, size = item_cat[:, self.column], len(self.popularity)
        had = np.bincount(ids, counts, size) / np.maximum(np.bincount(ids, minlength=size), 1)
        # An item without interactions is less popular than one with a single one, but not infinitely so.
        self.popularity.copy_(torch.from_numpy(exponent * np.log(np.maximum(had, 0.5))))

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the item vectors ``[B, D]``."""
        popularity = self.popularity[tensors["item_cat"][..., self.column]]
        return torch.cat([self.contexts.compute(tensors), popularity.unsqueeze(-1)], dim=-1)
