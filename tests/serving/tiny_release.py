"""A release of a few users and items, written by hand in the layout that serving reads.

It uses nothing of the exporter, so it documents the layout itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tiercel_serving.columns import Column
from tiercel_serving.lookups.build import build_lookup
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.release.manifest import (
    MANIFEST_FORMAT,
    Catalogue,
    Made,
    Manifest,
    Packed,
    PackedList,
    QueryModel,
    RankingModel,
    RequestColumn,
)
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.release.writing import write_manifest
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.index import INDEX_FILE, Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.sources.search import Profile, Rung
from tiercel_serving.sources.table import Material
from tiercel_serving.stores.bloom import SeenFilter, build_filters, item_keys
from tiercel_serving.stores.memory_mapped import USER_LOOKUP
from tiercel_serving.tables.column_store import raw_prefix, store_column
from tiercel_serving.tables.items import ITEM_LOOKUP, store_ids

BUILD = "build-1"
DIMENSION = 4
TAGS = 3
DAY_S = 86_400.0
OCCUPATIONS = [b"artist", "пилот".encode(), b"", b"nul\0byte"]
#: What a request may send. Names imply nothing: one tensor is named like another's companion.
COLUMNS = (
    RequestColumn("age", "float64", False, "user", "age", None),
    RequestColumn("occupation", "bytes", False, "user", "occupation", "occupation__valid"),
    RequestColumn("tags", "int64", True, "user", "tags", "how many tags"),
    RequestColumn("tags__length", "float32", False, "context", "tags__length", None),
    RequestColumn("hour", "int64", False, "context", "hour", "hour__valid"),
)


@dataclass(repr=False)
class Tiny:
    """The contents of the release, for oracles.

    Lists hold None for null; strings are bytes.
    """

    release: Release
    user_ids: list[Any]
    item_ids: list[Any]
    age: list[float | None]
    occupation: list[bytes | None]
    tags: list[list[int] | None]
    history: list[list[int]]
    seen: list[set[int]]
    item_cat: np.ndarray
    item_num: np.ndarray
    item_genres: np.ndarray
    year: list[int | None]
    label: list[bytes | None]
    genres: list[list[bytes] | None]
    vectors: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def settings(self) -> ServingSettings:
        return self.release.settings

    def item(self, row: int) -> dict[str, Any]:
        """Return an item's raw values, as rules and steps get them: text is ``str``."""
        label, genres = self.label[row], self.genres[row]
        return {
            "year": self.year[row],
            "label": None if label is None else label.decode(),
            "genres": None if genres is None else [one.decode() for one in genres],
        }


def objects(values: Sequence[Any]) -> np.ndarray:
    out = np.empty(len(values), np.object_)
    out[:] = values
    return out


def ids_array(values: Sequence[Any]) -> np.ndarray:
    return objects(values) if values and isinstance(values[0], bytes) else np.array(values, np.int64)


def column(values: Sequence[Any], dtype: Any) -> Column:
    """Return a scalar column from Python values; None is null."""
    valid = np.array([value is not None for value in values], np.bool_)
    if dtype == np.object_:
        return Column(objects([b"" if value is None else value for value in values]), valid)
    if np.dtype(dtype).kind == "f":
        return Column(np.array([np.nan if value is None else value for value in values], dtype))
    return Column(np.array([0 if value is None else value for value in values], dtype), valid)


def list_column(values: Sequence[Sequence[Any] | None], dtype: Any) -> Column:
    flat = [element for row in values for element in (row or ())]
    offsets = np.cumsum([0, *(len(row or ()) for row in values)]).astype(np.int64)
    valid = np.array([row is not None for row in values], np.bool_)
    return Column(objects(flat) if dtype == np.object_ else np.array(flat, dtype), None, offsets, valid)


def make_tiny(
    path: Path,
    *,
    seed: int = 0,
    users: int = 7,
    items: int = 30,
    string_ids: bool = False,
    most_seen: int = 12,
    tasks: int = 1,
    factory: str = "Flat",
    tied: bool = False,
    ranked: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Tiny:
    """Write the release and return its contents.

    Parameters
    ----------
    tied
        Give the items few distinct vectors, so that scores tie.
    ranked
        Whether there is a ranker.
    settings
        Overrides of the serving settings.
    """
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "candidates": 12,
        "kept": 8,
        "k_default": 4,
        "k_max": 8,
        "history_length": 4,
        "max_batch_size": 8,
        "max_excluded": 200,
        "sources": (Index("near", factory=factory), Popular(quota=0)),
        "history_columns": ("topic",),
        "title_column": "label",
    }
    chosen = ServingSettings(**{**values, **(settings or {})})
    # Every user id mixes several scripts; one is empty.
    user_ids: list[Any] = [f"ü{number}\0☃".encode() if number else b"" for number in range(users)]
    item_ids: list[Any] = [f"片{number}".encode() for number in range(items)]
    if not string_ids:
        user_ids = [10 + 3 * number for number in range(users)]
        item_ids = [int(v) for v in rng.permutation(5 * items)[:items] + 1]
    vectors = {}
    for source in chosen.sources:
        if source.form == "vectors":
            made = rng.normal(size=(items, DIMENSION)).astype(np.float32)
            vectors[source.name] = made[rng.integers(0, 3, items)] if tied else made
    history = [
        [int(row) for row in rng.permutation(items)[: rng.integers(0, most_seen + 1)]] for _ in range(users)
    ]
    if users > 1:
        history[0], history[1] = [], [int(row) for row in rng.permutation(items)]
    tiny = Tiny(
        release=Release(path, _manifest(chosen, len(user_ids), len(item_ids), string_ids, tasks * ranked)),
        user_ids=user_ids,
        item_ids=item_ids,
        age=[None if number % 3 == 2 else 20.0 + number for number in range(users)],
        occupation=[None if number % 4 == 3 else OCCUPATIONS[number % 3] for number in range(users)],
        tags=[None if number % 3 == 1 else list(range(number)) for number in range(users)],
        history=history,
        seen=[set(mine) for mine in history],
        item_cat=np.vstack([rng.integers(1, 9, (items, 2)), [[0, 0]]]).astype(np.int64),
        item_num=np.vstack([rng.normal(size=(items, 3)), np.zeros((1, 3))]).astype(np.float32),
        item_genres=np.vstack([rng.integers(0, 5, (items, 2)), [[0, 0]]]).astype(np.int64),
        year=[None if row % 5 == 4 else 1990 + row for row in range(items)],
        label=[None if row % 7 == 6 else f"Film № {row}".encode() for row in range(items)],
        genres=[None if row % 6 == 5 else [OCCUPATIONS[g] for g in range(row % 3)] for row in range(items)],
        vectors=vectors,
    )
    tiny.weights = _weights(rng, tasks, vectors)
    write_artefact(path / "artefacts/users", "users", BUILD, user_arrays(tiny))
    _write_items(tiny, path)
    _write_sources(tiny, path)
    _write_program(path)
    _write_engines(tiny, path)
    write_manifest(path, tiny.release.manifest)
    tiny.release = open_release(path)
    return tiny


def transform(
    age: Sequence[float | None],
    occupation: Sequence[bytes | None],
    tags: Sequence[Sequence[int] | None],
    tags__length: Sequence[float | None],
    hour: Sequence[int | None],
) -> dict[str, np.ndarray]:
    """Compute what the feature program computes, in plain Python.

    A null becomes 30 years, length -1 or category 1; an unseen category is 2, and lists are padded with 0.
    """
    code = {name: number + 3 for number, name in enumerate(OCCUPATIONS)}
    cats = [
        [1 if o is None else code.get(o, 2), 0 if h is None else h]
        for o, h in zip(occupation, hour, strict=True)
    ]
    lists = [[*(row or ())][:TAGS] for row in tags]
    return {
        "user_cat": np.array(cats, np.int64).reshape(-1, 2),
        "user_num": np.array(
            [
                [30.0 if a is None else a, -1.0 if t is None else t]
                for a, t in zip(age, tags__length, strict=True)
            ],
            np.float32,
        ).reshape(-1, 2),
        "user_list_tags": np.array([row + [0] * (TAGS - len(row)) for row in lists], np.int64).reshape(
            -1, TAGS
        ),
    }


def user_arrays(tiny: Tiny) -> dict[str, np.ndarray]:
    """Return the arrays of the users' artefact."""
    users = len(tiny.user_ids)
    arrays = dict(build_lookup(ids_array(tiny.user_ids), USER_LOOKUP))
    arrays |= store_column(column([*tiny.age, None], np.float64), raw_prefix("age"))
    arrays |= store_column(column([*tiny.occupation, None], np.object_), raw_prefix("occupation"))
    arrays |= store_column(list_column([*tiny.tags, None], np.int64), raw_prefix("tags"))
    nulls: list[Any] = [None] * (users + 1)
    arrays |= transform([*tiny.age, None], [*tiny.occupation, None], [*tiny.tags, None], nulls, nulls)
    sizes = [0, *(len(mine) for mine in tiny.history), 0]
    arrays["history_offsets"] = np.cumsum(sizes)
    arrays["history_rows"] = np.array([row for mine in tiny.history for row in mine], np.int32)
    if tiny.settings.seen_filter is not None:
        arrays |= filtered(tiny, tiny.settings.seen_filter)
    if tiny.settings.seen_again_days is not None:
        arrays["history_times"] = np.array([had_at(at) for mine in tiny.history for at in range(len(mine))])
    return arrays


def filtered(tiny: Tiny, kept: SeenFilter) -> dict[str, np.ndarray]:
    """Return the latest items of each history, and Bloom filters of the rest."""
    latest = [mine[-kept.beyond :] for mine in tiny.history]
    rest = [mine[: -kept.beyond] for mine in tiny.history]
    owners = np.repeat(np.arange(len(rest)), [len(mine) for mine in rest])
    old = np.array([row for mine in rest for row in mine], np.int64)
    keys = item_keys(ids_array(tiny.item_ids))[old]
    offsets, data = build_filters(owners, keys, len(rest) + 1, kept.of_release)
    return {
        "history_offsets": np.cumsum([0, *(len(mine) for mine in latest), 0]),
        "history_rows": np.array([row for mine in latest for row in mine], np.int32),
        "filter_offsets": offsets,
        "filter_data": data,
    }


def had_at(place: int) -> float:
    """Return when the item at an index of a history was consumed, in seconds since 1970: one item a day."""
    return DAY_S * (place + 1)


def _write_items(tiny: Tiny, path: Path) -> None:
    arrays = dict(build_lookup(ids_array(tiny.item_ids), ITEM_LOOKUP))
    arrays |= store_ids(ids_array(tiny.item_ids))
    arrays |= {"item_cat": tiny.item_cat, "item_num": tiny.item_num, "item_list_genres": tiny.item_genres}
    arrays |= store_column(column([*tiny.year, None], np.int64), raw_prefix("year"))
    arrays |= store_column(column([*tiny.label, None], np.object_), raw_prefix("label"))
    arrays |= store_column(list_column([*tiny.genres, None], np.object_), raw_prefix("genres"))
    write_artefact(path / "artefacts/items", "items", BUILD, arrays)


def _write_sources(tiny: Tiny, path: Path) -> None:
    """Write each source's artefact; indexes that are not flat are built here with FAISS itself."""
    users = np.repeat(np.arange(len(tiny.history)), [len(mine) for mine in tiny.history])
    rows = np.array([row for mine in tiny.history for row in mine], np.int64)
    for source in tiny.settings.sources:
        place = path / f"artefacts/source_{source.name}"
        place.mkdir(parents=True)
        vectors = tiny.vectors.get(source.name)
        form = {} if vectors is None else {"vectors": vectors}
        made = source.make(Material(len(tiny.item_ids), users, rows, form=form))
        meta = dict(made.meta)
        if vectors is not None and source.factory != "Flat":
            index = faiss.index_factory(DIMENSION, source.factory, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
            index.add(vectors)
            # Search all lists or links, so that results equal exact search but for rounding.
            knob, value = None, 1
            if isinstance(index, faiss.IndexIVF):
                knob, value = "nprobe", index.nlist
            elif isinstance(index, faiss.IndexHNSW):
                knob, value = "efSearch", len(vectors)
            if knob is not None:
                faiss.ParameterSpace().set_index_parameter(index, knob, value)
            faiss.write_index(index, str(place / INDEX_FILE))
            rungs = tuple(
                Rung(depth, value, cost, 0.0)
                for depth, cost in ((tiny.settings.candidates, 0.01), (len(vectors), 0.05))
            )
            profile = Profile(knob, 0.0, rungs)
            meta["profile"] = msgspec.to_builtins(profile)
        write_artefact(place, "source", BUILD, made.arrays, meta)


def _write_program(path: Path) -> None:
    codes = np.arange(len(OCCUPATIONS)) + 3
    arrays = {"s1.value": np.array([[30.0], [-1.0]])}
    arrays |= build_lookup(objects(OCCUPATIONS), "s3.lookup", codes=codes, missing=2)
    arrays |= {"s3.null": np.array([[1]], np.int64)}
    inputs = [{"name": c.name, "dtype": c.dtype, "is_list": c.is_list, "part": c.part} for c in COLUMNS]
    steps = [
        {"op": "load", "columns": ["age", "tags__length"], "dtype": "float64"},
        {"op": "fill", "in": 0},
        {"op": "load", "columns": ["occupation"], "dtype": "object"},
        {"op": "encode_text", "in": 2},
        {"op": "load_list", "column": "tags", "dtype": "int64"},
        {"op": "load", "columns": ["hour"], "dtype": "int64"},
    ]
    outputs = [
        ("age", "num", False, None, "float64", 1, 0),
        ("tags__length", "num", False, None, "float64", 1, 1),
        ("occupation", "cat", False, None, "int64", 3, 0),
        ("hour", "cat", False, None, "int64", 5, 0),
        ("tags", "cat", True, TAGS, "int64", 4, 0),
    ]
    names = ("name", "kind", "is_list", "length", "dtype", "register", "row")
    listed = [dict(zip(names, output, strict=True)) for output in outputs]
    program = {"format": 1, "part": "user", "inputs": inputs, "steps": steps, "outputs": listed}
    write_artefact(path / "artefacts/user_features", "features", BUILD, arrays, {"program": program})


def _weights(
    rng: np.random.Generator, tasks: int, sources: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    weights = {
        "w_item": rng.normal(size=(3, tasks)).astype(np.float32),
        "w_kept": rng.normal(size=(1, tasks)).astype(np.float32),
        "w_user": rng.normal(size=(2, tasks)).astype(np.float32),
    }
    for name in sources:
        weights[f"w_{name}"] = (rng.normal(size=(2, DIMENSION)) / 30).astype(np.float32)
        weights[f"e_{name}"] = rng.normal(size=(16, DIMENSION)).astype(np.float32)
    return weights


def tower_oracle(tiny: Tiny, source: str, user_num: np.ndarray, user_cat: np.ndarray) -> np.ndarray:
    w = tiny.weights
    return (user_num @ w[f"w_{source}"] + w[f"e_{source}"][user_cat[:, 0]]).astype(np.float32)


def ranker_oracle(
    tiny: Tiny, user_num: np.ndarray, item_num: np.ndarray, kept_score: np.ndarray
) -> np.ndarray:
    w = tiny.weights
    user = (user_num @ w["w_user"])[:, None, :]
    return (item_num @ w["w_item"] + kept_score[:, :, None] @ w["w_kept"] + user).astype(np.float32)


def _write_engines(tiny: Tiny, path: Path) -> None:
    k, tasks = tiny.settings.kept, tiny.weights["w_item"].shape[1]
    for source in tiny.vectors:
        tower = [
            helper.make_node("MatMul", ["user_num", f"w_{source}"], ["a"]),
            helper.make_node("Gather", ["user_cat", "zero"], ["code"], axis=1),
            helper.make_node("Gather", [f"e_{source}", "code"], ["b"]),
            helper.make_node("Add", ["a", "b"], [f"query_{source}"]),
        ]
        _write_model(
            tiny,
            path / f"artefacts/query_{source}",
            tower,
            {"zero": np.array(0, np.int64)},
            [("user_num", np.float32, [2]), ("user_cat", np.int64, [2])],
            (f"query_{source}", [DIMENSION]),
        )
    if tiny.release.manifest.ranking is None:
        return
    ranker = [
        helper.make_node("MatMul", ["item_num", "w_item"], ["a"]),
        helper.make_node("Unsqueeze", ["kept_score", "two"], ["kept3"]),
        helper.make_node("MatMul", ["kept3", "w_kept"], ["b"]),
        helper.make_node("MatMul", ["user_num", "w_user"], ["c"]),
        helper.make_node("Unsqueeze", ["c", "one"], ["c3"]),
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Add", ["ab", "c3"], ["rank_score"]),
    ]
    _write_model(
        tiny,
        path / "artefacts/ranking",
        ranker,
        {"two": np.array([2]), "one": np.array([1])},
        [("user_num", np.float32, [2]), ("item_num", np.float32, [k, 3]), ("kept_score", np.float32, [k])],
        ("rank_score", [k, tasks]),
    )


def _write_model(
    tiny: Tiny,
    path: Path,
    nodes: list[Any],
    constants: Mapping[str, np.ndarray],
    inputs: list[tuple[str, Any, list[int]]],
    output: tuple[str, list[int]],
) -> None:
    used = {name for node in nodes for name in node.input}
    tensors = {name: array for name, array in {**tiny.weights, **constants}.items() if name in used}
    graph = helper.make_graph(
        nodes,
        path.name,
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["B", *dims]
            )
            for name, dtype, dims in inputs
        ],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, ["B", *output[1]])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.mkdir(parents=True)
    onnx.save(model, str(path / "model.onnx"))
    write_artefact(path, "engine", BUILD, {})


def _manifest(settings: ServingSettings, users: int, items: int, string_ids: bool, tasks: int) -> Manifest:
    """Return the manifest; zero tasks mean no ranker."""
    dtype: Any = "bytes" if string_ids else "int64"
    query = QueryModel("onnx", ("user_num", "user_cat"), DIMENSION, 0)
    return Manifest(
        format=MANIFEST_FORMAT,
        build_id=BUILD,
        name="tiny",
        made=Made("2026-11-25T12:00:00+00:00", None, {}),
        target="cpu",
        layout="fused",
        settings=settings,
        catalogue=Catalogue(items, users, 0, dtype, dtype, "film", "person"),
        packed=Packed(
            user_cat=("occupation", "hour"),
            user_num=("age", "tags__length"),
            user_lists=(PackedList("tags", TAGS),),
            item_cat=("item", "topic"),
            item_num=("a", "b", "c"),
            item_lists=(PackedList("genres", 2),),
        ),
        request_columns=COLUMNS,
        raw_item_columns=("year", "label", "genres"),
        queries={source.name: query for source in settings.sources if source.form == "vectors"},
        ranking=RankingModel("onnx", ("user_num", "item_num", "kept_score"), tasks, 0) if tasks else None,
        sources={source.name: {} for source in settings.sources},
        tables={},
        notes=(),
    )
