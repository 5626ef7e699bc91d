r"""``bst``: a transformer over the history with the candidate as its last item.

Embeddings of the items and of their distance from the end of the history pass through self-attention blocks

.. math:: x' = \mathrm{LN}(x + \mathrm{MH}(x)), \qquad \mathrm{LN}(x' + W_2\, \mathrm{LeakyReLU}(W_1 x'))

and the candidate's output goes, with all fields, into an MLP (Chen et al. 2019, "Behavior sequence
transformer for e-commerce recommendation in Alibaba", eq. 2 to 6). Unlike in the paper, items of the history
do not attend to the candidate, which comes after them. They are therefore encoded once per user rather than
once per candidate, and the MLP sees only the candidate's output. Positions count items, not time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tiercel_serving.problems import COUNT, Problem, Range

from ..arrays.inputs import ModelInputs
from ..tasks.table import MASKED
from .layers import zero_linear
from .ranker import RankingNetwork, SequenceRanker, build_network
from .ranking_layers import SPREAD, CandidateFields, PairMLP, flat_fields
from .table import Columns


class BST(SequenceRanker, frozen=True, tag="bst"):
    """Behavior sequence transformer.

    Parameters
    ----------
    blocks, heads
        Number of blocks, and of attention heads in each; ``heads`` must divide ``embedding_dimension``.
    places
        Number of history positions with an embedding of their own; older items share the last one.
    layers
        Widths of the MLP's hidden layers.
    """

    blocks: int = 1
    heads: int = 2
    places: int = 100
    layers: tuple[int, ...] = (64, 32)

    widths: ClassVar[tuple[str, ...]] = ("layers",)
    ranges: ClassVar[Mapping[str, Range]] = dict.fromkeys(("blocks", "heads", "places"), COUNT)

    def problems(self) -> list[Problem]:
        """Return the base class's problems, and one if the heads do not divide the width."""
        wrong, width = super().problems(), self.embedding_dimension
        if COUNT.holds(self.heads) and COUNT.holds(width) and width % self.heads:
            problem = f"{self.heads} heads do not divide embedding_dimension, which is {width}"
            wrong.append(Problem("heads", problem, "take a divisor, such as 1 or 2"))
        return wrong

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem if interactions have no timestamp, since a history then has no order."""
        if timed:
            return super().misfits(user, item, timed)
        problem = "a BST reads histories in their order, but the interactions have no timestamp"
        return [Problem("", problem, "name the data set's timestamp, or take DIN(…), which needs no order")]

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> SequenceTransformer:
        """Build the network with fresh weights."""
        return build_network(SequenceTransformer, self, inputs, scale)


class SequenceTransformer(RankingNetwork):
    """Blocks over the history and each candidate, and hidden layers."""

    def __init__(self, settings: BST, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width, scored = settings.embedding_dimension, settings.use_retrieval_score
        self.fields = fields = CandidateFields(inputs, width, scored=scored, pooled=False)
        #: Position 0 is the candidate, 1 the latest item of the history.
        self.places = nn.Embedding(settings.places + 1, width)
        nn.init.normal_(self.places.weight, std=SPREAD)
        self.blocks = nn.ModuleList(
            Block(width, settings.heads, settings.dropout) for _ in range(settings.blocks)
        )
        sizes = fields.user_count * width, (fields.item_count + 1) * width
        self.hidden = PairMLP(*sizes, settings.layers, settings.dropout)
        self.last = zero_linear(settings.layers[-1], self.tasks)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's scores."""
        history, real = self.fields.history(tensors)
        places = tensors["history_length"] - torch.arange(history.shape[1], device=history.device)
        history = history + self.places(places.clamp(0, self.places.num_embeddings - 1))
        candidate = self.fields.alike(tensors) + self.places.weight[0]
        for block in self.blocks[:-1]:
            history, candidate = block(history, history, real), block(history, candidate, real, last=True)
        candidate = self.blocks[-1](history, candidate, real, last=True)
        user, item = self.fields(tensors)
        item = torch.cat([item, candidate.unsqueeze(2)], dim=2)
        score: Tensor = self.last(self.hidden(*flat_fields(user, item)))
        return score


class Block(nn.Module):
    """One transformer block over a history ``[B, L, E]`` and the items after it."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.LeakyReLU(), nn.Linear(4 * width, width))

    def forward(self, history: Tensor, x: Tensor, real: Tensor, *, last: bool = False) -> Tensor:
        """Return the output for ``x [B, M, E]``, which attends to the history (``real [B, L]`` is its mask).

        With ``last``, each item of ``x`` follows the history by itself, and also attends to itself.
        """
        query, keys, values = self._split(self.query(x)), self.key(history), self.value(history)
        scores = query @ self._split(keys).transpose(2, 3) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(~real[:, None, None], MASKED)
        if last:
            own = (query * self._split(self.key(x))).sum(-1, keepdim=True) / query.shape[-1] ** 0.5
            weights = torch.cat([scores, own], dim=-1).softmax(-1)
            found = weights[..., :-1] @ self._split(values) + weights[..., -1:] * self._split(self.value(x))
        else:
            found = scores.softmax(-1) @ self._split(values)
        x = self.norm(x + self.drop(self.out(found.transpose(1, 2).flatten(2))))
        result: Tensor = self.last_norm(x + self.drop(self.feed(x)))
        return result

    def _split(self, x: Tensor) -> Tensor:
        """Split ``[B, M, E]`` into heads: ``[B, heads, M, E / heads]``."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
