"""The tensor table of the served graph: the one place where its names, dtypes and dims are written.

``I`` is the number of items and also the *pad row*: the number of the dummy last row of every item
table. ``N`` candidates leave retrieval, ``K`` of them reach the ranker, ``L`` is the length of a
history. The user axis comes first in every tensor and is not written down.

Tensors of width zero (a part without numeric columns, a history of length 0) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

from ..errors import ManifestInvalid
from ..release.manifest import Catalogue, Manifest, Packed, PackedList, RequestColumn
from ..reorder.steps import reasons_of
from ..settings import ServingSettings
from ..spec import LENGTH_OF, VALID_OF, StageSpec, TensorSpec

#: Stages that every graph has, and those of a ranker. Between the first and retrieval comes one query
#: stage, :func:`query_stage`, for each source with a query model.
USER_FEATURES, RETRIEVAL, FILTERING = "user_features", "retrieval", "filtering"
CANDIDATE_FEATURES, RANKING, ORDERING = "candidate_features", "ranking", "ordering"

#: The model beside the graph that turns ids or rows into titles.
DESCRIBE_ITEMS = "describe_items"

#: The two lists of raw ids that every request may carry, and the companions that give their lengths.
EXCLUDED, HISTORY = "exclude_item_ids", "history_item_ids"
LENGTHS: Mapping[str, str] = {EXCLUDED: "exclude_item_ids__length", HISTORY: "history_item_ids__length"}

#: Names that a request's own tensors have; a column of such a name travels under another.
RESERVED = ("user_id", "k", EXCLUDED, HISTORY, *LENGTHS.values())

#: Prefix of the tensor with the time that a Python stage took for the whole Triton batch.
TIME_PREFIX = "time_us_"

#: Prefix of the name of a query stage, of its artefact and of its output tensor.
QUERY_PREFIX = "query_"


def query_stage(source: str) -> str:
    """Return the name of a source's query stage, which is also the name of its tensor."""
    return QUERY_PREFIX + source


def time_spec(stage: str) -> TensorSpec:
    """Return the tensor ``time_us_<stage>`` f32 ``[1]``: microseconds for the batch it ran in."""
    return TensorSpec(TIME_PREFIX + stage, "float32", (1,), doc=f"Microseconds spent in {stage}.")


@dataclass(frozen=True)
class Tensors:
    """Every tensor that a model may name, before any model is known.

    Parameters
    ----------
    settings, catalogue, packed
        As the manifest has them.
    """

    settings: ServingSettings
    catalogue: Catalogue
    packed: Packed

    @property
    def user(self) -> tuple[TensorSpec, ...]:
        """What is known of a user: packed features and history."""
        packed, length = self.packed, self.settings.history_length
        return _without_empty(
            [
                TensorSpec("user_cat", "int64", (len(packed.user_cat),), doc="Category ids of the user."),
                TensorSpec("user_num", "float32", (len(packed.user_num),), doc="Numbers of the user."),
                *(_packed_list("user_list_", entry, ()) for entry in packed.user_lists),
                TensorSpec(
                    "history_row",
                    "int64",
                    (length,),
                    pad=self.catalogue.items,
                    doc="Latest items, oldest first.",
                ),
                TensorSpec("history_length", "int32", (1,) if length else (0,), doc="Its real length."),
                TensorSpec(
                    "history_cat",
                    "int64",
                    (length, len(self.settings.history_columns)),
                    doc="Its category ids.",
                ),
            ]
        )

    @property
    def item(self) -> tuple[TensorSpec, ...]:
        """What is known of the K candidates."""
        packed, k = self.packed, self.settings.kept
        return _without_empty(
            [
                TensorSpec("item_cat", "int64", (k, len(packed.item_cat)), doc="Category ids."),
                TensorSpec("item_num", "float32", (k, len(packed.item_num)), doc="Numbers."),
                *(_packed_list("item_list_", entry, (k,)) for entry in packed.item_lists),
            ]
        )

    @property
    def kept(self) -> tuple[TensorSpec, ...]:
        """What filtering gives."""
        k = self.settings.kept
        return (
            TensorSpec(
                "kept_row", "int64", (k,), pad=self.catalogue.items, doc="Those that passed every rule."
            ),
            TensorSpec("kept_index", "int64", (k,), doc="Their places among the retrieved."),
            TensorSpec("kept_score", "float32", (k,), doc="Their retrieval scores."),
            TensorSpec("kept_source", "int32", (k,), doc="Their sources."),
            TensorSpec(
                "filter_reason", "int32", (self.settings.candidates,), doc="Why each was kept or not."
            ),
        )

    @property
    def ranker(self) -> tuple[TensorSpec, ...]:
        """What a ranker may name: users, candidates, and what retrieval said of these."""
        return (*self.user, *self.item, *_pick(self.kept, "kept_score", "kept_source"))


def stage_specs(manifest: Manifest) -> tuple[StageSpec, ...]:
    """Return the specs of all stages, the served graph's first and in its order; ``describe_items`` is last.

    ``candidate_features`` and ``ranking`` are there if the ranker needs them.

    Raises
    ------
    ManifestInvalid
        A model or a source names a tensor that the graph does not have.
    """
    tensors = Tensors(manifest.settings, manifest.catalogue, manifest.packed)
    status = TensorSpec("status", "int32", (1,), doc="0 known, 1 unknown with features, 2 unknown.")
    excluded = TensorSpec(
        "excluded_row", "int64", (-1,), pad=manifest.catalogue.items, doc="Items that the request rules out."
    )
    user_id = _user_id(manifest.catalogue)
    request = _request(manifest, user_id)
    queries = []
    for source, model in manifest.queries.items():
        query = TensorSpec(query_stage(source), "float32", (model.dimension,), doc="The user's vector.")
        queries.append(StageSpec(query.name, _named(query.name, tensors.user, model.inputs), (query,)))
    known = (*tensors.user, *(stage.outputs[0] for stage in queries))
    read = dict.fromkeys(name for source in manifest.settings.sources for name in source.reads())
    retrieved = _retrieved(tensors)
    retrieval = StageSpec(RETRIEVAL, (*_named(RETRIEVAL, known, read), user_id, status, excluded), retrieved)
    specs = [
        StageSpec(USER_FEATURES, request, (status, *tensors.user, excluded)),
        *queries,
        retrieval,
        StageSpec(FILTERING, retrieved, tensors.kept),
        *_ranking(manifest, tensors),
        _ordering(manifest, tensors, status),
        _describe_items(manifest.catalogue),
    ]
    return tuple(specs)


def request_tensors(column: RequestColumn) -> tuple[TensorSpec, ...]:
    """Return the request tensors of one raw column: the values, and what says which are null."""
    name, dtype, doc = column.tensor, column.dtype, f"Column {column.name}."
    empty: int | bytes = b"" if dtype == "bytes" else 0
    if column.companion is None:
        return (TensorSpec(name, dtype, (1,), True, nan, f"{doc} NaN is null."),)
    if column.is_list:
        return _list_tensors(name, column.companion, dtype, empty, doc)
    said = f"False where {column.name} is null."
    return (
        TensorSpec(name, dtype, (1,), True, empty, doc),
        TensorSpec(column.companion, "bool", (1,), True, False, said, of=name, says=VALID_OF),
    )


def _list_tensors(
    name: str, companion: str, dtype: str, pad: int | bytes, doc: str
) -> tuple[TensorSpec, ...]:
    said = f"How many of {name} are real; -1 is null."
    return (
        TensorSpec(name, dtype, (-1,), True, pad, doc),
        TensorSpec(companion, "int32", (1,), True, -1, said, of=name, says=LENGTH_OF),
    )


def _empty(dtype: str) -> int | bytes:
    return b"" if dtype == "bytes" else 0


def _user_id(catalogue: Catalogue) -> TensorSpec:
    dtype = catalogue.user_id_dtype
    return TensorSpec("user_id", dtype, (1,), False, _empty(dtype), "Raw user id.")


def _k_tensor(settings: ServingSettings) -> TensorSpec:
    return TensorSpec("k", "int32", (1,), True, settings.k_default, "How many items the answer shall have.")


def _request(manifest: Manifest, user_id: TensorSpec) -> tuple[TensorSpec, ...]:
    dtype = manifest.catalogue.item_id_dtype
    empty = _empty(dtype)
    excluded, history = "Raw ids that must not be recommended.", "Raw ids, oldest first."
    inputs = [
        user_id,
        *_list_tensors(EXCLUDED, LENGTHS[EXCLUDED], dtype, empty, excluded),
        *_list_tensors(HISTORY, LENGTHS[HISTORY], dtype, empty, history),
    ]
    for column in manifest.request_columns:
        inputs += request_tensors(column)
    # Only checked here: a request with a wrong k is refused before any work.
    return (*inputs, _k_tensor(manifest.settings))


def _retrieved(tensors: Tensors) -> tuple[TensorSpec, ...]:
    n = tensors.settings.candidates
    return (
        TensorSpec(
            "retrieved_row", "int64", (n,), pad=tensors.catalogue.items, doc="Candidates, best first."
        ),
        TensorSpec("retrieval_score", "float32", (n,), doc="Their scores, as the first scoring source's."),
        TensorSpec("source", "int32", (n,), doc="1 + number of the source; 0 is empty."),
    )


def _ranking(manifest: Manifest, tensors: Tensors) -> list[StageSpec]:
    if manifest.ranking is None:
        return []
    rank_score = _rank_score(manifest)
    inputs = _named(RANKING, tensors.ranker, manifest.ranking.inputs)
    ranking = StageSpec(RANKING, inputs, (rank_score,))
    if not tensors.item:
        return [ranking]
    gather = StageSpec(CANDIDATE_FEATURES, _pick(tensors.kept, "kept_row"), tensors.item)
    return [gather, ranking]


def _rank_score(manifest: Manifest) -> TensorSpec:
    tasks = 1 if manifest.ranking is None else manifest.ranking.tasks
    return TensorSpec("rank_score", "float32", (manifest.settings.kept, tasks), doc="One column a task.")


def _ordering(manifest: Manifest, tensors: Tensors, status: TensorSpec) -> StageSpec:
    dtype, settings = manifest.catalogue.item_id_dtype, manifest.settings
    scored = () if manifest.ranking is None else (_rank_score(manifest),)
    read = dict.fromkeys(name for step in settings.reorder for name in step.reads())
    known = (*tensors.user, *tensors.kept)
    inputs = (
        *_pick(tensors.kept, "kept_row", "kept_score"),
        *scored,
        *(tensor for tensor in _named(ORDERING, known, read) if not tensor.name.startswith("kept_")),
        status,
        _k_tensor(settings),
    )
    outputs = [
        TensorSpec("item_id", dtype, (-1,), pad=_empty(dtype), doc="Raw ids, best first."),
        TensorSpec("score", "float32", (-1,), doc="Final scores."),
        TensorSpec("count", "int32", (1,), doc="How many slots are real."),
    ]
    if reasons_of(settings.reorder):
        doc = "Why a step moved or dropped each of the kept; 0 is no reason."
        outputs.append(TensorSpec("reorder_reason", "int32", (settings.kept,), doc=doc))
    return StageSpec(ORDERING, inputs, tuple(outputs))


def _describe_items(catalogue: Catalogue) -> StageSpec:
    dtype, items = catalogue.item_id_dtype, catalogue.items
    empty = _empty(dtype)
    inputs = (
        TensorSpec("item_id", dtype, (-1,), True, empty, "Raw ids; send these or item_row."),
        # -1 cannot be sent: it says that this row of the batch speaks in ids.
        TensorSpec("item_row", "int64", (-1,), True, -1, "Catalogue rows; send these or item_id."),
    )
    outputs = (
        TensorSpec("item_id", dtype, (-1,), pad=empty, doc="Raw ids."),
        TensorSpec("item_row", "int64", (-1,), pad=items, doc="Catalogue rows; the pad row if not found."),
        TensorSpec("title", "bytes", (-1,), pad=b"", doc="What people call it, or nothing."),
        TensorSpec("found", "bool", (-1,), pad=False, doc="Whether the catalogue has it."),
    )
    return StageSpec(DESCRIBE_ITEMS, inputs, outputs)


def _packed_list(prefix: str, entry: PackedList, leading: tuple[int, ...]) -> TensorSpec:
    doc = f"List {entry.name}, padded with 0."
    return TensorSpec(prefix + entry.name, entry.dtype, (*leading, entry.length), doc=doc)


def _named(stage: str, known: Sequence[TensorSpec], names: Iterable[str]) -> tuple[TensorSpec, ...]:
    """Return the tensors of these names, in the names' order."""
    tensors = {tensor.name: tensor for tensor in known}
    wanted = list(names)
    unknown = [name for name in wanted if name not in tensors]
    if unknown:
        raise ManifestInvalid(
            f"stage {stage}: {', '.join(unknown)} are wanted, but this graph has {', '.join(tensors)}; name "
            "the parameters of forward, and what a source or step reads, after these"
        )
    return tuple(tensors[name] for name in wanted)


def _pick(tensors: Iterable[TensorSpec], *names: str) -> tuple[TensorSpec, ...]:
    found = {tensor.name: tensor for tensor in tensors}
    return tuple(found[name] for name in names)


def _without_empty(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(tensor for tensor in tensors if 0 not in tensor.dims)
