"""Ids at both ends of 64 bits, through an export and an answer."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import nvtabular as nvt
from nvtabular import ops
from small_release import SETTINGS, small_frames

from tiercel_client import Recommender
from tiercel_export import build_release
from tiercel_serving.runtime.local import LocalTransport
from tiercel_serving.sources.popular import Popular


def test_ids_at_both_ends(tmp_path: Path) -> None:
    users, items, interactions = small_frames()
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    for table in (users, interactions):
        table["user_id"] = most - table["user_id"].max() % 7 - (table["user_id"] - 1000) // 3
    for table in (items, interactions):
        table["item_id"] = least + (table["item_id"] - 500) // 7
    users["code"] = 2**53 + 1 + 2 * np.arange(len(users))
    features = (["user_id"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsUserID()) + (
        ["item_id"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsItemID()
    )
    code = ["code"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsUserFeatures()
    workflow = nvt.Workflow(features + code)
    joined = interactions.merge(users, on="user_id")[["user_id", "item_id", "code"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(joined, cpu=True))
    settings = SETTINGS.__class__(candidates=20, kept=10, k_max=10, sources=(Popular("popular"),))
    made = build_release(
        tmp_path / "release",
        name="wide",
        workflow=workflow,
        retrieval={},
        users=users,
        items=items,
        interactions=interactions,
        settings=settings,
    )
    with Recommender(transport=LocalTransport(made)) as recommender:
        for user in (int(users["user_id"].min()), int(users["user_id"].max())):
            answer = recommender.recommend(user, k=10)
            assert answer.status.value == "known"
            had = set(interactions["item_id"][interactions["user_id"] == user])
            got = {item.item_id for item in answer.items}
            assert got
            assert got <= set(items["item_id"]) - had
