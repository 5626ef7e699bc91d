r"""``sasrec``: self-attention over the history; each item attends to those before it.

.. math:: x = e \sqrt D + p, \qquad x' = x + \mathrm{MH}(\mathrm{LN}(x)), \qquad
    x'' = x' + W_2\, \mathrm{ReLU}(W_1\, \mathrm{LN}(x'))

in each block, with item embeddings e and position embeddings p, and a layer norm after the last block. The
query is combined with the same item embeddings by an inner product (Kang & McAuley 2018, "Self-attentive
sequential recommendation", eq. 2 to 9). Unlike in the paper, it is trained with many negatives, not one (see
:mod:`~.sequences`). Positions count from the start of the visible history, and a learned vector precedes the
first item.

A history ``[B, L, H]`` gives a query ``[B, D]``; item vectors are ``[I, D]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tiercel_serving.problems import COUNT, Problem, Range

from ..arrays.inputs import ModelInputs
from ..tasks.table import MASKED
from .history_items import HistoryItems
from .sequences import SPREAD, SequenceFamily, SequenceNetwork, sequence_network


class SASRec(SequenceFamily, frozen=True, tag="sasrec"):
    """Self-attentive sequential recommendation.

    Parameters
    ----------
    blocks, heads
        Number of blocks, and of attention heads in each; ``heads`` must divide ``dimension``.
    """

    name: str = "sasrec"
    blocks: int = 2
    heads: int = 1

    ranges: ClassVar[Mapping[str, Range]] = {"blocks": COUNT, "heads": COUNT}

    def problems(self) -> list[Problem]:
        """Return the base class's problems, and one if the heads do not divide the dimension."""
        wrong, width = super().problems(), self.dimension
        if COUNT.holds(self.heads) and COUNT.holds(width) and width % self.heads:
            problem = f"{self.heads} heads do not divide dimension, which is {width}"
            wrong.append(Problem("heads", problem, "take a divisor, such as 1 or 2"))
        return wrong

    def network(self, inputs: ModelInputs, items: HistoryItems) -> SequenceNetwork:
        """Return the blocks with fresh weights."""
        return sequence_network(SelfAttention, self, items)


class SelfAttention(SequenceNetwork):
    """Blocks of causal self-attention."""

    def __init__(self, settings: SASRec, items: HistoryItems):
        super().__init__(settings, items)
        width = settings.dimension
        self.places = nn.Embedding(settings.sequence_length + 1, width)
        nn.init.normal_(self.places.weight, std=SPREAD)
        self.drop = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(
            Block(width, settings.heads, settings.dropout) for _ in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(width)

    def encode(self, vectors: Tensor) -> Tensor:
        """Return the states."""
        width = vectors.shape[1]
        x = self.drop(vectors * vectors.shape[2] ** 0.5 + self.places.weight[:width])
        places = torch.arange(width, device=vectors.device)
        behind = places > places.unsqueeze(1)
        for block in self.blocks:
            x = block(x, behind)
        result: Tensor = self.norm(x)
        return result


class Block(nn.Module):
    """One block over ``[B, n, D]``; no position attends to a later one (``behind [n, n]`` is True there)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.feed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, x: Tensor, behind: Tensor) -> Tensor:
        """Return the block's output for ``x``."""
        seen = self.norm(x)
        query, key, value = (self._split(layer(seen)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        weights = self.drop(scores.masked_fill(behind, MASKED).softmax(-1))
        x = x + self.drop(self.out((weights @ value).transpose(1, 2).flatten(2)))
        result: Tensor = x + self.drop(self.feed(self.feed_norm(x)))
        return result

    def _split(self, x: Tensor) -> Tensor:
        """Split ``[B, n, D]`` into heads: ``[B, heads, n, D / heads]``."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
