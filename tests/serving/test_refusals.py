"""What a stage or the adapter's edge refuses, and that it says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_oracles import Ask, tensors
from tiny_release import Tiny, make_tiny, objects

from tiercel_serving.columns import Column
from tiercel_serving.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    BuildMismatch,
    InvalidRequest,
    ReleaseMissing,
)
from tiercel_serving.release.opened import open_release
from tiercel_serving.runtime import batching
from tiercel_serving.runtime.chain import Pipeline
from tiercel_serving.settings import Rule
from tiercel_serving.stages import build_stage
from tiercel_serving.stages.filtering import rule_passes

ONE = {"user_id": np.array([[10]])}


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)[:, None]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"k": int32(0)}, "k must be 1 to 8, came 0"),
        ({"k": int32(-3)}, "k must be 1 to 8, came -3"),
        ({"k": int32(9)}, "k must be 1 to 8, came 9"),
        ({"age": np.array([[np.inf]])}, "age must be finite"),
        ({"age": np.array([[-np.inf]])}, "age must be finite"),
        ({"exclude_item_ids": np.zeros((1, 201), np.int64)}, "may hold 200 ids at most, came 201"),
        ({"history_item_ids": np.zeros((1, 201), np.int64)}, "may hold 200 ids at most, came 201"),
        (
            {"exclude_item_ids": np.zeros((1, 2), np.int64), "exclude_item_ids__length": int32(3)},
            "exclude_item_ids__length must be -1 .null. to 2, the width of exclude_item_ids, came 3",
        ),
        ({"tags": np.zeros((1, 2), np.int64), "tags__length": int32(-2)}, "came -2"),
        ({"tags__length": int32(1)}, "tags__length must be -1 .null. to 0"),
        ({"hour__valid": np.array([[True]])}, "hour was not sent"),
    ],
)
def test_stages_refuse(plain_pipeline: Pipeline, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        plain_pipeline.check({**ONE, **extra})


def test_stages_accept_the_limits(plain_pipeline: Pipeline) -> None:
    full = {"exclude_item_ids": np.zeros((1, 200), np.int64), "exclude_item_ids__length": int32(200)}
    plain_pipeline.check({**ONE, **full, "k": int32(8), "age": np.array([[np.nan]])})
    plain_pipeline.check({**ONE, "tags__length": int32(0), "hour__valid": np.array([[False]])})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "user_id is missing"),
        ({"user_id": np.zeros((0, 1), np.int64)}, "no rows"),
        ({"user_id": np.zeros(1, np.int64)}, r"expected the shape \[users, 1\], came \[1\]"),
        ({"user_id": np.zeros((1, 2), np.int64)}, r"came \[1, 2\]"),
        ({"user_id": np.zeros((1, 1), np.int32)}, "expected int64, came int32"),
        ({"user_id": objects([b"x"])[:, None]}, "expected int64, came object"),
        ({**ONE, "k": int32(1, 2)}, "input k: expected 1 rows as in the others, came 2"),
    ],
)
def test_edge_refuses(plain_pipeline: Pipeline, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        batching.count_users(plain_pipeline.external_inputs, arrays)


def test_describe_items_refuses(plain: Tiny) -> None:
    describe = Pipeline.open(plain.release, ["describe_items"])
    ids, rows = np.array([[1, 2]]), np.array([[1, -1]])
    for arrays, message in (
        ({}, "send item_id or item_row, came neither"),
        ({"item_id": ids, "item_row": abs(rows)}, "came item_id and item_row"),
        ({"item_row": rows}, "must not be negative, came -1"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            describe.check(arrays)


def test_an_unknown_stage_is_named(plain: Tiny) -> None:
    with pytest.raises(ValueError, match="no stage 'reranking'; the stages are user_features, "):
        build_stage("reranking", plain.release)


@pytest.fixture
def release_copy(plain: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain.release.path, tmp_path / "copy"))


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_missing_release(tmp_path: Path) -> None:
    with pytest.raises(ReleaseMissing, match="make one with `tiercel export`"):
        Pipeline.open(tmp_path)


@pytest.mark.parametrize("name", ["users", "items", "index", "user_tower", "ranking", "user_features"])
def test_a_missing_artefact(release_copy: Path, name: str) -> None:
    shutil.rmtree(release_copy / "artefacts" / name)
    with pytest.raises(ArtefactMissing, match=f"artefacts/{name}"):
        Pipeline.open(release_copy)


@pytest.mark.parametrize("name", ["users", "items", "index", "user_tower", "ranking", "user_features"])
def test_an_artefact_of_another_build(release_copy: Path, name: str) -> None:
    edit_json(release_copy / "artefacts" / name / "header.json", build_id="build-2")
    with pytest.raises(BuildMismatch, match="belongs to build build-2"):
        Pipeline.open(release_copy)


@pytest.mark.parametrize(("artefact", "file"), [("index", "index.faiss"), ("ranking", "model.onnx")])
def test_a_damaged_model_file(release_copy: Path, artefact: str, file: str) -> None:
    path = release_copy / "artefacts" / artefact / file
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ArtefactCorrupt, match=file):
        Pipeline.open(release_copy)


def test_a_model_with_other_inputs(release_copy: Path) -> None:
    manifest = json.loads((release_copy / "manifest.json").read_text())
    tower = next(stage for stage in manifest["stages"] if stage["name"] == "user_tower")
    tower["inputs"] = tower["inputs"][:1]
    (release_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactCorrupt, match="expected the inputs"):
        Pipeline.open(release_copy)


def test_tables_that_do_not_fit_the_catalogue(release_copy: Path) -> None:
    release = open_release(release_copy)
    edit_json(
        release_copy / "manifest.json", catalogue={**release.manifest["catalogue"], "items": 31, "users": 6}
    )
    release = open_release(release_copy)
    with pytest.raises(ArtefactCorrupt, match="expected 31 rows of items, found 30"):
        build_stage("candidate_features", release)
    with pytest.raises(ArtefactCorrupt, match="expected 6 rows of users, found 7"):
        build_stage("retrieval", release)


NUMBERS = Column(np.array([1, 2, 3]), np.array([True, True, False]))
TEXTS = Column(objects([b"a", b"b", b""]), np.array([True, True, False]))
LISTS = Column(objects([b"a", b"b"]), None, np.array([0, 2, 2, 2]), np.array([True, True, False]))


@pytest.mark.parametrize(
    ("column", "operator", "value", "holds"),
    [
        (NUMBERS, "==", 2, [False, True, False]),
        (NUMBERS, "!=", 2, [True, False, False]),
        (NUMBERS, "<", 2, [True, False, False]),
        (NUMBERS, "in", [1, 3], [True, False, False]),
        (NUMBERS, "not in", [1], [False, True, False]),
        (Column(np.array([1.0, np.nan])), ">=", 0, [True, False]),
        (Column(np.array([1.0, np.nan])), "not in", [5], [True, False]),
        (TEXTS, "==", "a", [True, False, False]),
        (TEXTS, ">", "a", [False, True, False]),
        (TEXTS, "not in", ["b", "c"], [True, False, False]),
        (LISTS, "in", ["b"], [True, False, False]),
        (LISTS, "not in", ["b"], [False, True, False]),
    ],
)
def test_rules(column: Column, operator: str, value: Any, holds: list[bool]) -> None:
    assert rule_passes(column, Rule("r", "c", operator, value)).tolist() == holds


@pytest.mark.parametrize(
    ("column", "operator", "value", "message"),
    [
        (NUMBERS, "==", "two", "column 'c' holds numbers, not 'two'"),
        (TEXTS, "==", 2, "column 'c' holds text"),
        (LISTS, "==", "a", "column 'c' is a list; use `in`"),
        (NUMBERS, "~", 2, "operator '~'"),
    ],
)
def test_rules_that_do_not_fit(column: Column, operator: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_passes(column, Rule("r", "c", operator, value))


def test_a_rule_on_a_column_that_is_not_there(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "r", settings={"rules": (Rule("r", "price", "<", 3),)})
    with pytest.raises(ArtefactCorrupt, match="rule 'r' speaks of column 'price'"):
        build_stage("filtering", tiny.release)


def test_the_request_after_a_refusal_is_answered(plain: Tiny, plain_pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequest):
        plain_pipeline.check({**ONE, "k": int32(0)})
    out, _ = plain_pipeline.run(tensors([Ask(plain.user_ids[2])]))
    assert out["count"][0, 0] == 4
