"""Filling, concatenating and splitting batches, and small functions of the stages."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tiny_release import COLUMNS, Tiny, make_tiny, objects

from tiercel_serving.columns import flat_ranges
from tiercel_serving.errors import ArtefactCorrupt, ManifestInvalid
from tiercel_serving.flags import every, some
from tiercel_serving.ranked.masks import BitmapMask, KeyMask
from tiercel_serving.ranked.order import first_allowed, order_by_score, sort_by_score
from tiercel_serving.release.artefacts import open_artefact
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.runtime.batching import absent, complete, concatenate, split
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.spec import LENGTH_OF, PACKED_OF, VALID_OF, TensorSpec, list_tensor
from tiercel_serving.stages.specs import stage_specs

SPECS = (
    TensorSpec("user_id", "int64", (1,)),
    TensorSpec("x", "float32", (1,), True, float("nan")),
    TensorSpec("c", "bytes", (1,), True, b""),
    TensorSpec("c__valid", "bool", (1,), True, False, of="c", says=VALID_OF),
    TensorSpec("l", "int64", (-1,), True, 7),
    TensorSpec("l__length", "int32", (1,), True, -1, of="l", says=LENGTH_OF),
    TensorSpec("l__packed", "bytes", (1,), True, b"", of="l", says=PACKED_OF),
    # A column named like a companion tensor, beside a list whose companion has another name.
    TensorSpec("trip", "int64", (-1,), True, 0),
    TensorSpec("trip__length", "float32", (1,), True, float("nan")),
    TensorSpec("stops", "int32", (1,), True, -1, of="trip", says=LENGTH_OF),
    TensorSpec("m", "float32", (2, 3), True),
)


def test_absent_means_null() -> None:
    full = complete(SPECS, {"user_id": np.zeros((2, 1), np.int64)}, absent(SPECS, 2))
    assert np.isnan(full["x"]).all()
    assert full["c"].tolist() == [[b""], [b""]]
    assert not full["c__valid"].any()
    assert full["l"].shape == (2, 0)
    assert full["l__length"].tolist() == [[-1], [-1]]
    assert full["m"].shape == (2, 2, 3)


def test_a_tensor_without_its_companion_is_real() -> None:
    given = {
        "user_id": np.zeros((2, 1), np.int64),
        "c": objects([b"a", b"b"])[:, None],
        "l": np.ones((2, 3), int),
    }
    full = complete(SPECS, given, absent(SPECS, 2))
    assert full["c__valid"].all()
    assert full["l__length"].tolist() == [[3], [3]]
    assert all(full[name] is array for name, array in given.items()), "one request must not be copied"


def test_a_column_may_have_the_name_of_a_companion() -> None:
    user, trip = {"user_id": np.array([[1]])}, {"trip": np.array([[4, 5]])}
    named = np.array([[2.5]], np.float32)
    full = complete(SPECS, {**user, **trip}, absent(SPECS, 1))
    assert full["stops"].tolist() == [[2]]
    assert np.isnan(full["trip__length"]).all(), "not sent is null, whatever lies beside it"
    carried = concatenate(SPECS, [{**user, **trip}, {**user, "trip__length": named}, user])
    full = complete(SPECS, carried, absent(SPECS, 3))
    assert full["stops"].tolist() == [[2], [-1], [-1]]
    np.testing.assert_array_equal(full["trip__length"], [[np.nan], [2.5], [np.nan]])


def test_requests_with_different_tensors_run_together() -> None:
    first = {"user_id": np.array([[1]]), "l": np.array([[4, 5]]), "c": objects([b"a"])[:, None]}
    second = {"user_id": np.array([[2], [3]]), "x": np.array([[1.0], [2.0]], np.float32)}
    third = {"user_id": np.array([[4]]), "l": np.array([[6]]), "l__length": np.array([[0]], np.int32)}
    carried = concatenate(SPECS, [first, second, third])
    assert "m" not in carried, "nobody sent it"
    full = complete(SPECS, carried, absent(SPECS, 4))
    assert full["user_id"][:, 0].tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(full["x"][:, 0], np.array([np.nan, 1, 2, np.nan], np.float32))
    assert full["c"][:, 0].tolist() == [b"a", b"", b"", b""]
    assert full["c__valid"][:, 0].tolist() == [True, False, False, False]
    assert full["l"].tolist() == [[4, 5], [7, 7], [7, 7], [6, 7]]
    assert full["l__length"][:, 0].tolist() == [2, -1, -1, 0]
    assert {name: array.dtype for name, array in full.items()} == {s.name: s.numpy_dtype for s in SPECS}


def test_split_gives_each_request_its_own_width() -> None:
    outputs = {"a": np.arange(12).reshape(3, 4), "b": np.arange(3)[:, None]}
    parts = split(outputs, [1, 2], [["a"], ["a", "b"]], [{"a": 2}, {"a": 4}])
    assert [sorted(part) for part in parts] == [["a"], ["a", "b"]]
    assert parts[0]["a"].tolist() == [[0, 1]]
    assert parts[1]["a"].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert all(array.flags.c_contiguous for part in parts for array in part.values())


def test_a_model_may_only_name_tensors_of_the_graph(plain: Tiny) -> None:
    manifest = plain.release.manifest
    ranking = replace(manifest.ranking, inputs=("item_cat", "price"))
    with pytest.raises(ManifestInvalid, match="stage ranking: price are wanted, but this graph has user_cat"):
        stage_specs(replace(manifest, ranking=ranking))


scores = st.floats(width=32, allow_nan=False)


@given(st.integers(1, 3), st.lists(scores, max_size=9).flatmap(lambda s: st.permutations(s * 2)))
def test_sorting_by_score_then_row(users: int, values: list[float]) -> None:
    batch = np.tile(np.array(values, np.float32), (users, 1)).reshape(users, len(values))
    rows = np.tile(np.arange(len(values))[::-1] * 1000, (users, 1))
    order = order_by_score(batch, rows)
    sorted_scores, sorted_rows = sort_by_score(batch, rows)
    for user in range(users):
        expected = sorted(range(len(values)), key=lambda i: (-batch[0, i], rows[0, i]))
        assert order[user].tolist() == expected
        assert sorted_rows[user].tolist() == rows[0, expected].tolist()
        assert sorted_scores[user].tolist() == batch[0, expected].tolist()


masks = st.integers(1, 5).flatmap(
    lambda items: st.lists(st.lists(st.integers(0, items), max_size=9), min_size=1, max_size=3).map(
        lambda rows: (items, rows)
    )
)


@given(masks, masks)
def test_both_masks_are_sets(first: tuple[int, list[list[int]]], more: tuple[int, list[list[int]]]) -> None:
    items, seen = first
    users = len(seen)
    flat = np.array([row for mine in seen for row in sorted(set(mine))], np.int64)
    counts = np.array([len(set(mine)) for mine in seen])
    added = np.resize(np.array([0, *more[1][0]], np.int64) % (items + 1), (users, 4))
    asked = np.tile(np.arange(items + 1), (users, 1))
    for kind in (BitmapMask, KeyMask):
        mask = kind(users, items, flat, counts)
        mask.add(added)
        for user in range(users):
            masked = {*seen[user], *added[user].tolist(), items}
            assert mask.allows(asked)[user].tolist() == [row not in masked for row in range(items + 1)]
        hidden = [sorted({*seen[user], *added[user].tolist()} - {items}) for user in range(users)]
        assert mask.counts().tolist() == [len(rows) for rows in hidden]
        assert [mask.rows_of(user).tolist() for user in range(users)] == hidden


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(0, 7))
def test_first_allowed(allowed: list[list[bool]], count: int) -> None:
    places, real = first_allowed(np.array(allowed), count)
    if real is None:
        assert min(map(sum, allowed)) >= count
        real = np.ones(places.shape, bool)
    for user, row in enumerate(allowed):
        expected = [place for place, flag in enumerate(row) if flag][:count]
        assert places[user, real[user]].tolist() == expected
        assert real[user].tolist() == [n < len(expected) for n in range(count)]
        assert (places[user, ~real[user]] == 0).all()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), min_size=1))
def test_flat_ranges(ranges: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(ranges, np.int64).T
    expected = [i for start, length in ranges for i in range(start, start + length)]
    assert flat_ranges(starts, lengths).tolist() == expected


def test_describe_items_by_id_and_by_row(plain: Tiny) -> None:
    describe = Chain.open(plain.release, ["describe_items"])
    by_id, _ = describe.run({"item_id": np.array([[plain.item_ids[2], -1, plain.item_ids[6]]])})
    assert by_id["item_row"].tolist() == [[2, 30, 6]]
    assert by_id["found"].tolist() == [[True, False, True]]
    assert by_id["title"].tolist() == [["Film № 2".encode(), b"", b""]]
    by_row, _ = describe.run({"item_row": np.array([[6, 30, 2, 10**12]])})
    assert by_row["item_id"].tolist() == [[plain.item_ids[6], 0, plain.item_ids[2], 0]]
    assert by_row["found"].tolist() == [[True, False, True, False]]


def test_describe_items_answers_ids_and_rows_in_one_batch(tiny_of) -> None:
    for tiny in (tiny_of("plain"), tiny_of("strings")):
        describe = Chain.open(tiny.release, ["describe_items"])
        ids = (
            objects(tiny.item_ids[:2]) if isinstance(tiny.item_ids[0], bytes) else np.array(tiny.item_ids[:2])
        )
        requests = [{"item_id": ids[None]}, {"item_row": np.array([[3, 4, 5], [30, 0, 1]])}]
        out, _ = describe.run(concatenate(describe.external_inputs, requests))
        widths = [describe.widths(request) for request in requests]
        first, second = split(out, [1, 2], [["item_row", "found"]] * 2, widths)
        assert first["item_row"].tolist() == [[0, 1]]
        assert second["item_row"].tolist() == [[3, 4, 5], [30, 0, 1]]
        assert second["found"].tolist() == [[True] * 3, [False, True, True]]


def test_the_readme_lists_every_tensor(tiny_of: Callable[[str], Tiny]) -> None:
    readme = Path(__file__).parents[2] / "model_repository" / "README.md"
    rows = {line.split("`")[1]: line for line in readme.read_text().splitlines() if line.startswith("| `")}
    own = {column.tensor for column in COLUMNS} | {column.companion for column in COLUMNS}
    for name, spec in tiny_of("strings").release.stages.items():
        engine = name in ("query_near", "ranking")
        for tensor in spec.outputs if engine else (*spec.inputs, *spec.outputs):
            if tensor.name in own:
                continue
            wanted = tensor.name.replace("_tags", "_<c>").replace("_genres", "_<c>")
            row = rows[name.replace("_near", "_<source>")]
            assert f"`{wanted.replace('_near', '_<source>')}`" in row, f"{name}: {wanted}"


def test_the_user_id_may_be_a_feature(tmp_path: Path) -> None:
    """The program gets an unknown user id as a value, not as the store's dummy row."""
    tiny = make_tiny(tmp_path / "r")
    header = tiny.release.path / "artefacts/user_features/header.json"
    data = json.loads(header.read_text())
    program = data["meta"]["program"]
    program["inputs"].append({"name": "member", "dtype": "int64", "is_list": False, "part": "user"})
    program["steps"].append({"op": "load", "columns": ["member"], "dtype": "int64"})
    # It replaces the hour among the categorical features.
    hour = next(output for output in program["outputs"] if output["name"] == "hour")
    hour["register"] = len(program["steps"]) - 1
    header.write_text(json.dumps(data))
    stage = Chain.open(tiny.release, ["user_features"])
    out, _ = stage.run({"user_id": np.array([[-5], [tiny.user_ids[2]]])})
    assert out["user_cat"][:, 1].tolist() == [-5, tiny.user_ids[2]]
    out, _ = stage.run({"user_id": np.array([[tiny.user_ids[2]]])})
    assert out["user_cat"][0, 1] == 0, "a known user's row is what export made of it"


def test_a_program_that_reads_what_no_request_has(plain: Tiny) -> None:
    manifest = replace(plain.release.manifest, request_columns=COLUMNS[:2])
    with pytest.raises(ArtefactCorrupt, match=r"reads \['tags', .*only the user id can be a feature"):
        Chain.open(Release(plain.release.path, manifest), ["user_features"])


def test_a_chain_opens_each_artefact_once(plain: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Counter[str]()
    monkeypatch.setattr(
        "tiercel_serving.release.opened.open_artefact",
        lambda path, *rest: opened.update([path.name]) or open_artefact(path, *rest),
    )
    release = open_release(plain.release.path)
    chain = Chain.open(release)
    Chain.open(release, ["describe_items"])
    chain.run({"user_id": np.array([[plain.user_ids[2]]])})
    assert set(opened.values()) == {1}
    assert set(opened) == {path.name for path in (plain.release.path / "artefacts").iterdir()}


@pytest.mark.parametrize("flags", [[], [True], [False], [[True]], [[False]], [True, False], [[False]] * 2])
def test_flags_are_asked_as_numpy_asks_them(flags):
    array = np.array(flags, np.bool_)
    assert some(array) is bool(array.any())
    assert every(array) is bool(array.all())


NAMES = st.text() | st.text("_x2ab ", max_size=12)


@given(st.lists(NAMES, unique=True, max_size=8), st.sampled_from(["user", "item"]))
def test_each_list_has_a_tensor_that_python_can_name(columns: list[str], part: str) -> None:
    names = [list_tensor(part, column) for column in columns]
    assert len(set(names)) == len(names)
    for column, name in zip(columns, names, strict=True):
        # Python normalises identifiers by NFKC, so another form of a name could be another parameter.
        assert list(inspect.signature(eval(f"lambda {name}: 0")).parameters) == [name]
        if column.isalpha() and column.isascii():
            assert name == f"{part}_list_{column}"
