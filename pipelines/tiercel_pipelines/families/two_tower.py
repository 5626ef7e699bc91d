"""Two-tower retrieval: a user tower and an item tower that meet in an inner product of unit vectors.

::

    user columns ─ embeddings ┐
    numbers ────── linear ────┼─ sum ─ + hidden layers ─ L2 norm ─ query [B, D] ┐
    history ─ item embeddings ┘                                                 ├─ inner product
              └──── shared ──┐                                                  │
    item columns ─ embeddings┼─ sum ─ + hidden layers ─ L2 norm ─ vector [B, D] ┘
    numbers ────── linear ───┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import PackedModule, Side, SideEncoder, hidden_layers, pool_history, with_inputs, zero_linear

#: Spread of the initial embeddings that a history adds up; they carry most of what is learned.
ITEM_SPREAD = 0.1


@dataclass(frozen=True)
class TwoTowerConfig:
    """What must be known to build both towers again.

    Parameters
    ----------
    user, item
        Columns of both sides.
    history_columns
        The H item columns whose ids make ``history_cat [B, L, H]``; empty for no history.
    dimension
        D.
    embedding_dimension
        E.
    user_layers, item_layers
        Widths of the hidden layers.
    dropout
        Of the hidden layers and of the user's embeddings.
    """

    user: Side
    item: Side
    history_columns: tuple[str, ...] = ()
    dimension: int = 64
    embedding_dimension: int = 64
    user_layers: tuple[int, ...] = ()
    item_layers: tuple[int, ...] = ()
    dropout: float = 0.1

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TwoTowerConfig:
        """Read what :meth:`to_json` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        values.update(user=Side.from_json(data["user"]), item=Side.from_json(data["item"]))
        return cls(**values)


class Tower(PackedModule):
    """What both towers share: columns → sum of embeddings → residual hidden layers → unit vector."""

    def __init__(self, side: Side, config: TwoTowerConfig, layers: tuple[int, ...]):
        super().__init__()
        width, dimension = config.embedding_dimension, config.dimension
        self.encoder = SideEncoder(side, width)
        count = self.encoder.number_count
        self.number_layer = nn.Linear(count, width) if count else None
        self.project = nn.Linear(width, dimension, bias=False) if width != dimension else None
        self.bias = nn.Parameter(torch.zeros(dimension))
        self.hidden = hidden_layers(dimension, layers, config.dropout) if layers else None
        self.last = zero_linear(layers[-1], dimension) if layers else None

    def columns(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the vectors ``[B, E]`` to add up."""
        found = self.encoder.fields(tensors)
        numbers = self.encoder.numbers(tensors)
        if self.number_layer is not None and numbers is not None:
            found.append(self.number_layer(numbers))
        return found

    def finish(self, vectors: list[Tensor]) -> Tensor:
        """Add up ``[B, E]`` vectors and return unit vectors ``[B, D]``."""
        total = vectors[0]
        for vector in vectors[1:]:
            total = total + vector
        if self.project is not None:
            total = self.project(total)
        total = total + self.bias
        if self.hidden is not None and self.last is not None:
            total = total + self.last(self.hidden(total))
        return F.normalize(total, dim=-1, eps=1e-6)


class ItemTower(Tower):
    """Item columns → ``[B, D]`` float32 unit vectors."""

    def __init__(self, config: TwoTowerConfig):
        super().__init__(config.item, config, config.item_layers)
        places = {column.name: place for place, column in enumerate(config.item.cat)}
        with torch.no_grad():
            for name in config.history_columns or tuple(places)[:1]:
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

    The embeddings of the history are the item tower's own.
    """

    def __init__(self, config: TwoTowerConfig, item_tower: ItemTower):
        super().__init__(config.user, config, config.user_layers)
        places = {column.name: place for place, column in enumerate(config.item.cat)}
        width = config.embedding_dimension
        tables = [item_tower.table(places[name]) for name in config.history_columns]
        self.history_tables = nn.ModuleList(tables)
        self.history_layer = nn.Linear(width, width, bias=False) if tables else None
        if self.history_layer is not None:
            nn.init.eye_(self.history_layer.weight)
        self.drop = nn.Dropout(config.dropout)

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the queries ``[B, D]``."""
        vectors = [self.drop(vector) for vector in self.columns(tensors)]
        if self.history_layer is not None:
            tables = list(self.history_tables)
            pooled = pool_history(tables, tensors["history_cat"], tensors["history_length"])
            vectors.append(self.history_layer(pooled))
        return self.finish(vectors)


class TwoTower(nn.Module):
    """Both towers, with their shared embeddings once."""

    def __init__(self, config: TwoTowerConfig):
        super().__init__()
        history = ("history_cat", "history_length") if config.history_columns else ()
        self.config = config
        self.item_tower = with_inputs(ItemTower, config.item.tensor_names)(config)
        user_inputs = (*config.user.tensor_names, *history)
        self.user_tower = with_inputs(UserTower, user_inputs)(config, self.item_tower)


def build_two_tower(config: TwoTowerConfig) -> TwoTower:
    """Build both towers with fresh weights from torch's global random state.

    Parameters
    ----------
    config
        Columns and widths.

    Returns
    -------
    TwoTower
        With ``user_tower(user_cat, …, history_cat, history_length) → [B, D]`` and
        ``item_tower(item_cat, …) → [B, D]``, each naming its packed tensors in its signature.
    """
    if not config.item.cat:
        raise ValueError("the item tower needs at least one categorical column, such as the item id")
    return TwoTower(config)
