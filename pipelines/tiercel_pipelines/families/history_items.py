"""Item vectors for models that describe a user only by the items of the history.

An item's vector is the sum of the embeddings of its history columns (``serving.history_columns``), one of
which is the item id. Histories and the catalogue thus share their vectors, and a new item has the vector of
its other columns. Where the catalogue has items with an unknown id, they take part in training as negatives,
so that the embedding of the unknown id does not favour them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tiercel_serving.spec import Arrays

from ..arrays.inputs import ModelInputs
from .layers import PackedModule, embedding, with_inputs

#: The user tensors that a model of the history alone reads.
HISTORY = ("history_cat", "history_length")


class HistoryItems(PackedModule):
    """``item_cat [B, C]`` → the vectors ``[B, D]`` of items; with ``biased``, the last element is a bias.

    Biases start at 0, the other elements with standard deviation ``spread``.
    """

    def __init__(self, inputs: ModelInputs, dimension: int, spread: float, *, biased: bool = False):
        super().__init__()
        columns = {column.name: place for place, column in enumerate(inputs.item.cat)}
        self.places = [columns[name] for name in inputs.history]
        self.tables = nn.ModuleList(
            embedding(inputs.item.cat[place].cardinality, dimension, spread) for place in self.places
        )
        if biased:
            with torch.no_grad():
                for table in self.tables:
                    table.weight[:, -1] = 0  # type: ignore[operator]

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of items."""
        ids = tensors["item_cat"]
        return self.of([ids[..., place] for place in self.places])

    def shown(self, history_cat: Tensor) -> Tensor:
        """Return the vectors ``[B, L, D]`` of the items of histories ``[B, L, H]``."""
        return self.of([history_cat[..., place] for place in range(len(self.places))])

    def of(self, ids: list[Tensor]) -> Tensor:
        """Return the sum of the embeddings of each column's ids ``[…]``: ``[…, D]``."""
        total: Tensor = self.tables[0](ids[0])
        for table, column in zip(self.tables[1:], ids[1:], strict=True):
            total = total + table(column)
        return total


def history_items(
    inputs: ModelInputs, dimension: int, spread: float, *, biased: bool = False
) -> HistoryItems:
    """Return a module of item vectors with fresh weights."""
    return with_inputs(HistoryItems, ("item_cat",))(inputs, dimension, spread, biased=biased)


def latest(history_cat: Tensor, history_length: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the latest ``most`` items of left-aligned histories.

    Parameters
    ----------
    history_cat, history_length
        ``[B, L, H]`` int64, oldest first, and ``[B, 1]`` int32, the number of real items.
    most
        n, the number of items to keep.

    Returns
    -------
    ``[B, min(n, L), H]`` and ``[B, 1]``, both int64, for the latest items only.
    """
    width = history_cat.shape[1]
    length = history_length.to(torch.int64)
    if width <= most:
        return history_cat, length
    start = (length - most).clamp(min=0)
    places = start + torch.arange(most, device=history_cat.device)
    index = places.unsqueeze(-1).expand(-1, -1, history_cat.shape[2])
    return torch.gather(history_cat, 1, index), length.clamp(max=most)


def catalogue_tensor(packed_item: Arrays, rows: Tensor | None = None) -> Tensor:
    """Return ``item_cat`` of catalogue rows ``[n]``; None is all of them, without the padding row."""
    ids = torch.from_numpy(packed_item["item_cat"])
    return ids[:-1] if rows is None else ids[rows]
