"""A typical ranker with random weights, since latency does not depend on their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

#: The tensors of the ranker, in the order of ``forward``.
INPUTS = ("user_cat", "user_num", "item_cat", "item_num", "kept_score")


@dataclass(frozen=True)
class Shape:
    """Size of the ranker: rows of the embedding table, columns of each tensor, and layer widths."""

    categories: int = 100_000
    user_cats: int = 4
    user_nums: int = 4
    item_cats: int = 4
    item_nums: int = 4
    dimension: int = 64
    hidden: tuple[int, ...] = (512, 256)


class Ranker(nn.Module):
    """DLRM over ``[B, K]`` candidates (Naumov et al. 2019): embeddings, products of all pairs, an MLP.

    Values that depend only on the user are computed once and broadcast. Returns ``[B, K, 1]`` float32.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dimension, columns = shape.dimension, shape.user_cats + shape.item_cats
        self.table = nn.Embedding(shape.categories, dimension)
        self.user_bottom = nn.Linear(shape.user_nums, dimension)
        self.item_bottom = nn.Linear(shape.item_nums + 1, dimension)
        fields = columns + 2
        first, second = torch.triu_indices(fields, fields, 1)
        # Flat positions of the products above the diagonal.
        self.register_buffer("pairs", first * fields + second)
        widths = [fields * (fields - 1) // 2 + dimension, *shape.hidden]
        layers: list[nn.Module] = []
        for below, above in pairwise(widths):
            layers += [nn.Linear(below, above), nn.ReLU()]
        self.top = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(
        self, user_cat: Tensor, user_num: Tensor, item_cat: Tensor, item_num: Tensor, kept_score: Tensor
    ) -> Tensor:
        dtype = self.table.weight.dtype
        users = torch.cat([self.table(user_cat), self.user_bottom(user_num.to(dtype)).unsqueeze(1)], dim=1)
        numbers = torch.cat([item_num, kept_score.unsqueeze(-1)], dim=-1).to(dtype)
        bottom = self.item_bottom(numbers)
        items = torch.cat([self.table(item_cat), bottom.unsqueeze(2)], dim=2)
        shared = users.unsqueeze(1).expand(-1, items.shape[1], -1, -1)
        fields = torch.cat([shared, items], dim=2)
        products = fields @ fields.transpose(2, 3)
        crossed = products.flatten(2).index_select(2, self.get_buffer("pairs"))
        scored: Tensor = self.top(torch.cat([crossed, bottom], dim=-1))
        return scored.float()


def example(shape: Shape, users: int, kept: int, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Return random inputs for a number of users and of candidates."""
    draw = torch.Generator().manual_seed(seed)
    cats: Mapping[str, tuple[int, ...]] = {
        "user_cat": (users, shape.user_cats),
        "item_cat": (users, kept, shape.item_cats),
    }
    nums: Mapping[str, tuple[int, ...]] = {
        "user_num": (users, shape.user_nums),
        "item_num": (users, kept, shape.item_nums),
        "kept_score": (users, kept),
    }
    made = {name: torch.randint(shape.categories, size, generator=draw) for name, size in cats.items()}
    made |= {name: torch.randn(size, generator=draw) for name, size in nums.items()}
    return {name: made[name].to(device) for name in INPUTS}
