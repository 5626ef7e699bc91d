"""A release whose features look rows up in fitted tables: statistics, encodings, a joined table."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_release import Parts, small_release

from tiercel_export import FeatureOptions
from tiercel_export.errors import UnsupportedOperator
from tiercel_serving.release.opened import open_release


def keyed_workflow(parts: Parts, folder: Path) -> Any:
    """Return a workflow with as many columns as the modules of ``parts`` take, made by keyed operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular
        from merlin.io import Dataset
        from merlin.schema import Tags
        from nvtabular import ops

        out = str(folder / "keyed")
        regions = pd.DataFrame({"country": ["NL", None], "region": ["north", "unknown"]})
        target = ["liked"] >> ops.AddTags([Tags.TARGET])
        joined = ["country"] >> ops.JoinExternal(regions, on="country")
        user = (
            (joined["region"] >> ops.Categorify(out_path=out))
            + (["age"] >> ops.Bucketize([20, 40, 60]))
            + (["country"] >> ops.TargetEncoding(target, out_path=out))
        ) >> ops.TagAsUserFeatures()
        item = (
            (["kind", "tags"] >> ops.Categorify(out_path=out))
            + (["kind"] >> ops.JoinGroupby(cont_cols=["price"], stats=["mean"], out_path=out))
        ) >> ops.TagAsItemFeatures()
        ids = (["user_id"] >> ops.Categorify(out_path=out) >> ops.TagAsUserID()) + (
            ["item_id"] >> ops.Categorify(out_path=out) >> ops.TagAsItemID()
        )
        context = ["device"] >> ops.Categorify(out_path=out) >> ops.AddTags([Tags.CONTEXT])
        rows = parts.interactions.merge(parts.users, on="user_id").merge(parts.items, on="item_id")
        rows["liked"] = np.random.default_rng(5).integers(0, 2, len(rows))
        rows["price"] = rows["price"].fillna(5.0)
        columns = ["user_id", "country", "age", "item_id", "kind", "tags", "price", "device", "liked"]
        workflow = nvtabular.Workflow(ids + user + item + context + target)
        workflow.fit(Dataset(rows[columns], cpu=True))
    return workflow


def test_a_release_with_keyed_tables(tmp_path: Path, parts: Parts) -> None:
    keyed = replace(parts, workflow=keyed_workflow(parts, tmp_path))
    with pytest.raises(UnsupportedOperator, match="no_fold"):
        small_release(tmp_path / "refused", keyed)
    release = small_release(tmp_path / "release", keyed, features=FeatureOptions(target_encoding="no_fold"))
    # The export has compared every feature with NVTabular's; the target is nowhere among the inputs.
    manifest = repr(open_release(release.path).manifest)
    assert "'TE_country_liked'" in manifest
    assert "'liked'" not in manifest
