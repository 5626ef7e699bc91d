"""Integers at the limits of 64 bits, and others that no float holds, through an export and an answer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from nvtabular import ops
from small_release import small_frames

from tiercel_client import Recommender
from tiercel_export import build_release
from tiercel_export.errors import ExportInputError
from tiercel_serving.release.opened import Release
from tiercel_serving.rules.expression import Expression
from tiercel_serving.runtime.local import LocalTransport
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.popular import Popular

#: How each column is tagged.
TAGS = {"user_id": ops.TagAsUserID, "item_id": ops.TagAsItemID, "code": ops.TagAsUserFeatures}


def fitted(frame: pd.DataFrame, folder: Path) -> nvt.Workflow:
    """Return a fitted workflow with the categories of each column."""
    chains = [[name] >> ops.Categorify(out_path=str(folder)) >> TAGS[name]() for name in frame]
    workflow = nvt.Workflow(sum(chains[1:], chains[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return workflow.fit(nvt.Dataset(frame, cpu=True))


def build(folder: Path, workflow: nvt.Workflow, *tables: pd.DataFrame, **changes: Any) -> Release:
    settings = {"candidates": 20, "kept": 10, "k_max": 10, "sources": (Popular("popular"),), **changes}
    users, items, interactions = tables
    return build_release(
        folder,
        name="wide",
        workflow=workflow,
        retrieval={},
        users=users,
        items=items,
        interactions=interactions,
        settings=ServingSettings(**settings),
    )


def test_ids_at_both_ends(tmp_path: Path) -> None:
    users, items, interactions = small_frames()
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    for table in (users, interactions):
        table["user_id"] = most - table["user_id"].max() % 7 - (table["user_id"] - 1000) // 3
    for table in (items, interactions):
        table["item_id"] = least + (table["item_id"] - 500) // 7
    users["code"] = 2**53 + 1 + 2 * np.arange(len(users))
    workflow = fitted(interactions.merge(users, on="user_id")[["user_id", "item_id", "code"]], tmp_path)
    made = build(tmp_path / "release", workflow, users, items, interactions)
    with Recommender(transport=LocalTransport(made)) as recommender:
        for user in (int(users["user_id"].min()), int(users["user_id"].max())):
            answer = recommender.recommend(user, k=10)
            assert answer.status.value == "known"
            had = set(interactions["item_id"][interactions["user_id"] == user])
            got = {item.item_id for item in answer.items}
            assert got
            assert got <= set(items["item_id"]) - had


def test_integers_beside_nulls_that_no_float_holds(tmp_path: Path) -> None:
    """A user gets exactly the items with the user's code, in a scalar column and in a list column."""
    users, items, interactions = small_frames()
    rows = np.arange(len(items))
    user_codes, item_codes = (2**53 + np.arange(len(table)) for table in (users, items))
    null = np.arange(len(users)) % 5 == 4
    users["code"] = pd.array(user_codes, "Int64")
    users.loc[null, "code"] = pd.NA
    items["code"] = pd.array(item_codes, "Int64")
    items.loc[rows % 7 == 6, "code"] = pd.NA
    items["codes"] = [[int(code), None, int(code) - 1] for code in item_codes]
    workflow = fitted(users[["user_id"]], tmp_path)
    for expression in ("item.code == user.code", "user.code in item.codes"):
        rules = (Expression("same", expression),)
        folder = tmp_path / expression.split()[0]
        made = build(folder, workflow, users, items, interactions, allow_seen=True, rules=rules)
        with Recommender(transport=LocalTransport(made)) as recommender:
            for place in (0, 1, 2, 4, 5, 6):
                answer = recommender.recommend(int(users["user_id"].iloc[place]), k=10)
                got = {item.item_id for item in answer.items}
                alike = items["code"] == user_codes[place]
                if "codes" in expression:
                    alike = pd.Series([int(user_codes[place]) in row for row in items["codes"]])
                assert got == (set() if null[place] else set(items["item_id"][alike.fillna(False)]))


@pytest.mark.parametrize("everybody", [False, True])
def test_nulls_that_the_fit_had_not_seen(tmp_path: Path, everybody: bool) -> None:
    """NVTabular raises on a null among integers that were fitted without one, so other rows are compared."""
    users, items, interactions = small_frames()
    users["code"] = pd.array(np.arange(len(users)) % 3 + 5, "Int64")
    joined = interactions.merge(users, on="user_id")[["user_id", "item_id", "code"]].astype({"code": "int64"})
    workflow = fitted(joined, tmp_path)
    users.loc[:] = users.assign(code=users["code"].mask((np.arange(len(users)) % 4 == 1) | everybody))
    tables = (users, items, interactions)
    if everybody:
        with pytest.raises(ExportInputError, match="users: NVTabular raises on columns 'user_id', 'code'"):
            build(tmp_path / "release", workflow, *tables)
        return
    made = build(tmp_path / "release", workflow, *tables)
    with Recommender(transport=LocalTransport(made)) as recommender:
        answer = recommender.recommend(int(users["user_id"].iloc[1]), k=10)
        assert (answer.status.value, len(answer.items)) == ("known", 10)
