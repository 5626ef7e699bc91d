"""Workflows that group events into sessions, from fit to answer: sessions in requests and in the store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch
from small_release import ITEMS, SETTINGS, Parts, small_frames, small_release
from torch import Tensor, nn

from tiercel_export import FeatureOptions, TableColumns, Vectors
from tiercel_export.errors import ExportInputError, WorkflowError
from tiercel_serving.errors import InvalidRequest
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.verify.checks import verify_release

LENGTH = 4


class SessionTower(nn.Module):
    """The latest items of a session, its mean price, and its number of events."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(200, 8)
        self.last = nn.Linear(9, 8)

    def forward(self, user_list_item_id_list: Tensor, user_num: Tensor, user_cat: Tensor) -> Tensor:
        real = (user_list_item_id_list > 0)[..., None]
        latest = (self.items(user_list_item_id_list) * real).sum(1)
        known = user_num.nan_to_num(0.0).sum(1, keepdim=True) * user_cat.sum(1, keepdim=True)
        return self.last(torch.cat([latest, known], 1))


def session_workflow(frame: pd.DataFrame, key: str, folder: Path) -> Any:
    """Return the features of a session-based model: the latest items in order of time, and statistics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular
        from merlin.io import Dataset
        from nvtabular import ops

        item = ["item_id"] >> ops.Categorify(out_path=str(folder / "categories"))
        events = item + key + "timestamp" + "paid"
        sessions = events >> ops.Groupby(
            groupby_cols=[key],
            sort_cols=["timestamp"],
            aggs={"item_id": ["list", "count"], "paid": ["mean", "last"]},
        )
        latest = sessions["item_id_list"] >> ops.ListSlice(-LENGTH)
        served = latest + sessions["item_id_count", "paid_mean", "paid_last"]
        served = served >> ops.Filter(lambda df: df["item_id_count"] >= 2)
        items = (item >> ops.Rename(postfix="_known")) + (
            ["kind"] >> ops.Categorify(out_path=str(folder / "categories"))
        )
        workflow = nvtabular.Workflow(served + (items >> ops.TagAsItemFeatures()))
        workflow.fit(Dataset(frame[[key, "item_id", "kind", "timestamp", "paid"]], cpu=True))
    return workflow


def frames_with_sessions() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    users, items, interactions = small_frames()
    random = np.random.default_rng(2)
    interactions["session_id"] = random.integers(0, 150, len(interactions))
    interactions["paid"] = random.gamma(2.0, 9.0, len(interactions))
    return users[["user_id"]], items, interactions


def built(folder: Path, parts: Parts, key: str, **changes: Any) -> Release:
    users, items, interactions = frames_with_sessions()
    if key == "session_id":
        # Dates order the session of a request.
        interactions["timestamp"] = pd.to_datetime(interactions["timestamp"], unit="s")
    frame = interactions.merge(items[["item_id", "kind"]], on="item_id")
    if key == "user_id":
        # A session is a user's whole history, stored as lists.
        lists = interactions.groupby(key)[["item_id", "timestamp", "paid"]].agg(list).reset_index()
        users = users.merge(lists, on=key, how="left")
    arguments = {
        "users": users,
        "items": items,
        "interactions": interactions,
        "workflow": session_workflow(frame, key, folder),
        "columns": TableColumns(),
        "features": FeatureOptions(rows="keep"),
        "retrieval": {"towers": Vectors(SessionTower(), np.eye(ITEMS, 8, dtype=np.float32))},
        "ranker": None,
        "settings": msgspec.structs.replace(SETTINGS, reorder=(), history_columns=()),
    }
    return small_release(folder / "release", parts, **(arguments | changes))


@pytest.fixture(scope="module")
def of_requests(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return built(tmp_path_factory.mktemp("requests"), parts, "session_id")


@pytest.fixture(scope="module")
def of_the_store(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return built(tmp_path_factory.mktemp("store"), parts, "user_id")


SESSION = {
    "item_id": [500, 507, 514, 521, 528],
    "timestamp": [5, 4, 3, 2, 1],
    "paid": [1.0, 2.0, 3.0, 4.0, 6.0],
}


def sent(release: Release, **columns: Any) -> dict[str, Any]:
    tensors = {column.name: column.tensor for column in release.manifest.request_columns}
    return {tensors[name]: np.array([values]) for name, values in columns.items()}


def test_a_session_of_the_request(of_requests: Release) -> None:
    columns = {c.name: c for c in of_requests.manifest.request_columns}
    assert {name: (c.is_list, c.part) for name, c in columns.items()} == dict.fromkeys(
        SESSION, (True, "context")
    )
    assert columns["timestamp"].unit == "ns"
    # The graph has an output with this name.
    assert columns["item_id"].tensor == "item_id_2"
    chain = Chain.open(of_requests)
    asked = {"user_id": np.array([[1000]]), **sent(of_requests, **SESSION)}
    chain.check(asked)
    out, _ = chain.run(asked)
    assert dict(zip(of_requests.manifest.packed.user_num, out["user_num"][0].tolist(), strict=True)) == {
        "paid_mean": np.float32(3.2),
        "paid_last": 1.0,
    }
    assert out["user_cat"].tolist() == [[5]]
    reversed_again = {name: values[::-1] for name, values in SESSION.items()}
    other, _ = chain.run({"user_id": np.array([[1000]]), **sent(of_requests, **reversed_again)})
    for name in ("user_list_item_id_list", "user_cat", "item_id"):
        assert np.array_equal(out[name], other[name])
    assert len(set(out["user_list_item_id_list"][0].tolist())) == LENGTH
    # The filter would drop a session of one event, but serving answers it.
    short, _ = chain.run({"user_id": np.array([[1000]]), **sent(of_requests, item_id=[500])})
    assert short["user_cat"].tolist() == [[1]]
    assert np.isnan(short["user_num"]).all()
    assert short["user_list_item_id_list"][0, 0] == out["user_list_item_id_list"][0, -1]
    nothing, _ = chain.run({"user_id": np.array([[1000]])})
    assert nothing["user_cat"].tolist() == [[0]]
    assert not nothing["user_list_item_id_list"].any()


def test_columns_of_a_session_have_one_length(of_requests: Release) -> None:
    chain = Chain.open(of_requests)
    asked = {"user_id": np.array([[1000]]), **sent(of_requests, **{**SESSION, "paid": [1.0, 2.0]})}
    with pytest.raises(InvalidRequest, match="of the events of one session, but have 5 and 2 values"):
        chain.check(asked)


def test_a_session_of_the_store(of_the_store: Release) -> None:
    users, _, interactions = frames_with_sessions()
    columns = {c.name: c.part for c in of_the_store.manifest.request_columns}
    assert columns == dict.fromkeys(SESSION, "user")
    chain = Chain.open(of_the_store)
    for user in users["user_id"][:5]:
        own = interactions[interactions["user_id"] == user].sort_values("timestamp", kind="stable")
        out, _ = chain.run({"user_id": np.array([[user]])})
        assert out["user_cat"].tolist() == [[len(own)]]
    # A request replaces the whole session: no stored column is used, even one that it leaves out.
    one, _ = chain.run({"user_id": np.array([[1000]]), **sent(of_the_store, item_id=[500, 507])})
    assert one["user_cat"].tolist() == [[2]]
    assert np.isnan(one["user_num"]).all()
    both, _ = chain.run(
        {
            "user_id": np.array([[1000], [1003]]),
            **{
                name: np.concatenate([tensor] * 2)
                for name, tensor in sent(of_the_store, item_id=[500, 507]).items()
            },
            next(c.companion for c in of_the_store.manifest.request_columns if c.name == "item_id"): np.array(
                [[2], [-1]], np.int32
            ),
        }
    )
    stored = int((interactions["user_id"] == 1003).sum())
    assert both["user_cat"].tolist() == [[2], [stored]]
    assert not np.isnan(both["user_num"][1]).any()


def test_verify_asks_whole_sessions(of_requests: Release, of_the_store: Release) -> None:
    for release in (of_requests, of_the_store):
        report = verify_release(release)
        assert report.ok
        assert any(row.artefact == "user_features" for row in report.rows)


def test_what_does_not_fit_is_refused_before_models(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="drops rows"):
        built(tmp_path, parts, "session_id", features=FeatureOptions())
    with pytest.raises(
        ExportInputError, match=r"aggregates 'item_id' over the events of a session.* one user id"
    ):
        built(tmp_path, parts, "session_id", columns=TableColumns(user_id="item_id"), users=None)
