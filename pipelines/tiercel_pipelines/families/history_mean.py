"""A query in the direction of the history's mean: the served form of models that have only item vectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arrays.inputs import ModelInputs
from .history_items import HISTORY, HistoryItems
from .layers import PackedModule, with_inputs


class HistoryMean(PackedModule):
    """History → the normalised sum ``[B, D]`` of its items' unit vectors; 0 for an empty history."""

    def __init__(self, items: HistoryItems):
        super().__init__()
        self.items = items

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the queries ``[B, D]``."""
        vectors = F.normalize(self.items.shown(tensors["history_cat"]), dim=-1, eps=1e-6)
        places = torch.arange(vectors.shape[1], device=vectors.device)
        real = (places < tensors["history_length"]).unsqueeze(-1).to(vectors.dtype)
        return F.normalize((vectors * real).sum(dim=1), dim=-1, eps=1e-6)


class UnitItems(PackedModule):
    """``item_cat [B, C]`` → unit vectors ``[B, D]`` of items; 0 for an item without a learned vector."""

    def __init__(self, items: HistoryItems):
        super().__init__()
        self.items = items

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the item vectors ``[B, D]``."""
        return F.normalize(self.items.compute(tensors), dim=-1, eps=1e-6)


def history_mean(items: HistoryItems) -> HistoryMean:
    """Return the query module over item vectors."""
    return with_inputs(HistoryMean, HISTORY)(items)


def unit_items(items: HistoryItems) -> UnitItems:
    """Return the item module over item vectors."""
    return with_inputs(UnitItems, ("item_cat",))(items)


def id_table(inputs: ModelInputs, items: HistoryItems) -> int:
    """Return the index of the embedding table of the column with the most categories: the item id."""
    counts = [inputs.item.cat[place].cardinality for place in items.places]
    return counts.index(max(counts))
