"""The arguments of ``build_release``: a small workflow, untrained modules, settings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.scale.made_up import KINDS, MadeUp
from benchmarks.scale.sizes import Size
from tiercel_export import Vectors
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.spec import Array

#: Name of the source with the index.
SOURCE = "vectors"


def settings(size: Size, index: str) -> ServingSettings:
    """Return the settings of the release."""
    return ServingSettings(
        candidates=size.candidates,
        kept=size.kept,
        k_default=10,
        k_max=min(100, size.kept),
        history_length=20,
        max_batch_size=64,
        sources=(Index(SOURCE, factory=index), Popular("popular", quota=0)),
        title_column="title",
    )


class Query(nn.Module):
    """The mean vector of the history's items, from a table as large as that of an item embedding."""

    def __init__(self, vectors: Array) -> None:
        super().__init__()
        table = np.concatenate([vectors, np.zeros((1, vectors.shape[1]), np.float32)])
        self.items = nn.Embedding(table.shape[0], table.shape[1], _weight=torch.from_numpy(table))
        # Without this, the query of an empty history is zero, and all items score equally.
        self.start = nn.Parameter(torch.from_numpy(vectors[:: max(1, len(vectors) // 50)].mean(0)))

    def forward(self, history_row: torch.Tensor, history_length: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self.items(history_row).sum(1) / history_length.clamp(min=1)
        return self.start + mean


class Ranker(nn.Module):
    """A small network over each candidate's features."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Embedding(len(KINDS) + 3, 4)
        self.hidden = nn.Linear(6, 16)
        self.last = nn.Linear(16, 1)

    def forward(
        self, item_cat: torch.Tensor, item_num: torch.Tensor, kept_score: torch.Tensor
    ) -> torch.Tensor:
        known = torch.cat([self.kinds(item_cat[:, :, 0]), item_num, kept_score[..., None]], 2)
        scores: torch.Tensor = self.last(torch.relu(self.hidden(known)))
        return scores


def workflow(made: MadeUp, folder: str) -> Any:
    """Return a workflow fitted on few rows, as the fit is not measured; ``folder`` keeps vocabularies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular
        from merlin.io import Dataset
        from nvtabular import ops

        item = (["kind"] >> ops.Categorify(out_path=folder) >> ops.TagAsItemFeatures()) + (
            ["price"] >> ops.Normalize() >> ops.TagAsItemFeatures()
        )
        user = ["age"] >> ops.Bucketize([20, 40, 60]) >> ops.TagAsUserFeatures()
        rows = np.arange(1000)
        some = [
            made.items[["kind", "price"]].iloc[rows % len(made.items)].reset_index(drop=True),
            made.users[["age"]].iloc[rows % len(made.users)].reset_index(drop=True),
        ]
        fitted = nvtabular.Workflow(user + item)
        fitted.fit(Dataset(pd.concat(some, axis=1), cpu=True))
    return fitted


def arguments(made: MadeUp, size: Size, index: str, folder: str) -> dict[str, Any]:
    """Return the arguments of ``build_release``."""
    torch.manual_seed(1)
    return {
        "name": "scale",
        "workflow": workflow(made, folder),
        "retrieval": {SOURCE: Vectors(Query(made.vectors), made.vectors)},
        "ranker": Ranker().eval(),
        "users": made.users,
        "items": made.items,
        "interactions": made.interactions,
        "settings": settings(size, index),
    }
