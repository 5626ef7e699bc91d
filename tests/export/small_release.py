"""A small recommender on synthetic data with every type of column, shared by tests of releases.

Plain functions, so that any test may use them: ``parts = small_parts(folder)`` and
``small_release(destination, parts)``.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from tiercel_export import Vectors, build_release
from tiercel_serving.release.artefacts import HEADER_NAME
from tiercel_serving.release.opened import Release
from tiercel_serving.reorder.weighted_sum import WeightedSum
from tiercel_serving.rules.compare import Compare
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular

USERS, ITEMS, EVENTS = 40, 60, 700

SETTINGS = ServingSettings(
    candidates=24,
    kept=16,
    k_default=5,
    k_max=12,
    history_length=6,
    max_batch_size=8,
    max_excluded=50,
    sources=(Index("towers"), Popular("popular", quota=4)),
    rules=(
        Compare("in stock", column="stock", operator=">", value=0),
        Compare("not for sale", column="kind", operator="not in", value=("gift",)),
    ),
    reorder=(WeightedSum((1.0, 0.5)),),
    history_columns=("item_id", "kind"),
    title_column="title",
)


@dataclass(frozen=True)
class Parts:
    """The inputs of ``build_release``: data, a fitted workflow, trained modules."""

    users: pd.DataFrame
    items: pd.DataFrame
    interactions: pd.DataFrame
    workflow: Any
    user_tower: nn.Module
    item_tower: nn.Module
    ranker: nn.Module

    def arguments(self) -> dict[str, Any]:
        """The common arguments of ``build_release``."""
        return {
            "name": "small",
            "workflow": self.workflow,
            "retrieval": {"towers": Vectors(self.user_tower, self.item_tower)},
            "ranker": self.ranker,
            "users": self.users,
            "items": self.items,
            "interactions": self.interactions,
            "settings": SETTINGS,
        }


def small_frames(*, text_ids: bool = False, seed: int = 0) -> tuple[pd.DataFrame, ...]:
    """Return users, items and interactions; ids are integers, or text with accents and blanks."""
    random = np.random.default_rng(seed)
    user_ids = [f"ü {n}" if text_ids else 1000 + 3 * n for n in range(USERS)]
    item_ids = [f"ítem/{n}" if text_ids else 500 + 7 * n for n in range(ITEMS)]
    users = pd.DataFrame(
        {
            "user_id": user_ids,
            "age": random.integers(15, 80, USERS),
            "income": np.where(random.random(USERS) < 0.2, np.nan, random.lognormal(8, 1, USERS)),
            "country": random.choice(["NL", "DE", None], USERS),
        }
    )
    kinds = np.array(["tool", "toy", "gift", "book"])
    items = pd.DataFrame(
        {
            "item_id": item_ids,
            "kind": kinds[random.integers(0, 4, ITEMS)],
            "tags": [random.choice(list("abcde"), random.integers(0, 4)).tolist() for _ in range(ITEMS)],
            "price": np.where(random.random(ITEMS) < 0.1, np.nan, random.gamma(2, 20, ITEMS)),
            "stock": random.integers(0, 9, ITEMS),
            "title": [f"Thing {n} ✓" for n in range(ITEMS)],
        }
    )
    interactions = pd.DataFrame(
        {
            "user_id": random.choice(user_ids, EVENTS),
            "item_id": np.array(item_ids, object)[(random.beta(1, 3, EVENTS) * ITEMS).astype(int)],
            "timestamp": random.integers(0, 10_000, EVENTS),
            "device": random.choice(["phone", "web"], EVENTS),
        }
    )
    if not text_ids:
        interactions["item_id"] = interactions["item_id"].astype(np.int64)
    return users, items, interactions


def small_workflow(users: pd.DataFrame, items: pd.DataFrame, interactions: pd.DataFrame, folder: Path) -> Any:
    """Fit a workflow with user, item and context columns; its vocabularies are stored in ``folder``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular
        from merlin.io import Dataset
        from merlin.schema import Tags
        from nvtabular import ops

        categories = str(folder / "categories")
        user = (["user_id"] >> ops.Categorify(out_path=categories) >> ops.TagAsUserID()) + (
            (
                (["country"] >> ops.Categorify(out_path=categories))
                + (["age"] >> ops.Bucketize([20, 40, 60]))
                + (["income"] >> ops.FillMissing(0) >> ops.LogOp() >> ops.Normalize())
            )
            >> ops.TagAsUserFeatures()
        )
        item = (["item_id"] >> ops.Categorify(out_path=categories) >> ops.TagAsItemID()) + (
            (
                (["kind", "tags"] >> ops.Categorify(out_path=categories))
                + (["price"] >> ops.FillMissing(5.0) >> ops.Clip(1, 100) >> ops.Normalize())
            )
            >> ops.TagAsItemFeatures()
        )
        context = ["device"] >> ops.Categorify(out_path=categories) >> ops.AddTags([Tags.CONTEXT])
        joined = interactions.merge(users, on="user_id").merge(items, on="item_id")
        columns = ["user_id", "country", "age", "income", "item_id", "kind", "tags", "price", "device"]
        workflow = nvtabular.Workflow(user + item + context)
        workflow.fit(Dataset(joined[columns], cpu=True))
    return workflow


class UserTower(nn.Module):
    """A tower of user and context categories, a number, and the mean of the history."""

    def __init__(self) -> None:
        super().__init__()
        self.categories = nn.Embedding(100, 8)
        self.items = nn.Embedding(100, 8)
        self.last = nn.Linear(8 * 5 + 1, 8)

    def forward(
        self,
        user_cat: torch.Tensor,
        user_num: torch.Tensor,
        history_cat: torch.Tensor,
        history_length: torch.Tensor,
    ) -> torch.Tensor:
        real = torch.arange(history_cat.shape[1]) < history_length
        seen = self.items(history_cat[:, :, 0]) * real[..., None]
        mean = seen.sum(1) / history_length.clamp(min=1)
        return self.last(torch.cat([self.categories(user_cat).flatten(1), user_num, mean], 1))


class ItemTower(nn.Module):
    """A tower of item categories, a number and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.categories = nn.Embedding(100, 8)
        self.last = nn.Linear(8 * 3 + 1, 8)

    def forward(
        self, item_cat: torch.Tensor, item_num: torch.Tensor, item_list_tags: torch.Tensor
    ) -> torch.Tensor:
        tags = (self.categories(item_list_tags) * (item_list_tags > 0)[..., None]).sum(1)
        return self.last(torch.cat([self.categories(item_cat).flatten(1), item_num, tags], 1))


class Ranker(nn.Module):
    """A ranker of two tasks; the user side is computed once and broadcast over the candidates."""

    def __init__(self) -> None:
        super().__init__()
        self.categories = nn.Embedding(100, 8)
        self.user = nn.Linear(8 * 4, 8)
        self.item = nn.Linear(8 * 2 + 3, 8)
        self.last = nn.Linear(16, 2)

    def forward(
        self,
        user_cat: torch.Tensor,
        item_cat: torch.Tensor,
        item_num: torch.Tensor,
        kept_score: torch.Tensor,
        kept_source: torch.Tensor,
    ) -> torch.Tensor:
        user = torch.relu(self.user(self.categories(user_cat).flatten(1)))
        known = [self.categories(item_cat).flatten(2), item_num, kept_score[..., None]]
        item = torch.relu(self.item(torch.cat([*known, kept_source[..., None].float()], 2)))
        wide = user[:, None].expand(-1, item.shape[1], -1)
        return self.last(torch.cat([wide, item], 2))


def small_parts(folder: Path, *, text_ids: bool = False) -> Parts:
    """Return everything that ``build_release`` needs; the modules have random weights."""
    users, items, interactions = small_frames(text_ids=text_ids)
    torch.manual_seed(1)
    return Parts(
        users,
        items,
        interactions,
        small_workflow(users, items, interactions, folder),
        UserTower().eval(),
        ItemTower().eval(),
        Ranker().eval(),
    )


def small_release(destination: Path, parts: Parts, **changes: Any) -> Release:
    """Build a release; ``changes`` replace arguments of ``build_release``."""
    return build_release(destination, **{**parts.arguments(), **changes})


def array_file(release: Path, name: str) -> Path:
    """Return the file of an array, such as ``items/item_cat``."""
    artefact, _, array = name.partition("/")
    folder = release / "artefacts" / artefact
    header = json.loads((folder / HEADER_NAME).read_text(encoding="utf-8"))
    return folder / header["arrays"][array]["file"]
