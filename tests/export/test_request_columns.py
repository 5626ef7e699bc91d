"""Raw columns of any name: each gets a tensor name that is unique in the graph, and null stays null."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from bare_manifest import bare_manifest
from hypothesis import given
from hypothesis import strategies as st
from small_release import ITEMS, SETTINGS, Parts, small_frames, small_release
from torch import nn

from drawing import examples
from tiercel_export import TableColumns, Vectors, build_release
from tiercel_export.errors import ExportInputError
from tiercel_export.release.request_columns import graph_names, request_columns
from tiercel_export.release.tables import item_arrays, user_arrays
from tiercel_serving.columns import Column, null_column, with_null_row
from tiercel_serving.features import FeatureProgram, InputColumn
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.release.manifest import Packed, PackedList, RequestColumn
from tiercel_serving.release.opened import Release
from tiercel_serving.rules.compare import Compare
from tiercel_serving.runtime.batching import count_users
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.sources.popular import Popular
from tiercel_serving.spec import DTYPES
from tiercel_serving.stages.specs import PACKED, request_tensors

BARE = bare_manifest("in memory")
TAKEN = graph_names(BARE)

#: Names that clash with those of the graph, of companions, and of columns that were renamed.
WORDS = (
    *PACKED.values(),
    *sorted(TAKEN),
    "a",
    "b",
    "",
    "a b",
    "ä/№",
    "user_num",
    "item_cat",
    "query_x",
    "title",
)
ENDINGS = ("", "__length", "__valid", "_2", "__length_2", "__valid__valid", "_3")
NAMES = st.builds("{}{}".format, st.sampled_from(WORDS), st.sampled_from(ENDINGS)) | st.text(max_size=4)
KINDS = st.tuples(
    st.sampled_from(["int64", "float64", "float32", "bool", "bytes"]),
    st.booleans(),
    st.sampled_from(["user", "context"]),
)
COLUMNS = st.dictionaries(NAMES, KINDS, min_size=1, max_size=6).map(
    lambda drawn: tuple(InputColumn(name, *kind) for name, kind in drawn.items())
)


@given(COLUMNS, st.sets(NAMES, max_size=3))
def test_no_two_tensors_share_a_name(columns: tuple[InputColumn, ...], more: set[str]) -> None:
    named = request_columns(columns, "not a column", TAKEN | more)
    assert [column.name for column in named] == [column.name for column in columns]
    tensors = [tensor.name for column in named for tensor in request_tensors(column)]
    assert all(tensors)
    assert len(set(tensors)) == len(tensors)
    assert not set(tensors) & (TAKEN | more)
    for column in named:
        # A column keeps its own name where it can, whatever the others are called.
        assert column.tensor == column.name or not column.name or column.name in TAKEN | more
        assert (column.companion is None) == (column.dtype.startswith("float") and not column.is_list)


def test_the_names_of_the_plain_case() -> None:
    columns = [
        InputColumn("trip", "int64", True, "context"),
        InputColumn("trip__length", "float64", False, "context"),
        InputColumn("k", "int64", False, "context"),
        InputColumn("k_2", "int64", False, "user"),
        InputColumn("reader", "int64", False, "user"),
    ]
    named = request_columns(columns, "reader", TAKEN)
    assert [(column.name, column.tensor, column.companion) for column in named] == [
        ("trip", "trip", "trip__length_2"),
        ("trip__length", "trip__length", None),
        ("k", "k_3", "k_3__valid"),
        ("k_2", "k_2", "k_2__valid"),
    ]


# ---------------------------------------------------------------------------------------- through a chain

EXAMPLES: dict[str, list[Any]] = {
    "int64": [3, -4],
    "float64": [0.5, 2.0],
    "float32": [0.25, 8.0],
    "bool": [True, False],
    "bytes": [b"x", b"yy"],
}
#: The value in place of a null, and the width of lists.
FILL, WIDTH = -7.0, 2


def as_column(column: InputColumn, value: Any) -> Column:
    """Return a column of one row; None is null."""
    dtype = DTYPES[column.dtype]
    if value is None:
        return null_column(column.dtype, column.is_list, 1)
    values = np.empty(len(value) if column.is_list else 1, dtype)
    values[:] = value if column.is_list else [value]
    return Column(values, None, np.array([0, len(value)]) if column.is_list else None)


def program_of(columns: tuple[InputColumn, ...]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a program that passes numbers on, with FILL for null; text gives 1, and a null gives 0."""
    steps: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    outputs = []
    for number, column in enumerate(columns):
        dtype = "object" if column.dtype == "bytes" else column.dtype
        if column.is_list:
            steps.append({"op": "load_list", "column": column.name, "dtype": dtype})
        else:
            steps.append({"op": "load", "columns": [column.name], "dtype": dtype})
        kind, made = ("raw" if column.dtype == "bytes" else "num"), dtype
        if column.dtype == "bytes":
            kind, made = "cat", "int64"
            steps.append({"op": "row_is_null" if column.is_list else "is_null", "in": len(steps) - 1})
        elif not column.is_list and column.dtype != "bool":
            arrays[f"s{len(steps)}.value"] = np.array([[FILL]], column.dtype)
            steps.append({"op": "fill", "in": len(steps) - 1})
        outputs.append(
            {
                **{"name": f"out{number}", "kind": kind, "dtype": made, "register": len(steps) - 1, "row": 0},
                **{"is_list": column.is_list and column.dtype != "bytes", "length": WIDTH},
            }
        )
    inputs = [{f: getattr(c, f) for f in ("name", "dtype", "is_list", "part")} for c in columns]
    return {"format": 1, "part": "user", "inputs": inputs, "steps": steps, "outputs": outputs}, arrays


def request_of(named: tuple[RequestColumn, ...], values: dict[str, Any], style: str) -> dict[str, Any]:
    """Return what a client sends; a null is left out, or sent as a null."""
    arrays: dict[str, Any] = {"user_id": np.array([[5]])}
    for column in named:
        value, dtype = values[column.name], DTYPES[column.dtype]
        if value is None and style == "left out":
            continue
        listed = [] if value is None else value if column.is_list else [value]
        sent = np.empty((1, len(listed) if column.is_list else 1), dtype)
        sent[:] = b"" if dtype == np.object_ else np.nan if dtype.kind == "f" else 0
        sent[0, : len(listed)] = listed
        arrays[column.tensor] = sent
        if column.companion is not None and (value is None or style == "spelled out"):
            real: Any = -1 if value is None else len(listed)
            said = np.int32(real) if column.is_list else np.bool_(value is not None)
            arrays[column.companion] = np.array([[said]])
    return arrays


@examples(20)
@given(COLUMNS, st.data())
def test_columns_of_any_name_through_a_chain(columns: tuple[InputColumn, ...], data: st.DataObject) -> None:
    columns = tuple(c for c in columns if not (c.is_list and c.dtype in ("bool", "bytes")))
    values, stored = {}, {}
    for column in columns:
        one = st.sampled_from(EXAMPLES[column.dtype])
        drawn = st.none() | (st.lists(one, max_size=WIDTH) if column.is_list else one)
        values[column.name] = data.draw(drawn)
        stored[column.name] = data.draw(drawn) if column.part == "user" else None
    document, arrays = program_of(columns)
    program = FeatureProgram(document, arrays)
    named = request_columns(columns, "not a column", TAKEN)
    release = release_of(program, arrays, named, columns, stored)
    chain = Chain.open(release, ["user_features"])
    asked = request_of(named, values, data.draw(st.sampled_from(["left out", "plain", "spelled out"])))
    assert count_users(chain.external_inputs, asked) == 1
    chain.check(asked)
    out, _ = chain.run(asked)
    used = {c.name: stored[c.name] if values[c.name] is None else values[c.name] for c in columns}
    expected = program.packed({c.name: as_column(c, used[c.name]) for c in columns}, 1)
    for name, tensor in expected.items():
        assert np.array_equal(out[name], tensor, equal_nan=True), name
    assert out["status"].tolist() == [[0]]


def release_of(
    program: FeatureProgram,
    arrays: dict[str, np.ndarray],
    named: tuple[RequestColumn, ...],
    columns: tuple[InputColumn, ...],
    stored: dict[str, Any],
) -> Release:
    """Return an in-memory release of one item and of user 5, whose stored values are ``stored``."""
    cats = tuple(c.name for c in program.outputs if c.kind == "cat" and not c.is_list)
    nums = tuple(c.name for c in program.outputs if c.kind == "num" and not c.is_list)
    lists = tuple(PackedList(c.name, WIDTH, "float32") for c in program.outputs if c.is_list)
    packed = Packed(user_cat=cats, user_num=nums, user_lists=lists)
    catalogue = msgspec.structs.replace(BARE.catalogue, users=1)
    manifest = msgspec.structs.replace(BARE, catalogue=catalogue, packed=packed, request_columns=named)
    release = Release(Path("nowhere"), manifest)
    raw = {}
    for column in (c for c in columns if c.part == "user"):
        # The row after the last user is the null row.
        raw[column.name] = with_null_row(as_column(column, stored[column.name]))
    both = {c.name: raw.get(c.name, null_column(c.dtype, c.is_list, 2)) for c in columns}
    nobody = np.zeros(0, np.int64)
    users = user_arrays(np.array([5]), raw, program.packed(both, 2), nobody, nobody, latest=1)
    meta = {"program": program.to_json()}
    for name, kind, content, more in (
        ("user_features", "features", arrays, meta),
        ("users", "users", users, {}),
        ("items", "items", item_arrays(np.array([1]), {}, {}), {}),
    ):
        release._artefacts[name] = Artefact.in_memory(kind, content, more)
    return release


# ---------------------------------------------------------------------------------------- through an export


class NumberTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(1, 8)

    def forward(self, user_num, user_cat):
        return self.last(user_num) + user_cat.sum(1, keepdim=True)


#: Context columns whose names clash with names of the graph.
NAMES_OF_CONTEXT = ("trip", "trip__length", "k", "user_id", "exclude_item_ids", "score", "time_us_filtering")


@pytest.fixture(scope="module")
def odd_release(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Build a release with users called readers, and context columns named like tensors of the graph.

    A user feature may also come from the users' table, as a reader's level does.
    """
    folder = tmp_path_factory.mktemp("odd")
    users, items, interactions = small_frames()
    random = np.random.default_rng(0)
    users = users.rename(columns={"user_id": "reader"}).assign(level=np.arange(len(users)) % 4)
    interactions = interactions.rename(columns={"user_id": "reader"})
    rows = len(interactions)
    interactions["trip"] = [random.choice(["a", "b"], random.integers(0, 3)).tolist() for _ in range(rows)]
    interactions["trip__length"] = random.normal(size=rows)
    for name in ("k", "user_id", "score"):
        interactions[name] = random.integers(0, 5, rows)
    for name in ("exclude_item_ids", "time_us_filtering"):
        interactions[name] = random.choice(["x", "y"], rows)
    return small_release(
        folder / "release",
        parts,
        users=users,
        items=items,
        interactions=interactions,
        workflow=odd_workflow(users, items, interactions, folder),
        columns=TableColumns(user_id="reader"),
        retrieval={"towers": Vectors(NumberTower(), np.eye(ITEMS, 8, dtype=np.float32))},
        ranker=None,
        settings=msgspec.structs.replace(SETTINGS, reorder=(), history_columns=()),
    )


def odd_workflow(users: pd.DataFrame, items: pd.DataFrame, interactions: pd.DataFrame, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular
        from merlin.io import Dataset
        from merlin.schema import Tags
        from nvtabular import ops

        out = str(folder / "categories")
        user = ["reader"] >> ops.Categorify(out_path=out) >> ops.TagAsUserID()
        item = ["kind"] >> ops.Categorify(out_path=out) >> ops.TagAsItemFeatures()
        words = ["level", "trip", "k", "user_id", "exclude_item_ids", "score", "time_us_filtering"]
        context = ((words >> ops.Categorify(out_path=out)) + (["trip__length"] >> ops.FillMissing(-9.0))) >> (
            ops.AddTags([Tags.CONTEXT])
        )
        joined = interactions.merge(users, on="reader").merge(items, on="item_id")
        workflow = nvtabular.Workflow(user + item + context)
        workflow.fit(Dataset(joined[["reader", "kind", "level", *NAMES_OF_CONTEXT]], cpu=True))
    return workflow


def test_context_columns_of_any_name_are_served(odd_release: Release) -> None:
    named = {column.name: column for column in odd_release.manifest.request_columns}
    assert {name for name, column in named.items() if column.part == "context"} == set(NAMES_OF_CONTEXT)
    assert (named["trip"].tensor, named["trip"].companion) == ("trip", "trip__length_2")
    assert named["trip__length"].tensor == "trip__length"
    for name in ("k", "user_id", "exclude_item_ids", "score", "time_us_filtering"):
        assert named[name].tensor == f"{name}_2"
    columns = odd_release.manifest.packed.user_cat
    chain = Chain.open(odd_release)
    reader = {"user_id": np.array([[1000]])}
    out, _ = chain.run(reader)
    # What is not sent is null, for the category as for the number.
    assert out["user_num"].tolist() == [[-9.0]]
    known = dict(zip(columns, out["user_cat"][0].tolist(), strict=True))
    assert known.pop("reader") > 1
    assert known.pop("level") > 1, "what the table of users has, a request need not send"
    assert known == {name: 1 for name in NAMES_OF_CONTEXT if not name.startswith("trip")}
    assert out["user_list_trip"].tolist() == [[0, 0]]
    sent = {
        **reader,
        "trip": np.array([[b"a", b"b"]], object),
        "trip__length": np.array([[2.5]]),
        "k_2": np.array([[3]]),
        "user_id_2": np.array([[4]]),
        "exclude_item_ids_2": np.array([[b"y"]], object),
        "k": np.array([[2]], np.int32),
    }
    chain.check(sent)
    out, _ = chain.run(sent)
    assert out["count"].tolist() == [[2]]
    assert out["status"].tolist() == [[0]]
    assert out["user_num"].tolist() == [[2.5]]
    assert (out["user_list_trip"] > 1).all()
    known = dict(zip(columns, out["user_cat"][0].tolist(), strict=True))
    assert {name for name, value in known.items() if value == 1} == {"score", "time_us_filtering"}


# ---------------------------------------------------------------------------------------- users and items


def named_workflow(users: pd.DataFrame, items: pd.DataFrame, *, user: str, item: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nvtabular
        from merlin.io import Dataset
        from nvtabular import ops

        mine = [user] >> ops.FillMissing(0) >> ops.TagAsUserFeatures()
        its = [item] >> ops.Categorify(out_path=str(folder)) >> ops.TagAsItemFeatures()
        workflow = nvtabular.Workflow(mine + its)
        rows = min(len(users), len(items))
        workflow.fit(Dataset(pd.concat([users[[user]][:rows], items[[item]][:rows]], axis=1), cpu=True))
    return workflow


def named_release(folder: Path, *, user: str, item: str, rule: str, title: str) -> Release:
    """Return a release with popular items only, and with these column names."""
    users, items, interactions = small_frames()
    users = users.rename(columns={"income": user})
    items = items.rename(columns={"kind": item, "stock": rule, "title": title})
    return build_release(
        folder / "release",
        name="named",
        workflow=named_workflow(users, items, user=user, item=item, folder=folder / "categories"),
        users=users,
        items=items,
        interactions=interactions,
        retrieval={},
        settings=msgspec.structs.replace(
            SETTINGS,
            sources=(Popular("popular"),),
            rules=(Compare("in stock", column=rule, operator=">", value=0),),
            reorder=(),
            history_columns=(),
            title_column=title,
        ),
    )


def test_columns_whose_names_no_file_system_takes(tmp_path: Path) -> None:
    names = {"user": "größe/" + "ü" * 300, "item": "Größe", "rule": "größe", "title": "CON"}
    release = named_release(tmp_path, **names)
    assert all(str(file.relative_to(release.path)).isascii() for file in release.path.rglob("*"))
    column = next(c for c in release.manifest.request_columns if c.name == names["user"])
    chain = Chain.open(release.path)
    out, _ = chain.run({"user_id": np.array([[1000]]), column.tensor: np.array([[33.5]])})
    assert out["user_num"].tolist() == [[33.5]]
    assert out["count"].tolist() == [[5]]


@pytest.mark.parametrize("role", ["user", "item", "rule", "title"])
def test_an_empty_name_is_refused(tmp_path: Path, role: str) -> None:
    names = {"user": "income", "item": "kind", "rule": "stock", "title": "title", role: ""}
    with pytest.raises(ExportInputError, match=r"column ''.* name"):
        named_release(tmp_path, **names)
