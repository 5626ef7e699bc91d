"""`tiercel score`: the written answers equal the server's, user by user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.command import Tiercel
from tiercel_client import Recommender
from tiercel_serving.release.opened import open_release


def test_every_list_is_what_the_server_answers(
    release: Path, server: dict[str, Any], tiercel_here: Tiercel, tmp_path: Path
) -> None:
    output = tmp_path / "lists.parquet"
    done = tiercel_here("score", release, output, "-k", "7", "--batch-users", "16", "--json")
    assert done.returncode == 0, done.stderr
    manifest = open_release(release).manifest
    document = json.loads(done.stdout)
    assert (document["users"], document["known"]) == (manifest.catalogue.users,) * 2
    assert document["users_per_s"] > 0
    assert "users 100%" in done.stderr  # progress without a terminal
    table = pq.read_table(output)
    assert table.schema.metadata[b"tiercel.build_id"].decode() == manifest.build_id
    assert table.column_names == [manifest.catalogue.user_id_column, "item_id", "score", "status"]
    rows = table.to_pylist()
    assert document["items"] == sum(len(row["item_id"]) for row in rows)
    with Recommender(server["grpc"]) as client:
        answers = client.recommend_many([row["user_id"] for row in rows], k=7, titles=False)
    for row, answer in zip(rows, answers, strict=True):
        assert row["item_id"] == list(answer.item_ids)
        np.testing.assert_allclose(row["score"], [item.score for item in answer.items], rtol=1e-6, atol=1e-7)
        assert row["status"] == answer.status.value
    refused = tiercel_here("score", release, output)
    assert refused.returncode == 1
    assert "--overwrite" in refused.stderr


def test_whom_to_score_comes_from_a_file(release: Path, tiercel_here: Tiercel, tmp_path: Path) -> None:
    known = [row["user_id"] for row in _scored(release, tiercel_here, tmp_path, "-k", "2")][:3]
    pq.write_table(pa.table({"user_id": [*known, "nobody"]}), tmp_path / "users.parquet")
    rows = _scored(release, tiercel_here, tmp_path, "-k", "2", "--users", tmp_path / "users.parquet")
    assert [row["user_id"] for row in rows] == [*known, "nobody"]
    assert [row["status"] for row in rows] == ["known"] * 3 + ["unknown"]
    assert all(len(row["item_id"]) == len(row["score"]) == 2 for row in rows)


def _scored(release: Path, tiercel_here: Tiercel, folder: Path, *options: Any) -> list[dict[str, Any]]:
    done = tiercel_here("score", release, folder / "out.parquet", "--overwrite", *options)
    assert done.returncode == 0, done.stderr
    return list(pq.read_table(folder / "out.parquet").to_pylist())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["a"]}, "expected a column 'user_id' with the ids of users, the file has user"),
        ({"user_id": [1]}, "expected text, the file holds int64"),
        ({"user_id": pa.array([None, "a"])}, "1 of the ids are null"),
    ],
)
def test_a_file_of_users_that_does_not_fit_is_refused(
    columns: dict[str, Any], message: str, release: Path, tiercel_here: Tiercel, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    done = tiercel_here(
        "score", release, tmp_path / "out.parquet", "--users", tmp_path / "users.parquet", "--json"
    )
    assert done.returncode == 1
    assert message in json.loads(done.stdout)["error"]["message"]
    assert not (tmp_path / "out.parquet").exists()


def test_more_items_than_are_served_are_refused(release: Path, tiercel_here: Tiercel, tmp_path: Path) -> None:
    done = tiercel_here("score", release, tmp_path / "out.parquet", "-k", "100000")
    assert done.returncode == 1
    assert "k = 100000" in done.stderr
    assert not list(tmp_path.iterdir())
