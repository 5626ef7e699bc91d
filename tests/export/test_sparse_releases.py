"""Recommenders with little input: no user features, no history, models that ignore most of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from small_release import ITEMS, SETTINGS, Parts, small_release
from torch import nn

from tiercel_export import Vectors
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.verify.checks import verify_release


class HistoryTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS + 1, 8)

    def forward(self, history_row, history_length):
        return self.items(history_row).sum(1) / history_length.clamp(min=1)


class NumberTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(1, 8)

    def forward(self, user_num):
        return self.last(user_num)


class SameOrder(nn.Module):
    """Keeps the order of retrieval."""

    def forward(self, kept_score):
        return kept_score[..., None] * 1.0


def item_workflow(parts: Parts, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular
        from merlin.io import Dataset
        from nvtabular import ops

        graph = ["kind"] >> ops.Categorify(out_path=str(folder)) >> ops.TagAsItemFeatures()
        workflow = nvtabular.Workflow(graph)
        workflow.fit(Dataset(parts.items[["kind"]], cpu=True))
    return workflow


def test_a_history_is_enough(parts: Parts, tmp_path: Path) -> None:
    """Without user features, rules or titles; unknown users go through the models like all others."""
    torch.manual_seed(0)
    tower = HistoryTower()
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32)
    release = small_release(
        tmp_path / "r",
        parts,
        workflow=item_workflow(parts, tmp_path / "categories"),
        retrieval={"towers": Vectors(tower, vectors)},
        ranker=SameOrder(),
        settings=msgspec.structs.replace(
            SETTINGS, history_columns=(), reorder=(), rules=(), title_column=None, unknown_users="rank"
        ),
    )
    assert verify_release(release).ok
    assert release.manifest.request_columns == ()
    user = int(parts.users["user_id"][0])
    out, _ = Chain.open(release).run({"user_id": np.array([[user], [1]])})
    assert out["count"].tolist() == [[5], [5]]
    assert out["status"].tolist() == [[0], [2]]
    rows = out["history_row"][0][: out["history_length"][0, 0]]
    query = tower.items.weight.detach().numpy()[rows].mean(0)
    assert np.allclose(out["query_towers"][0], query, atol=1e-6)
    assert np.allclose(out["retrieval_score"][0], vectors[out["retrieved_row"][0]] @ query, atol=1e-5)


def test_no_history_and_models_that_ignore_the_items(parts: Parts, tmp_path: Path) -> None:
    release = small_release(
        tmp_path / "r",
        parts,
        retrieval={"towers": Vectors(NumberTower(), parts.item_tower)},
        ranker=SameOrder(),
        layout="staged",
        settings=msgspec.structs.replace(SETTINGS, history_length=0, history_columns=(), reorder=()),
    )
    assert verify_release(release).ok
    names = {tensor.name for tensor in release.stages["user_features"].outputs}
    assert not names & {"history_row", "history_cat", "history_length"}
    # No answer needs the candidates' features; only the explanation shows how long they take.
    config = (release.path / "triton" / "recommend" / "config.pbtxt").read_text()
    assert 'model_name: "candidate_features"' not in config
    config = (release.path / "triton" / "recommend_explain" / "config.pbtxt").read_text()
    assert 'model_name: "candidate_features"' in config
