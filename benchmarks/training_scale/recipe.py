"""The recipe ``synthetic`` over the Parquet files in ``--data-dir``, with default models."""

from __future__ import annotations

from tiercel_pipelines.recipe import DLRM, Parquet, TwoTower, load_recipe, replace

RECIPE = replace(
    load_recipe("synthetic"),
    name="whole",
    dataset=Parquet("users.parquet", "items.parquet", "interactions.parquet", name="synthetic"),
    retrieval=TwoTower(),
    ranking=DLRM(),
)
