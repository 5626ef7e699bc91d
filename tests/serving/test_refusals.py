"""Requests and settings that a stage or the adapter refuses, each with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from stage_oracles import Ask, tensors
from tiny_release import Tiny, objects

from drawing import examples
from tiercel_serving.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    BuildMismatch,
    InvalidRequest,
    NewerFormat,
    OlderFormat,
    ReleaseError,
    ReleaseMissing,
)
from tiercel_serving.release.artefacts import open_artefact, write_artefact
from tiercel_serving.release.opened import Release
from tiercel_serving.rules.compare import Compare
from tiercel_serving.runtime import batching
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.stages.table import build_stage

ONE = {"user_id": np.array([[10]])}


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)[:, None]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"k": int32(0)}, "k must be 1 to 8, got 0"),
        ({"k": int32(-3)}, "k must be 1 to 8, got -3"),
        ({"k": int32(9)}, "k must be 1 to 8, got 9"),
        ({"age": np.array([[np.inf]])}, "age must be finite"),
        ({"age": np.array([[-np.inf]])}, "age must be finite"),
        ({"exclude_item_ids": np.zeros((1, 201), np.int64)}, "may hold 200 ids at most, got 201"),
        ({"history_item_ids": np.zeros((1, 201), np.int64)}, "may hold 200 ids at most, got 201"),
        (
            {"exclude_item_ids": np.zeros((1, 2), np.int64), "exclude_item_ids__length": int32(3)},
            "exclude_item_ids__length must be -1 .null. to 2, the width of exclude_item_ids, got 3",
        ),
        ({"tags": np.zeros((1, 2), np.int64), "how many tags": int32(-2)}, "got -2"),
        ({"how many tags": int32(1)}, "how many tags must be -1 .null. to 0"),
        ({"tags__length": np.array([[np.inf]], np.float32)}, "tags__length must be finite"),
        ({"hour__valid": np.array([[True]])}, "hour was not sent"),
    ],
)
def test_stages_refuse(plain_chain: Chain, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        plain_chain.check({**ONE, **extra})


def test_stages_accept_the_limits(plain_chain: Chain) -> None:
    full = {"exclude_item_ids": np.zeros((1, 200), np.int64), "exclude_item_ids__length": int32(200)}
    plain_chain.check({**ONE, **full, "k": int32(8), "age": np.array([[np.nan]])})
    plain_chain.check({**ONE, "how many tags": int32(0), "hour__valid": np.array([[False]])})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "user_id is missing"),
        ({"user_id": np.zeros((0, 1), np.int64)}, "no rows"),
        ({"user_id": np.zeros(1, np.int64)}, r"expected the shape \[users, 1\], got \[1\]"),
        ({"user_id": np.zeros((1, 2), np.int64)}, r"got \[1, 2\]"),
        ({"user_id": np.zeros((1, 1), np.int32)}, "expected int64, got int32"),
        ({"user_id": objects([b"x"])[:, None]}, "expected int64, got object"),
        ({**ONE, "k": int32(1, 2)}, "input k: expected 1 rows as in the others, got 2"),
    ],
)
def test_edge_refuses(plain_chain: Chain, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        batching.count_users(plain_chain.external_inputs, arrays)


def test_describe_items_refuses(plain: Tiny) -> None:
    describe = Chain.open(plain.release, ["describe_items"])
    ids, rows = np.array([[1, 2]]), np.array([[1, -1]])
    for arrays, message in (
        ({}, "send item_id or item_row, got neither"),
        ({"item_id": ids, "item_row": abs(rows)}, "got item_id and item_row"),
        ({"item_row": rows}, "must not be negative, got -1"),
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
        Chain.open(tmp_path)


@pytest.mark.parametrize("name", ["users", "items", "source_near", "query_near", "ranking", "user_features"])
def test_a_missing_artefact(release_copy: Path, name: str) -> None:
    shutil.rmtree(release_copy / "artefacts" / name)
    with pytest.raises(ArtefactMissing, match=f"artefacts/{name}"):
        Chain.open(release_copy)


@pytest.mark.parametrize("name", ["users", "items", "source_near", "query_near", "ranking", "user_features"])
def test_an_artefact_of_another_build(release_copy: Path, name: str) -> None:
    edit_json(release_copy / "artefacts" / name / "header.json", build_id="build-2")
    with pytest.raises(BuildMismatch, match="belongs to build build-2"):
        Chain.open(release_copy)


@pytest.mark.parametrize(("artefact", "file"), [("source_near", "index.faiss"), ("ranking", "model.onnx")])
def test_a_damaged_model_file(
    tiny_of: Callable[[str], Tiny], tmp_path: Path, artefact: str, file: str
) -> None:
    copy = Path(shutil.copytree(tiny_of("ivf").release.path, tmp_path / "copy"))
    path = copy / "artefacts" / artefact / file
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ArtefactCorrupt, match=file):
        Chain.open(copy)


def test_a_model_with_other_inputs(plain: Tiny) -> None:
    manifest = plain.release.manifest
    queries = {"near": replace(manifest.queries["near"], inputs=("user_num",))}
    with pytest.raises(ArtefactCorrupt, match="expected the inputs"):
        Chain.open(Release(plain.release.path, replace(manifest, queries=queries)))


def test_tables_that_do_not_fit_the_catalogue(plain: Tiny) -> None:
    manifest = plain.release.manifest
    other = replace(manifest, catalogue=replace(manifest.catalogue, items=31, users=6))
    release = Release(plain.release.path, other)
    for stage, message in (
        ("filtering", "expected 32 rows of ids.values, found 31"),
        ("retrieval", "expected 8 rows of history_offsets, found 9"),
    ):
        with pytest.raises(ArtefactCorrupt, match=message):
            build_stage(stage, release)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"artefact_format": 3}, NewerFormat, "reads format 2; upgrade Tiercel"),
        ({"artefact_format": 1}, OlderFormat, "artefact format 1, but this Tiercel reads format 2; export"),
        ({"artefact_format": None}, ArtefactCorrupt, "not a readable header"),
        ({"kind": "items"}, ArtefactCorrupt, "expected an artefact of kind 'users', found 'items'"),
        ({"bytes": ["a"]}, ArtefactCorrupt, "not a readable header .Expected `object`, got `array`"),
        ({"arrays": {"history_rows": {"file": "x"}}}, ArtefactCorrupt, "missing required field `dtype`"),
        ({"bytes": {"0.npy": 1}}, ArtefactCorrupt, r"0.npy \(the array '.*'\): expected 1 bytes, found"),
        ({"bytes": {"gone.npy": 1}}, ArtefactMissing, "gone.npy: listed in header.json, but missing"),
    ],
)
def test_a_header_that_cannot_be(
    release_copy: Path, changes: dict[str, Any], error: type[ReleaseError], message: str
) -> None:
    edit_json(release_copy / "artefacts/users/header.json", **changes)
    with pytest.raises(error, match=message):
        Chain.open(release_copy)


def test_an_array_that_is_not_as_its_header_says(release_copy: Path) -> None:
    header = release_copy / "artefacts/users/header.json"
    arrays = json.loads(header.read_text())["arrays"]
    arrays["history_rows"]["dtype"] = "<i8"
    edit_json(header, arrays=arrays)
    with pytest.raises(ArtefactCorrupt, match=r"'history_rows'\): expected <i8 \[\d+\], found <i4"):
        Chain.open(release_copy)


#: Names that some file systems reject, or confuse with others.
NAMES = st.text(min_size=1) | st.sampled_from(
    [
        "a/b",
        "../a",
        "CON",
        "con",
        "größe",
        "GRÖSSE",
        "Größe",
        ".",
        "header.json",
        "0",
        "1.npy",
        "x" * 300,
        "ü" * 200,
    ]
)


@examples(14)
@given(st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_files_are_numbered_whatever_arrays_are_called(names: list[str]) -> None:
    with TemporaryDirectory() as place:
        path = Path(place) / "a"
        made = {name: np.array([number]) for number, name in enumerate(names)}
        write_artefact(path, "source", "b", made)
        files = {file.name for file in path.iterdir()}
        assert files == {"header.json", *(f"{number}.npy" for number in range(len(names)))}
        arrays = open_artefact(path, "source").arrays
        assert {name: array.tolist() for name, array in arrays.items()} == {
            name: array.tolist() for name, array in made.items()
        }


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'ids' holds Python objects; store bytes and offsets"):
        write_artefact(tmp_path / "a", "source", "b", {"ids": objects([b"x"])})


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("filtering", {"rules": (Compare("r", "price", "<", 3),)}),
        ("describe_items", {"title_column": "price"}),
    ],
)
def test_a_column_that_is_not_there(plain: Tiny, stage: str, changes: dict[str, Any]) -> None:
    manifest = plain.release.manifest
    other = replace(manifest, settings=replace(manifest.settings, **changes))
    with pytest.raises(ArtefactCorrupt, match="the items hold no raw column 'price'"):
        build_stage(stage, Release(plain.release.path, other))


def test_the_request_after_a_refusal_is_answered(plain: Tiny, plain_chain: Chain) -> None:
    with pytest.raises(InvalidRequest):
        plain_chain.check({**ONE, "k": int32(0)})
    out, _ = plain_chain.run(tensors([Ask(plain.user_ids[2])]))
    assert out["count"][0, 0] == 4
