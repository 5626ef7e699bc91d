"""Statistics, encodings and joins by keys of both types, and two operators on one column, end to end."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
from nvtabular import ops

from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.families.dlrm import DLRM
from tiercel_pipelines.families.two_tower import TwoTower
from tiercel_pipelines.recipe import ListwiseSoftmax, Synthetic, load_recipe, replace
from tiercel_pipelines.training import train_recipe

RECIPE = load_recipe("synthetic")


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["int", "str"])
def test_trains_exports_and_verifies(ids, tmp_path):
    dataset = load_dataset(Synthetic(users=60, items=50, interactions=900, ids=ids))
    # User columns may have the names of the served graph's outputs.
    users = dataset.users.assign(status=dataset.users["country"], score=dataset.users["age"])
    dataset = dataclasses.replace(dataset, users=users)
    shelves = pd.DataFrame({"item_id": dataset.items["item_id"], "shelf": range(len(dataset.items))})

    def features():
        item = (
            (["item_id"] >> ops.JoinGroupby(["hour"], stats=["mean", "count"]))
            + (["maker"] >> ops.TargetEncoding("hour", kfold=1))
            + (["item_id"] >> ops.JoinExternal(shelves, on="item_id"))["shelf"]
        )
        user = (
            (["user_id"] >> ops.TargetEncoding("hour", kfold=1))
            + (["age"] >> ops.Categorify() >> ops.Rename(postfix="_exact"))
            + (["age"] >> ops.Bucketize([18, 30, 60]) >> ops.Categorify() >> ops.Rename(postfix="_groups"))
            + (["status", "score"] >> ops.Categorify())
        )
        return RECIPE.features() + (item >> ops.TagAsItemFeatures()) + (user >> ops.TagAsUserFeatures())

    recipe = replace(
        RECIPE,
        features=features,
        retrieval=TwoTower(dimension=8, embedding_dimension=8, max_epochs=1),
        ranking=DLRM(embedding_dimension=4, max_epochs=1, task=ListwiseSoftmax(folds=2)),
        serving=replace(RECIPE.serving, candidates=30, kept=20, k_max=20, history_length=10),
    )
    run = train_recipe(recipe, dataset, tmp_path / "run")
    release = export_run(run, tmp_path / "release")
    assert {"age_exact", "age_groups", "status"} < set(release.manifest.packed.user_cat)
    assert {"item_id_hour_mean", "TE_maker_hour", "shelf"} <= set(release.manifest.packed.item_num)
