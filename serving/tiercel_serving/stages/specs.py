"""The tensor table of the served graph: the one place where its names, dtypes and dims are written.

``I`` is the number of items and also the *pad row*: the number of the dummy last row of every item
table. ``N`` candidates leave retrieval, ``K`` of them reach the ranker, ``L`` is the length of a
history. The user axis comes first in every tensor and is not written down.

What :func:`stage_specs` reads of the manifest:

``settings``
    :class:`~tiercel_serving.settings.ServingSettings` as JSON.
``catalogue``
    ``items`` (I), ``users``, ``item_id_dtype``, ``user_id_dtype`` (``int64`` or ``bytes``) and
    ``dimension`` (D).
``packed``
    ``user_cat``, ``user_num``, ``item_cat``, ``item_num``, ``history_cat``: column names, in order.
    ``user_lists``, ``item_lists``: column → L for a list of category ids, or
    ``{"length": L, "dtype": "float32"}`` for a list of numbers.
``request_columns``
    ``[{"name", "dtype", "list", "part"}]``, raw columns that a request may carry.
``engines``
    ``{"user_tower": {"inputs": [names]}, "ranking": {"inputs": [names], "tasks": T}}``: the tensors
    that each model's ``forward`` names, and how many scores the ranker gives to a candidate.

Tensors of width zero (a part without numeric columns, a history of length 0) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any

from ..settings import ServingSettings
from ..spec import StageSpec, TensorSpec

#: The stages of the served graph, in its order.
GRAPH_STAGES = (
    "user_features",
    "user_tower",
    "retrieval",
    "filtering",
    "candidate_features",
    "ranking",
    "ordering",
)

#: The model beside the graph that turns ids or rows into titles.
DESCRIBE_ITEMS = "describe_items"

#: The stages that are an engine's (a model file) and not Python's.
ENGINE_STAGES = ("user_tower", "ranking")

#: Suffix of the tensor that says which rows of a request column are not null.
VALID = "__valid"

#: Suffix of the tensor that says how long each row of a list is; -1 is a null list.
LENGTH = "__length"

#: Prefix of the tensor with the time that a Python stage took for the whole Triton batch.
TIME_PREFIX = "time_us_"


def time_spec(stage: str) -> TensorSpec:
    """Return the tensor ``time_us_<stage>`` f32 ``[1]``: microseconds for the batch it ran in."""
    return TensorSpec(TIME_PREFIX + stage, "float32", (1,), doc=f"Microseconds spent in {stage}.")


def stage_specs(manifest: Mapping[str, Any]) -> tuple[StageSpec, ...]:
    """Return the specs of all stages, the served graph's first and in its order.

    Parameters
    ----------
    manifest
        A manifest with the keys that this module's docstring lists; ``stages`` is not read.

    Returns
    -------
    tuple of StageSpec
        Those of :data:`GRAPH_STAGES`, then :data:`DESCRIBE_ITEMS`.
        ``candidate_features`` is left out if the items have no features at all.

    Raises
    ------
    ValueError
        A model names a tensor that the graph does not have.
    """
    settings = ServingSettings.from_json(manifest["settings"])
    user_features = _user_features(manifest, settings)
    query = TensorSpec(
        "query", "float32", (int(manifest["catalogue"]["dimension"]),), doc="The user's vector."
    )
    retrieved = _retrieved(manifest, settings)
    kept = _kept(manifest, settings)
    items = _item_tensors(manifest, settings)
    tasks = int(manifest["engines"]["ranking"].get("tasks", 1))
    rank_score = TensorSpec("rank_score", "float32", (settings.kept, tasks), doc="One column a task.")
    user = {tensor.name: tensor for tensor in user_features.outputs}
    of_user = [t for t in user_features.outputs if t.name.startswith(("user_cat", "user_num", "user_list_"))]
    of_history = [t for t in user_features.outputs if t.name.startswith("history_")]
    kept_known = [t for t in kept if t.name in ("kept_score", "kept_source")]
    specs = [
        user_features,
        _engine(manifest, "user_tower", [*of_user, *of_history], query),
        StageSpec(
            "retrieval",
            (query, *_pick(user, "user_row", "status", "excluded_row")),
            tuple(retrieved),
        ),
        StageSpec("filtering", tuple(retrieved), tuple(kept)),
        StageSpec("candidate_features", _pick({t.name: t for t in kept}, "kept_row"), tuple(items)),
        _engine(manifest, "ranking", [*of_user, *of_history, *items, *kept_known], rank_score),
        _ordering(manifest, settings, kept, rank_score, user["status"]),
        _describe_items(manifest),
    ]
    return tuple(spec for spec in specs if spec.outputs)


def list_layout(entry: int | Mapping[str, Any]) -> tuple[int, str]:
    """Return length and dtype of one entry of ``packed.user_lists`` or ``packed.item_lists``."""
    if isinstance(entry, Mapping):
        return int(entry["length"]), str(entry.get("dtype", "int64"))
    return int(entry), "int64"


def request_tensors(column: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """Return the request tensors of one raw column: the values, and what says which are null."""
    name, dtype = str(column["name"]), str(column["dtype"])
    if column["list"]:
        pad: int | bytes = b"" if dtype == "bytes" else 0
        return _list_tensors(name, dtype, pad, f"Column {name}.")
    if dtype in ("float32", "float64"):
        return (TensorSpec(name, dtype, (1,), True, nan, f"Column {name}; NaN is null."),)
    empty: int | bytes = b"" if dtype == "bytes" else 0
    return (
        TensorSpec(name, dtype, (1,), True, empty, f"Column {name}."),
        TensorSpec(name + VALID, "bool", (1,), True, False, f"False where {name} is null."),
    )


def _list_tensors(name: str, dtype: str, pad: int | bytes, doc: str) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(name, dtype, (-1,), True, pad, doc),
        TensorSpec(name + LENGTH, "int32", (1,), True, -1, f"How many of {name} are real; -1 is null."),
    )


def _k_tensor(settings: ServingSettings) -> TensorSpec:
    return TensorSpec("k", "int32", (1,), True, settings.k_default, "How many items the answer shall have.")


def _user_features(manifest: Mapping[str, Any], settings: ServingSettings) -> StageSpec:
    catalogue, packed = manifest["catalogue"], manifest["packed"]
    items, length = int(catalogue["items"]), settings.history_length
    item_dtype = str(catalogue["item_id_dtype"])
    empty_id: int | bytes = b"" if item_dtype == "bytes" else 0
    user_dtype = str(catalogue["user_id_dtype"])
    empty_user: int | bytes = b"" if user_dtype == "bytes" else 0
    inputs = [
        TensorSpec("user_id", user_dtype, (1,), False, empty_user, "Raw user id."),
        *_list_tensors("exclude_item_ids", item_dtype, empty_id, "Raw ids that must not be recommended."),
        *_list_tensors("history_item_ids", item_dtype, empty_id, "Raw ids, oldest first."),
    ]
    for column in manifest["request_columns"]:
        inputs += request_tensors(column)
    # Only checked here: a request with a wrong k is refused before any work.
    inputs.append(_k_tensor(settings))
    history_width = len(packed["history_cat"])
    outputs = [
        TensorSpec("user_row", "int64", (1,), doc="Row in the user tables."),
        TensorSpec("status", "int32", (1,), doc="0 known, 1 unknown with features, 2 unknown."),
        TensorSpec("user_cat", "int64", (len(packed["user_cat"]),), doc="Category ids of the user."),
        TensorSpec("user_num", "float32", (len(packed["user_num"]),), doc="Numbers of the user."),
        *(_packed_list("user_list_", name, entry, ()) for name, entry in packed["user_lists"].items()),
        TensorSpec("history_row", "int64", (length,), pad=items, doc="Latest items, oldest first."),
        TensorSpec("history_length", "int32", (1,) if length else (0,), doc="Its real length."),
        TensorSpec("history_cat", "int64", (length, history_width), doc="Its category ids."),
        TensorSpec("excluded_row", "int64", (-1,), pad=items, doc="Items that the request rules out."),
    ]
    return StageSpec("user_features", tuple(inputs), _without_empty(outputs))


def _retrieved(manifest: Mapping[str, Any], settings: ServingSettings) -> list[TensorSpec]:
    n, items = settings.candidates, int(manifest["catalogue"]["items"])
    return [
        TensorSpec("retrieved_row", "int64", (n,), pad=items, doc="Candidates, best first."),
        TensorSpec("retrieval_score", "float32", (n,), doc="Inner product of query and item vector."),
        TensorSpec("source", "int32", (n,), doc="1 + number of the source; 0 is empty."),
    ]


def _kept(manifest: Mapping[str, Any], settings: ServingSettings) -> list[TensorSpec]:
    k, items = settings.kept, int(manifest["catalogue"]["items"])
    return [
        TensorSpec("kept_row", "int64", (k,), pad=items, doc="Those that passed every rule."),
        TensorSpec("kept_index", "int64", (k,), doc="Their places among the retrieved."),
        TensorSpec("kept_score", "float32", (k,), doc="Their retrieval scores."),
        TensorSpec("kept_source", "int32", (k,), doc="Their sources."),
        TensorSpec("filter_reason", "int32", (settings.candidates,), doc="Why each was kept or not."),
    ]


def _item_tensors(manifest: Mapping[str, Any], settings: ServingSettings) -> list[TensorSpec]:
    packed, k = manifest["packed"], settings.kept
    return list(
        _without_empty(
            [
                TensorSpec("item_cat", "int64", (k, len(packed["item_cat"])), doc="Category ids."),
                TensorSpec("item_num", "float32", (k, len(packed["item_num"])), doc="Numbers."),
                *(
                    _packed_list("item_list_", name, entry, (k,))
                    for name, entry in packed["item_lists"].items()
                ),
            ]
        )
    )


def _packed_list(
    prefix: str, name: str, entry: int | Mapping[str, Any], leading: tuple[int, ...]
) -> TensorSpec:
    length, dtype = list_layout(entry)
    return TensorSpec(prefix + name, dtype, (*leading, length), doc=f"List {name}, padded with 0.")


def _engine(
    manifest: Mapping[str, Any], stage: str, known: Sequence[TensorSpec], output: TensorSpec
) -> StageSpec:
    names = list(manifest["engines"][stage]["inputs"])
    tensors = {tensor.name: tensor for tensor in known}
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise ValueError(
            f"stage {stage}: the model's forward names {', '.join(unknown)}, but this graph has "
            f"{', '.join(tensors)}; name the parameters of forward after the tensors they take"
        )
    return StageSpec(stage, _pick(tensors, *names), (output,))


def _ordering(
    manifest: Mapping[str, Any],
    settings: ServingSettings,
    kept: Iterable[TensorSpec],
    rank_score: TensorSpec,
    status: TensorSpec,
) -> StageSpec:
    item_dtype = str(manifest["catalogue"]["item_id_dtype"])
    empty_id: int | bytes = b"" if item_dtype == "bytes" else 0
    inputs = (
        *_pick({tensor.name: tensor for tensor in kept}, "kept_row", "kept_score"),
        rank_score,
        status,
        _k_tensor(settings),
    )
    outputs = (
        TensorSpec("item_id", item_dtype, (-1,), pad=empty_id, doc="Raw ids, best first."),
        TensorSpec("score", "float32", (-1,), doc="Final scores."),
        TensorSpec("count", "int32", (1,), doc="How many slots are real."),
    )
    return StageSpec("ordering", inputs, outputs)


def _describe_items(manifest: Mapping[str, Any]) -> StageSpec:
    item_dtype = str(manifest["catalogue"]["item_id_dtype"])
    empty_id: int | bytes = b"" if item_dtype == "bytes" else 0
    items = int(manifest["catalogue"]["items"])
    inputs = (
        TensorSpec("item_id", item_dtype, (-1,), True, empty_id, "Raw ids; send these or item_row."),
        # -1 cannot be sent: it says that this row of the batch speaks in ids.
        TensorSpec("item_row", "int64", (-1,), True, -1, "Catalogue rows; send these or item_id."),
    )
    outputs = (
        TensorSpec("item_id", item_dtype, (-1,), pad=empty_id, doc="Raw ids."),
        TensorSpec("item_row", "int64", (-1,), pad=items, doc="Catalogue rows; the pad row if not found."),
        TensorSpec("title", "bytes", (-1,), pad=b"", doc="What people call it, or nothing."),
        TensorSpec("found", "bool", (-1,), pad=False, doc="Whether the catalogue has it."),
    )
    return StageSpec(DESCRIBE_ITEMS, inputs, outputs)


def _pick(tensors: Mapping[str, TensorSpec], *names: str) -> tuple[TensorSpec, ...]:
    return tuple(tensors[name] for name in names if name in tensors)


def _without_empty(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(tensor for tensor in tensors if 0 not in tensor.dims)
