r"""Base of the sequential families: training at every position of every history, and the query after it.

::

    start ─ i₁ ─ i₂ ─ … ─ iₙ      the history, oldest first
      │     │    │        │
    state₀ state₁ state₂ … stateₙ  a state depends on the items before it, and on none after it
      │     │    │        │
      i₁    i₂   i₃       ?        the item to predict; the last state is the query

A causal network that counts positions from the start computes each state in training exactly as it does when
that prefix is the history of a request, so the same function is served. A history that is longer than
``sequence_length`` is cut into windows so that each item is predicted once, from items before it only.

The loss is the softmax over the catalogue, or over ``negatives`` items that are drawn uniformly from it once
for the whole batch,

.. math:: -\log \frac{e^{s_+}}{e^{s_+} + \frac I n \sum_{j \in S, j \ne +} e^{s_j}}, \qquad n = |S|

which estimates the former (Bengio & Senécal 2008; Klenitskiy & Vasilev 2023, "Turning dross into gold loss:
is BERT4Rec really better than SASRec?", find cross-entropy over many negatives decisive). The alternative is
generalised binary cross-entropy (Petrov & Macdonald 2023, "gSASRec: reducing overconfidence in sequential
recommendation trained with negative sampling", eq. 5 to 7)

.. math:: -\beta \log \sigma(s_+) - \sum_{j \in S} \log(1 - \sigma(s_j)), \quad
    \beta = \alpha \bigl( t (1 - \tfrac1\alpha) + \tfrac1\alpha \bigr), \quad \alpha = \frac{n}{I - 1}

divided by n + 1, where t = 0 is SASRec's own loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiercel_serving.problems import BELOW_1, COUNT, SHARE, WIDTH, Problem, Range, out_of_range

from ..arrays.counted import Counted, cut
from ..arrays.inputs import ModelInputs
from ..arrays.pairs import Array, BoolArray, IntArray, Pairs
from ..tasks.table import MASKED
from .descent import DESCENT
from .fitted import FittedVectors
from .history_items import HISTORY, HistoryItems, catalogue_tensor, history_items, latest
from .layers import PackedModule, with_inputs
from .table import Columns, RetrievalData
from .vector_family import Epoch, VectorFamily

#: Standard deviation of the initial embeddings.
SPREAD = 0.02

#: Number of batches whose histories are sorted by length together, so that batches have little padding.
_POOL = 32


class SequenceFamily(VectorFamily, frozen=True):
    """Base of the settings of a retrieval family that reads the history in its order.

    Parameters
    ----------
    name
        Name of its candidate source.
    dimension
        D, the length of the query and of the item vectors.
    sequence_length
        Number of a user's latest items that the model sees, in training and in serving.
    dropout
        Dropout of the item embeddings and of the layers.
    loss
        ``softmax``, or ``gbce``: generalised binary cross-entropy.
    negatives
        Number of items drawn for each batch, shared by all its positions; the whole catalogue if None, or if
        it has no more items.
    calibration
        t of ``gbce``: 0 is plain binary cross-entropy, 1 corrects fully for the sampling.
    batch_size
        Histories, or windows of long ones, in a batch.
    learning_rate, weight_decay
        Learning rate and weight decay of the optimiser (AdamW).
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    """

    name: str
    dimension: int = 64
    sequence_length: int = 50
    dropout: float = 0.2
    loss: Literal["softmax", "gbce"] = "softmax"
    negatives: int | None = 1024
    calibration: float = 0.75
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_epochs: int = 100
    patience: int = 8

    #: Ranges of the family's own numeric settings.
    ranges: ClassVar[Mapping[str, Range]] = {}

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range."""
        ranges = {**DESCENT, **self.ranges, "dropout": BELOW_1, "calibration": SHARE}
        ranges |= {"dimension": WIDTH, "sequence_length": COUNT, "batch_size": COUNT, "negatives": COUNT}
        return list(out_of_range(self, ranges, none={"negatives": "the whole catalogue"}))

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns``, since the model reads the history."""
        return {"history_columns": "name the item id feature: users are described by their history"}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem if interactions have no timestamp, since a history then has no order."""
        if timed:
            return []
        what = type(self).__name__
        problem = f"a {what} reads histories in their order, but the interactions have no timestamp"
        return [
            Problem("", problem, "name the data set's timestamp, or take TwoTower(…), which needs no order")
        ]

    def network(self, inputs: ModelInputs, items: HistoryItems) -> SequenceNetwork:
        """Return the network with fresh weights."""
        raise NotImplementedError

    def epoch(self, data: RetrievalData, fitted: Any, rng: np.random.Generator, label: str) -> Epoch:
        """Train on every position of every history."""
        pairs, packed = data.pairs, data.packed
        network, items = fitted.user_tower, fitted.item_tower
        windows = Windows.cut(pairs, min(self.sequence_length, packed.history_length))
        shown = packed.item["item_cat"][:, list(packed.history_places)]

        def loss(chosen: IntArray) -> Tensor:
            rows, wanted = windows.take(chosen, pairs.items, packed.n_items)
            states = network.states(torch.from_numpy(shown[rows[:, :-1]]))
            query = states[torch.from_numpy(wanted)]
            return self._loss(query, torch.from_numpy(rows[wanted]), items, packed, rng)

        return lambda number: windows.batches(self.batch_size, rng).through(loss)

    def _loss(
        self, query: Tensor, found: Tensor, items: HistoryItems, packed: Any, rng: np.random.Generator
    ) -> Tensor:
        """Return the loss of queries ``[P, D]`` whose targets are the catalogue rows ``found [P]``."""
        count, drawn = packed.n_items, self.negatives
        if drawn is None or drawn >= count:
            scores = query @ items(item_cat=catalogue_tensor(packed.item)).T
            if self.loss == "softmax":
                return F.cross_entropy(scores, found)
            others = torch.arange(count)
        else:
            others = torch.from_numpy(rng.choice(count, drawn, replace=False))
            scores = query @ items(item_cat=catalogue_tensor(packed.item, others)).T
        positive = (query * items(item_cat=catalogue_tensor(packed.item, found))).sum(-1)
        scores = scores.masked_fill(others == found.unsqueeze(1), MASKED)
        if self.loss == "softmax":
            return sampled_cross_entropy(positive, scores, count)
        return generalised_bce(positive, scores, count, self.calibration)

    def fresh(self, inputs: ModelInputs) -> FittedVectors:
        """Return the network and the item vectors that it reads."""
        items = history_items(inputs, self.dimension, SPREAD)
        return FittedVectors(self.network(inputs, items), items)


class SequenceNetwork(PackedModule):
    """History → query ``[B, D]``: the state after the latest item, or the first state if there is none.

    Subclasses implement :meth:`encode`. The embeddings of the history are the item vectors.
    """

    def __init__(self, settings: SequenceFamily, items: HistoryItems):
        super().__init__()
        self.items, self.most = items, settings.sequence_length
        self.start = nn.Parameter(torch.empty(settings.dimension))
        nn.init.normal_(self.start, std=SPREAD)

    def encode(self, vectors: Tensor) -> Tensor:
        """Return states ``[B, n, D]`` for item vectors ``[B, n, D]``; none may depend on later vectors."""
        raise NotImplementedError

    def states(self, history_cat: Tensor) -> Tensor:
        """Return the states ``[B, n + 1, D]`` after each of the first items of histories ``[B, n, H]``."""
        start = self.start.expand(history_cat.shape[0], 1, -1)
        return self.encode(torch.cat([start, self.items.shown(history_cat)], dim=1))

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the queries ``[B, D]``."""
        history, length = latest(tensors["history_cat"], tensors["history_length"], self.most)
        states = self.states(history)
        places = torch.arange(states.shape[1], device=states.device)
        here = (places == length).unsqueeze(-1).to(states.dtype)
        return (states * here).sum(dim=1)


def sequence_network(kind: type[SequenceNetwork], *arguments: Any) -> SequenceNetwork:
    """Return a ``kind`` network whose ``forward`` takes the tensors of the history."""
    return with_inputs(kind, HISTORY)(*arguments)


@dataclass(frozen=True)
class Windows:
    """Histories cut into windows so that every interaction is predicted once.

    Parameters
    ----------
    starts, ends
        ``[W]`` positions into the pairs: a window holds ``starts:ends``.
    first
        ``[W]``: whether it begins with a user's first item, which is then predicted too.
    """

    starts: IntArray
    ends: IntArray
    first: BoolArray

    @classmethod
    def cut(cls, pairs: Pairs, length: int) -> Windows:
        """Cut each user's history into windows that show at most ``length`` items, starting at its end."""
        counts = pairs.lengths
        # The window at a user's first item predicts that item too, one more than it shows.
        windows = np.maximum(-(-(counts - 1) // length), np.minimum(counts, 1))
        users = np.repeat(np.arange(pairs.n_users), windows)
        number = np.arange(len(users)) - np.repeat(np.cumsum(windows) - windows, windows)
        ends = pairs.offsets[users + 1] - number * length
        starts = np.maximum(pairs.offsets[users], ends - length - 1)
        return cls(starts, ends, starts == pairs.offsets[users])

    def batches(self, size: int, rng: np.random.Generator) -> Counted[IntArray]:
        """Return batches of all windows in random order, with those of similar length together."""
        order = rng.permutation(len(self.starts))
        found: list[IntArray] = []
        for pool in cut(order, size * _POOL):
            found += cut(pool[np.argsort((self.ends - self.starts)[pool], kind="stable")], size)
        return Counted((found[place] for place in rng.permutation(len(found))), len(found))

    def take(self, chosen: IntArray, items: Array, pad: int) -> tuple[IntArray, BoolArray]:
        """Return the rows ``[B, w]`` of windows, and ``[B, w]`` True where the state before predicts one."""
        starts, ends = self.starts[chosen, None], self.ends[chosen, None]
        places = starts + np.arange(int((ends - starts).max()))
        real = places < ends
        rows = np.where(real, items[np.minimum(places, len(items) - 1)].astype(np.int64), pad)
        wanted = real.copy()
        wanted[:, 0] &= self.first[chosen]
        return rows, wanted


def sampled_cross_entropy(positive: Tensor, scores: Tensor, items: int) -> Tensor:
    """Return the mean softmax loss of positives ``[P]`` against items ``[P, n]`` drawn out of ``items``."""
    others = torch.logsumexp(scores, dim=1) + math.log(items / scores.shape[1])
    return (torch.logaddexp(positive, others) - positive).mean()


def generalised_bce(positive: Tensor, scores: Tensor, items: int, calibration: float) -> Tensor:
    """Return the gBCE loss of positives ``[P]`` and items ``[P, n]`` drawn out of ``items``."""
    share = min(1.0, scores.shape[1] / max(items - 1, 1))
    power = share * (calibration * (1 - 1 / share) + 1 / share)
    losses = power * F.softplus(-positive) + F.softplus(scores).sum(dim=1)
    return losses.mean() / (scores.shape[1] + 1)
