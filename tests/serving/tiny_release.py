"""A release of a handful of users and items, written by hand in the layout that serving reads.

Nothing of the exporter is used: what lies here is the layout itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tiercel_serving.columns import Column
from tiercel_serving.lookups.lookup import build_lookup
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.settings import ServingSettings
from tiercel_serving.stages.specs import stage_specs
from tiercel_serving.tables.column_store import store_column
from tiercel_serving.tables.store import ITEM_IDS, ITEM_LOOKUP, USER_LOOKUP, raw_prefix

BUILD = "build-1"
DIMENSION = 4
TAGS = 3
OCCUPATIONS = [b"artist", "пилот".encode(), b"", b"nul\0byte"]


@dataclass
class Tiny:
    """What the release was made of, for oracles.

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
    vectors: np.ndarray
    popular_rows: list[int]
    popular_scores: np.ndarray
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def settings(self) -> ServingSettings:
        return self.release.settings


def objects(values: Sequence[Any]) -> np.ndarray:
    out = np.empty(len(values), np.object_)
    out[:] = values
    return out


def ids_array(values: Sequence[Any]) -> np.ndarray:
    return objects(values) if values and isinstance(values[0], bytes) else np.array(values, np.int64)


def column(values: Sequence[Any], dtype: Any) -> Column:
    """A scalar column from Python values, None for null."""
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
    settings: Mapping[str, Any] | None = None,
) -> Tiny:
    """Write the release and return it with its ingredients.

    Parameters
    ----------
    tied
        Give the items few distinct vectors, so that scores tie.
    settings
        Overrides of the serving settings.
    """
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "candidates": 10,
        "kept": 6,
        "k_default": 4,
        "k_max": 8,
        "history_length": 4,
        "max_batch_size": 8,
        "max_excluded": 200,
        "history_columns": ("topic",),
        "title_column": "label",
    }
    chosen = ServingSettings(**{**values, **(settings or {})})
    # Every user's name is a different mixture of scripts; one is empty.
    user_ids: list[Any] = [f"ü{number}\0☃".encode() if number else b"" for number in range(users)]
    item_ids: list[Any] = [f"片{number}".encode() for number in range(items)]
    if not string_ids:
        user_ids = [10 + 3 * number for number in range(users)]
        item_ids = [int(v) for v in rng.permutation(5 * items)[:items] + 1]
    vectors = rng.normal(size=(items, DIMENSION)).astype(np.float32)
    if tied:
        vectors = vectors[rng.integers(0, 3, items)]
    history = [
        [int(row) for row in rng.permutation(items)[: rng.integers(0, most_seen + 1)]] for _ in range(users)
    ]
    if users > 1:
        history[0], history[1] = [], [int(row) for row in rng.permutation(items)]
    counts = np.array([sum(row in mine for mine in history) for row in range(items)])
    popular = sorted(range(items), key=lambda row: (-counts[row], row))
    tiny = Tiny(
        release=Release(path, {}),
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
        popular_rows=popular,
        popular_scores=(counts[popular] / max(counts.max(), 1)).astype(np.float32),
    )
    tiny.weights = _weights(rng, tasks)
    _write_users(tiny, path)
    _write_items(tiny, path)
    _write_index(tiny, path, factory)
    _write_program(path)
    _write_engines(tiny, path, chosen)
    _write_manifest(tiny, path, chosen, tasks, string_ids)
    tiny.release = open_release(path)
    return tiny


def transform(
    age: Sequence[float | None],
    occupation: Sequence[bytes | None],
    tags: Sequence[Sequence[int] | None],
    hour: Sequence[int | None],
) -> dict[str, np.ndarray]:
    """What the feature program computes, in plain Python: 30 years for a null, 1 null, 2 unseen, pad 0."""
    code = {name: number + 3 for number, name in enumerate(OCCUPATIONS)}
    cats = [
        [1 if o is None else code.get(o, 2), 0 if h is None else h]
        for o, h in zip(occupation, hour, strict=True)
    ]
    lists = [[*(row or ())][:TAGS] for row in tags]
    return {
        "user_cat": np.array(cats, np.int64).reshape(-1, 2),
        "user_num": np.array([[30.0 if a is None else a] for a in age], np.float32).reshape(-1, 1),
        "user_list_tags": np.array([row + [0] * (TAGS - len(row)) for row in lists], np.int64).reshape(
            -1, TAGS
        ),
    }


def _write_users(tiny: Tiny, path: Path) -> None:
    users = len(tiny.user_ids)
    arrays = dict(build_lookup(ids_array(tiny.user_ids), USER_LOOKUP))
    arrays |= store_column(column([*tiny.age, None], np.float64), raw_prefix("age"))
    arrays |= store_column(column([*tiny.occupation, None], np.object_), raw_prefix("occupation"))
    arrays |= store_column(list_column([*tiny.tags, None], np.int64), raw_prefix("tags"))
    nulls: list[Any] = [None] * (users + 1)
    arrays |= transform([*tiny.age, None], [*tiny.occupation, None], [*tiny.tags, None], nulls)
    sizes = [0, *(len(mine) for mine in tiny.history), 0]
    arrays["history_offsets"] = np.cumsum(sizes)
    arrays["history_rows"] = np.array([row for mine in tiny.history for row in mine], np.int64)
    arrays["seen_offsets"] = arrays["history_offsets"]
    arrays["seen_rows"] = np.array([row for mine in tiny.seen for row in sorted(mine)], np.int64)
    write_artefact(path / "artefacts/users", "users", BUILD, arrays)


def _write_items(tiny: Tiny, path: Path) -> None:
    arrays = dict(build_lookup(ids_array(tiny.item_ids), ITEM_LOOKUP))
    arrays |= store_column(Column(ids_array(tiny.item_ids)), ITEM_IDS)
    arrays |= {"item_cat": tiny.item_cat, "item_num": tiny.item_num, "item_list_genres": tiny.item_genres}
    arrays |= store_column(column([*tiny.year, None], np.int64), raw_prefix("year"))
    arrays |= store_column(column([*tiny.label, None], np.object_), raw_prefix("label"))
    arrays |= store_column(list_column([*tiny.genres, None], np.object_), raw_prefix("genres"))
    arrays["popular_rows"] = np.array(tiny.popular_rows, np.int64)
    arrays["popular_scores"] = tiny.popular_scores
    write_artefact(path / "artefacts/items", "items", BUILD, arrays)


def _write_index(tiny: Tiny, path: Path, factory: str) -> None:
    index = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(tiny.vectors)
    index.add(tiny.vectors)
    (path / "artefacts/index").mkdir(parents=True)
    faiss.write_index(index, str(path / "artefacts/index/index.faiss"))
    parameters = {"nprobe": 100} if factory.startswith("IVF") else {}
    write_artefact(
        path / "artefacts/index", "index", BUILD, {"vectors": tiny.vectors}, {"parameters": parameters}
    )


def _write_program(path: Path) -> None:
    codes = np.arange(len(OCCUPATIONS)) + 3
    arrays = {"s1.value": np.array([[30.0]])}
    arrays |= build_lookup(objects(OCCUPATIONS), "s3.lookup", codes=codes, missing=2)
    arrays |= {"s3.null": np.array([[1]], np.int64)}
    inputs = [
        {"name": "age", "dtype": "float64", "is_list": False, "part": "user"},
        {"name": "occupation", "dtype": "bytes", "is_list": False, "part": "user"},
        {"name": "tags", "dtype": "int64", "is_list": True, "part": "user"},
        {"name": "hour", "dtype": "int64", "is_list": False, "part": "context"},
    ]
    steps = [
        {"op": "load", "columns": ["age"], "dtype": "float64"},
        {"op": "fill", "in": 0},
        {"op": "load", "columns": ["occupation"], "dtype": "object"},
        {"op": "encode_text", "in": 2},
        {"op": "load_list", "column": "tags", "dtype": "int64"},
        {"op": "load", "columns": ["hour"], "dtype": "int64"},
    ]
    outputs = [
        ("age", "num", False, None, "float64", 1),
        ("occupation", "cat", False, None, "int64", 3),
        ("hour", "cat", False, None, "int64", 5),
        ("tags", "cat", True, TAGS, "int64", 4),
    ]
    names = ("name", "kind", "is_list", "length", "dtype", "register")
    listed = [{**dict(zip(names, output, strict=True)), "row": 0} for output in outputs]
    program = {"format": 1, "part": "user", "inputs": inputs, "steps": steps, "outputs": listed}
    write_artefact(path / "artefacts/user_features", "features", BUILD, arrays, {"program": program})


def _weights(rng: np.random.Generator, tasks: int) -> dict[str, np.ndarray]:
    return {
        "w_age": (rng.normal(size=(1, DIMENSION)) / 30).astype(np.float32),
        "e_occupation": rng.normal(size=(16, DIMENSION)).astype(np.float32),
        "w_item": rng.normal(size=(3, tasks)).astype(np.float32),
        "w_kept": rng.normal(size=(1, tasks)).astype(np.float32),
        "w_user": rng.normal(size=(1, tasks)).astype(np.float32),
    }


def tower_oracle(tiny: Tiny, user_num: np.ndarray, user_cat: np.ndarray) -> np.ndarray:
    w = tiny.weights
    return (user_num @ w["w_age"] + w["e_occupation"][user_cat[:, 0]]).astype(np.float32)


def ranker_oracle(
    tiny: Tiny, user_num: np.ndarray, item_num: np.ndarray, kept_score: np.ndarray
) -> np.ndarray:
    w = tiny.weights
    user = (user_num @ w["w_user"])[:, None, :]
    return (item_num @ w["w_item"] + kept_score[:, :, None] @ w["w_kept"] + user).astype(np.float32)


def _write_engines(tiny: Tiny, path: Path, settings: ServingSettings) -> None:
    k, tasks = settings.kept, tiny.weights["w_item"].shape[1]
    tower = [
        helper.make_node("MatMul", ["user_num", "w_age"], ["a"]),
        helper.make_node("Gather", ["user_cat", "zero"], ["code"], axis=1),
        helper.make_node("Gather", ["e_occupation", "code"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["query"]),
    ]
    _write_model(
        tiny,
        path / "artefacts/user_tower",
        tower,
        {"zero": np.array(0, np.int64)},
        [("user_num", np.float32, [1]), ("user_cat", np.int64, [2])],
        ("query", [DIMENSION]),
    )
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
        [("user_num", np.float32, [1]), ("item_num", np.float32, [k, 3]), ("kept_score", np.float32, [k])],
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
    write_artefact(path, "engine", BUILD, {}, {"inputs": [name for name, _, _ in inputs]})


def _write_manifest(tiny: Tiny, path: Path, settings: ServingSettings, tasks: int, string_ids: bool) -> None:
    dtype = "bytes" if string_ids else "int64"
    manifest: dict[str, Any] = {
        "format": 1,
        "build_id": BUILD,
        "name": "tiny",
        "target": "cpu",
        "layout": "fused",
        "settings": settings.to_json(),
        "catalogue": {
            "items": len(tiny.item_ids),
            "users": len(tiny.user_ids),
            "item_id_dtype": dtype,
            "user_id_dtype": dtype,
            "dimension": DIMENSION,
        },
        "packed": {
            "user_cat": ["occupation", "hour"],
            "user_num": ["age"],
            "user_lists": {"tags": TAGS},
            "history_cat": list(settings.history_columns),
            "item_cat": ["item", "topic"],
            "item_num": ["a", "b", "c"],
            "item_lists": {"genres": 2},
        },
        "request_columns": [
            {"name": "age", "dtype": "float64", "list": False, "part": "user"},
            {"name": "occupation", "dtype": "bytes", "list": False, "part": "user"},
            {"name": "tags", "dtype": "int64", "list": True, "part": "user"},
            {"name": "hour", "dtype": "int64", "list": False, "part": "context"},
        ],
        "engines": {
            "user_tower": {"inputs": ["user_num", "user_cat"]},
            "ranking": {"inputs": ["user_num", "item_num", "kept_score"], "tasks": tasks},
        },
        "files": {},
    }
    manifest["stages"] = [spec.to_json() for spec in stage_specs(manifest)]
    (path / "manifest.json").write_text(json.dumps(manifest, allow_nan=False), encoding="utf-8")
