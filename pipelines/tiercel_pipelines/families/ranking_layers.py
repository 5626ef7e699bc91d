"""Layers of rankers: fields of both sides, and layers over [user, candidate] that compute the user once.

Shapes: B users, K candidates each, u and i fields of width E on either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..arrays.inputs import ModelInputs
from .layers import SideEncoder, hidden_layers, linear_of_parts, pool_history

#: Standard deviation of the initial embeddings: large enough for products of them to have gradients.
SPREAD = 0.05


class CandidateFields(nn.Module):
    """Packed tensors → the fields of the user ``[B, u, E]`` and of the candidates ``[B, K, i, E]``.

    The field of a category is its embedding, that of a list the mean of its embeddings, and that of a number
    a learned vector times the number. The history gives the user two fields: the sum of its items' embeddings
    (from the candidates' tables) divided by the root of its length, and the logarithm of its length.
    ``scored`` adds retrieval's score and its distance from the best score to the candidates' numbers. With
    ``pooled`` False, the family handles the history's items itself.
    """

    def __init__(self, inputs: ModelInputs, width: int, *, scored: bool, pooled: bool = True):
        super().__init__()
        self.width, self.scored = width, scored
        self.user_encoder = SideEncoder(inputs.user, width, spread=SPREAD)
        self.item_encoder = SideEncoder(inputs.item, width, spread=SPREAD)
        places = {column.name: place for place, column in enumerate(inputs.item.cat)}
        self.history_places = tuple(places[name] for name in inputs.history)
        self.pooled = pooled and bool(self.history_places)
        users = self.user_encoder.number_count + bool(self.history_places)
        items = self.item_encoder.number_count + 2 * scored
        self.user_numbers, self.item_numbers = NumberFields(users, width), NumberFields(items, width)
        self.user_count = self.user_encoder.field_count + self.pooled + users
        self.item_count = self.item_encoder.field_count + items
        if not self.user_count or not self.item_count:
            raise ValueError(
                "the ranker needs at least one column of the user (or the history) and of the item"
            )

    def forward(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return ``[B, u, E]`` and ``[B, K, i, E]``."""
        return self.user(tensors), self.items(tensors)

    def user(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``[B, u, E]``."""
        fields, numbers = self.user_encoder.fields(tensors), self.user_encoder.numbers(tensors)
        if self.history_places:
            length = tensors["history_length"]
            numbers.append(torch.log1p(length.to(torch.float32)))
            if self.pooled:
                fields.append(pool_history(self._history_tables(), tensors["history_cat"], length))
        return self.user_numbers.join(fields, numbers)

    def items(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``[B, K, i, E]``."""
        fields, numbers = self.item_encoder.fields(tensors), self.item_encoder.numbers(tensors)
        if self.scored:
            score = tensors["kept_score"]
            # Candidates are sorted best first: the second number is the distance from the best score.
            numbers.append(torch.stack([score, score - score[:, :1]], dim=-1))
        return self.item_numbers.join(fields, numbers)

    def history(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the vectors of the history ``[B, L, E]``, and ``[B, L]`` True where it is real."""
        ids, length = tensors["history_cat"], tensors["history_length"]
        tables = self._history_tables()
        vectors = torch.stack([table(ids[..., place]) for place, table in enumerate(tables)]).sum(0)
        return vectors, torch.arange(ids.shape[1], device=ids.device).unsqueeze(0) < length

    def alike(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the candidates embedded like items of the history: ``[B, K, E]``."""
        ids = tensors["item_cat"]
        found = [
            table(ids[..., place])
            for place, table in zip(self.history_places, self._history_tables(), strict=True)
        ]
        return torch.stack(found).sum(0)

    def _history_tables(self) -> list[nn.Module]:
        return [self.item_encoder.tables[place] for place in self.history_places]


class NumberFields(nn.Module):
    """Numbers ``[…, F]`` → fields ``[…, F, E]``: each a learned vector times the number, as in an FM."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) * SPREAD) if count else None

    def join(self, fields: list[Tensor], numbers: list[Tensor]) -> Tensor:
        """Return fields ``[…, E]`` and the fields of numbers ``[…, f]`` as one ``[…, fields, E]``."""
        parts = [field.unsqueeze(-2) for field in fields]
        if self.weight is not None:
            parts.append(torch.cat(numbers, dim=-1).unsqueeze(-1) * self.weight)
        return torch.cat(parts, dim=-2)


class PairMLP(nn.Module):
    """Hidden layers over user ``[B, U]`` and candidate ``[B, K, I]`` together: ``[B, K, last width]``."""

    def __init__(self, user: int, item: int, widths: Sequence[int], dropout: float):
        super().__init__()
        self.first = nn.Linear(user + item, widths[0])
        self.start = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        self.rest = hidden_layers(widths[0], widths[1:], dropout)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the last hidden layer."""
        hidden: Tensor = self.rest(self.start(pair_linear(self.first, user, item)))
        return hidden


def pair_linear(layer: nn.Linear, user: Tensor, item: Tensor) -> Tensor:
    """Return a linear layer over users ``[B, U]`` and candidates ``[B, K, I]`` together: ``[B, K, O]``."""
    return linear_of_parts(layer, (user.unsqueeze(1), item))


def flat_fields(user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """Return fields ``[B, u, E]`` and ``[B, K, i, E]`` concatenated: ``[B, u·E]`` and ``[B, K, i·E]``."""
    return user.flatten(1), item.flatten(2)


def bi_interaction(user: Tensor, item: Tensor) -> Tensor:
    r"""Return the element-wise products of all pairs of fields, added up: ``[B, K, E]``.

    .. math:: \sum_{a < b} v_a \odot v_b = \tfrac12 \Bigl[ (\sum_a v_a)^2 - \sum_a v_a^2 \Bigr]

    which is linear in the number of fields (Rendle 2010, eq. 5). The sums over the user's fields are computed
    once per user.
    """
    total = user.sum(1).unsqueeze(1) + item.sum(2)
    squares = user.square().sum(1).unsqueeze(1) + item.square().sum(2)
    return 0.5 * (total.square() - squares)


class Wide(nn.Module):
    """The first-order terms: a weight for each category and number, and one for each crossed pair.

    Crossed pairs of a user's and an item's category share ``buckets`` weights by hash; if there are no more
    pairs than buckets, each has its own. All weights start at zero. The output is ``[B, K, T]``.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        tasks: int,
        *,
        crosses: Sequence[tuple[str, str]] = (),
        buckets: int = 1,
    ):
        super().__init__()
        self.user_encoder = SideEncoder(inputs.user, tasks, spread=0.0)
        self.item_encoder = SideEncoder(inputs.item, tasks, spread=0.0)
        self.user_numbers = nn.Parameter(torch.zeros(self.user_encoder.number_count, tasks))
        self.item_numbers = nn.Parameter(torch.zeros(self.item_encoder.number_count, tasks))
        user = {column.name: place for place, column in enumerate(inputs.user.cat)}
        item = {column.name: place for place, column in enumerate(inputs.item.cat)}
        self.places = [(user[one], item[other]) for one, other in crosses]
        self.sizes = [
            (inputs.user.cat[u].cardinality, inputs.item.cat[i].cardinality) for u, i in self.places
        ]
        self.buckets = buckets
        self.crossed = nn.ModuleList(nn.Embedding(min(u * i, buckets), tasks) for u, i in self.sizes)
        for table in self.crossed.parameters():
            nn.init.zeros_(table)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of all weights that apply."""
        user = self.user_encoder.fields(tensors)
        user += [numbers @ self.user_numbers for numbers in self.user_encoder.numbers(tensors)]
        item = self.item_encoder.fields(tensors)
        item += [numbers @ self.item_numbers for numbers in self.item_encoder.numbers(tensors)]
        for (u, i), (users, items), table in zip(self.places, self.sizes, self.crossed, strict=True):
            pair = tensors["user_cat"][:, u].unsqueeze(1) * items + tensors["item_cat"][..., i]
            item.append(table(pair if users * items <= self.buckets else hashed(pair, self.buckets)))
        total = torch.stack(item).sum(0)
        return total + torch.stack(user).sum(0).unsqueeze(1) if user else total


def hashed(numbers: Tensor, buckets: int) -> Tensor:
    """Return buckets of int64 numbers ≥ 0 by Fibonacci hashing: the upper bits of a product (TAOCP 6.4)."""
    mixed = (numbers % 2**31) * 2_654_435_761 % 2**32  # below 2^63 throughout
    return torch.div(mixed * buckets, 2**32, rounding_mode="floor")
