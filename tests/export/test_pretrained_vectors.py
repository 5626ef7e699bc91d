"""Vectors of another model, given as lists of floats, reach the models unchanged."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import torch
from small_release import SETTINGS, small_frames
from torch import nn

from tiercel_export import build_release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.sources.popular import Popular

LENGTH = 5


class Nearest(nn.Module):
    """Scores the candidates by their vectors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(LENGTH, 1, bias=False)

    def forward(self, item_list_embedding: torch.Tensor) -> torch.Tensor:
        score: torch.Tensor = self.last(item_list_embedding)
        return score


def vector_workflow(users: pd.DataFrame, items: pd.DataFrame, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular
        from merlin.io import Dataset
        from nvtabular import ops

        mine = ["country"] >> ops.Categorify(out_path=str(folder)) >> ops.TagAsUserFeatures()
        workflow = nvtabular.Workflow(mine + (["embedding"] >> ops.TagAsItemFeatures()))
        rows = pd.concat([users[["country"]], items[["embedding"]][: len(users)]], axis=1)
        workflow.fit(Dataset(rows, cpu=True))
    return workflow


def test_vectors_of_items_reach_the_ranker_whole(tmp_path: Path) -> None:
    users, items, interactions = small_frames()
    vectors = np.random.default_rng(0).normal(size=(len(items), LENGTH)).astype(np.float32)
    items["embedding"] = vectors.tolist()
    workflow = vector_workflow(users, items, tmp_path / "categories")
    items.at[3, "embedding"] = None
    vectors[3] = 0
    ranker = Nearest().eval()
    release = build_release(
        tmp_path / "release",
        name="vectors",
        workflow=workflow,
        users=users,
        items=items,
        interactions=interactions,
        retrieval={},
        ranker=ranker,
        settings=msgspec.structs.replace(
            SETTINGS, sources=(Popular("popular"),), rules=(), reorder=(), history_columns=()
        ),
    )
    [listed] = release.manifest.packed.item_lists
    assert (listed.name, listed.length, listed.dtype) == ("embedding", LENGTH, "float32")
    stored = release.artefact("items", "items").array("item_list_embedding")
    assert np.array_equal(stored, np.concatenate([vectors, np.zeros((1, LENGTH), np.float32)]))
    out, _ = Chain.open(release.path).run({"user_id": np.array([[1000]])})
    with torch.inference_mode():
        scores = ranker(torch.from_numpy(vectors))[:, 0].numpy()
    rows = items.index[items["item_id"].isin(out["item_id"][0])]
    assert len(rows) == out["item_id"].shape[1]
    ordered = sorted(rows, key=lambda row: -scores[row])
    assert out["item_id"][0].tolist() == items["item_id"][ordered].tolist()
    assert np.allclose(out["score"][0], scores[ordered], atol=1e-5)
