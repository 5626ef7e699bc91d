"""DLRM ranker: pairwise inner products of user and item embeddings, and two small networks.

::

    user columns, history ─ embeddings ─ U [B, u, E] ┐
                                                     ├─ U·I [B, K, u·i] ─ top network ┐
    item columns, bottom(numbers) ───── I [B, K, i, E]┘                               +─ rank_score
    kept_score ──────────────────────────────────────────── × learned scale ──────────┘  [B, K, T]

The user side is computed once and meets the K candidates only in the inner products. The score starts
as the retrieval model's own (the last layers start at zero), so an untrained ranker keeps retrieval's
order, and training learns only what to change about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layers import (
    PackedModule,
    Side,
    SideEncoder,
    embedding,
    hidden_layers,
    pool_history,
    with_inputs,
    zero_linear,
)

#: Spread of the ranker's initial embeddings: large enough for inner products to have gradients.
SPREAD = 0.05


@dataclass(frozen=True)
class DLRMConfig:
    """What must be known to build the ranker again.

    Parameters
    ----------
    user, item
        Columns of both sides.
    history_columns
        The H item columns whose ids make ``history_cat [B, L, H]``; empty for no history.
    sources
        How many retrieval sources there are.
    embedding_dimension
        E.
    bottom_layers, top_layers
        Widths of the hidden layers before and after the inner products.
    dropout
        Of the hidden layers and of the user's embeddings.
    tasks
        T, how many scores a candidate gets.
    scale
        Where the factor of the retrieval score starts: 1 / temperature of the retrieval model, so
        that scores are its log-probabilities up to a constant. None leaves the score out.
    """

    user: Side
    item: Side
    history_columns: tuple[str, ...] = ()
    sources: int = 1
    embedding_dimension: int = 32
    bottom_layers: tuple[int, ...] = ()
    top_layers: tuple[int, ...] = (64,)
    dropout: float = 0.2
    tasks: int = 1
    scale: float | None = 5.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DLRMConfig:
        """Read what :meth:`to_json` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        values.update(user=Side.from_json(data["user"]), item=Side.from_json(data["item"]))
        return cls(**values)


class DLRM(PackedModule):
    """User tensors, candidates ``[B, K, …]`` and their retrieval scores → ``rank_score [B, K, T]``."""

    def __init__(self, config: DLRMConfig):
        super().__init__()
        self.config = config
        width, dropout = config.embedding_dimension, config.dropout
        self.user_encoder = SideEncoder(config.user, width, spread=SPREAD)
        self.item_encoder = SideEncoder(config.item, width, spread=SPREAD)
        cardinalities = {column.name: column.cardinality for column in config.item.cat}
        self.history_tables = nn.ModuleList(
            embedding(cardinalities[name], width, SPREAD) for name in config.history_columns
        )
        history, score = bool(config.history_columns), config.scale is not None
        self.user_bottom = _Bottom(self.user_encoder.number_count + history, config)
        self.item_bottom = _Bottom(self.item_encoder.number_count + 2 * score, config)
        users = self.user_encoder.field_count + history + self.user_bottom.used
        items = self.item_encoder.field_count + self.item_bottom.used
        pairs = users * items
        inputs = pairs + width * (self.user_bottom.used + self.item_bottom.used)
        self.drop = nn.Dropout(dropout)
        self.top = hidden_layers(inputs, config.top_layers, dropout)
        self.last = zero_linear(config.top_layers[-1] if config.top_layers else inputs, config.tasks)
        self.pair_weights = zero_linear(pairs, config.tasks, bias=False)
        if score:
            self.scale = nn.Parameter(torch.full((config.tasks,), float(config.scale or 0.0)))
            self.source_bias = nn.Embedding(config.sources + 1, config.tasks)
            nn.init.zeros_(self.source_bias.weight)

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the scores ``[B, K, T]``; what padded candidates get means nothing."""
        user, user_numbers = self._user(tensors)
        item, item_numbers = self._items(tensors)
        batch, count, fields, width = item.shape
        # [B, K·i, E] × [B, E, u]: one matrix product a user, whatever K is.
        pairs = torch.matmul(item.reshape(batch, count * fields, width), user.transpose(1, 2))
        pairs = pairs.reshape(batch, count, fields * user.shape[1])
        parts = [pairs]
        if user_numbers is not None:
            parts.append(user_numbers.unsqueeze(1).expand(-1, count, -1))
        if item_numbers is not None:
            parts.append(item_numbers)
        score = self.last(self.top(torch.cat(parts, dim=-1))) + self.pair_weights(pairs)
        if self.config.scale is not None:
            score = score + tensors["kept_score"].unsqueeze(-1) * self.scale
            score = score + self.source_bias(tensors["kept_source"])
        result: Tensor = score
        return result

    def _user(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the user's vectors [B, u, E] and the bottom network's output [B, E]."""
        vectors = self.user_encoder.fields(tensors)
        numbers = _present(self.user_encoder.numbers(tensors))
        if self.config.history_columns:
            length = tensors["history_length"]
            vectors.append(pool_history(list(self.history_tables), tensors["history_cat"], length))
            numbers.append(torch.log1p(length.to(torch.float32)))
        bottom = self.user_bottom(torch.cat(numbers, dim=-1)) if numbers else None
        if bottom is not None:
            vectors.append(bottom)
        return self.drop(torch.stack(vectors, dim=1)), bottom

    def _items(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the candidates' vectors [B, K, i, E] and the bottom network's output [B, K, E]."""
        vectors = self.item_encoder.fields(tensors)
        numbers = _present(self.item_encoder.numbers(tensors))
        if self.config.scale is not None:
            score = tensors["kept_score"]
            # Candidates come best first: the second number is how far one lies behind the best.
            numbers.append(torch.stack([score, score - score[:, :1]], dim=-1))
        bottom = self.item_bottom(torch.cat(numbers, dim=-1)) if numbers else None
        if bottom is not None:
            vectors.append(bottom)
        return torch.stack(vectors, dim=2), bottom


class _Bottom(nn.Module):
    """Numbers → one vector of width E; ``used`` is False if there are none."""

    def __init__(self, inputs: int, config: DLRMConfig):
        super().__init__()
        self.used = inputs > 0
        if self.used:
            widths = config.bottom_layers
            self.hidden = hidden_layers(inputs, widths, 0.0)
            self.last = nn.Linear(widths[-1] if widths else inputs, config.embedding_dimension)

    def forward(self, numbers: Tensor) -> Tensor:
        vector: Tensor = self.last(self.hidden(numbers))
        return vector


def _present(tensor: Tensor | None) -> list[Tensor]:
    return [] if tensor is None else [tensor]


def build_dlrm(config: DLRMConfig) -> DLRM:
    """Build the ranker with fresh weights from torch's global random state.

    Parameters
    ----------
    config
        Columns and widths.

    Returns
    -------
    DLRM
        With ``forward(user_cat, …, item_cat, …, kept_score, kept_source) → [B, K, T]`` float32; its
        signature names its packed tensors.
    """
    if not (config.item.cat or config.item.lists):
        raise ValueError("the ranker needs at least one categorical item column, such as the item id")
    history = ("history_cat", "history_length") if config.history_columns else ()
    retrieved = ("kept_score", "kept_source") if config.scale is not None else ()
    names = (*config.user.tensor_names, *history, *config.item.tensor_names, *retrieved)
    return with_inputs(DLRM, names)(config)
