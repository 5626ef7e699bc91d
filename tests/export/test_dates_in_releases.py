"""Dates in every table of a release, and in requests."""

from __future__ import annotations

import warnings
from datetime import datetime

import numpy as np
import nvtabular as nvt
import pandas as pd
from merlin.schema import Tags
from nvtabular import ops
from small_release import SETTINGS, small_frames

from tiercel_export import build_release
from tiercel_export.operators import DatePart, TimeDifference
from tiercel_serving.rules.compare import Compare
from tiercel_serving.sources.popular import Popular


def test_dates_in_every_table(tmp_path):
    users, items, interactions = small_frames()
    start = pd.Timestamp("2020-01-01")
    users["joined"] = start + pd.to_timedelta(np.arange(len(users)), "D")
    users.loc[3, "joined"] = pd.NaT
    items["released"] = start + pd.to_timedelta(np.arange(len(items)) * 7, "h")
    items["sold_until"] = [datetime(9999, 12, 31)] * len(items)
    interactions["when"] = start + pd.to_timedelta(interactions["timestamp"], "h")
    user = ["joined"] >> DatePart("year", "month", zone="Europe/Zurich")
    ago = ["when"] >> TimeDifference("joined") >> ops.FillMissing(0) >> ops.Rename(postfix="_since")
    # An integer column without a null, filled alone: pandas makes it float beside nulls of the golden rows.
    user = user + (["age"] >> ops.FillMissing(7))
    node = (
        (user >> ops.TagAsUserFeatures())
        + (["released"] >> DatePart("week", "is_weekend") >> ops.TagAsItemFeatures())
        + ((["when"] >> DatePart("hour")) + ago >> ops.AddTags([Tags.CONTEXT]))
    )
    workflow = nvt.Workflow(node)
    joined = interactions.merge(users, on="user_id").merge(items, on="item_id")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(joined[["joined", "when", "age", "released"]], cpu=True))
    made = build_release(
        tmp_path / "release",
        name="dated",
        workflow=workflow,
        retrieval={},
        users=users,
        items=items,
        interactions=interactions,
        settings=SETTINGS.__class__(
            candidates=20,
            kept=10,
            k_max=10,
            sources=(Popular("popular"),),
            rules=(Compare("for sale", column="sold_until", operator=">", value=1_700_000_000),),
        ),
    )
    columns = {column.name: (column.dtype, column.unit) for column in made.manifest.request_columns}
    assert columns["joined"] == columns["when"] == ("int64", "ns")
    assert columns["age"] == ("int64", None)
