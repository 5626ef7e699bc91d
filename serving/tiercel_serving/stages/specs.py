"""The tensor table of the served graph: the one place that defines its names, dtypes and dims.

``I`` is the number of items and also the *pad row*: the index of the dummy last row of every item
table. ``N`` candidates leave retrieval, ``K`` of them reach the ranker, ``L`` is the length of a
history. The user axis comes first in every tensor and is left out here.

Tensors of width zero (a part without numeric columns, a history of length 0) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

from ..errors import ManifestInvalid
from ..release.manifest import Catalogue, Manifest, Packed, PackedList
from ..reorder.per_request import PerRequest, per_request
from ..reorder.steps import reasons_of
from ..rules.table import asked
from ..settings import ServingSettings
from ..spec import PACKED_OF, StageSpec, TensorSpec, list_tensor
from .column_tensors import empty_of, list_tensors, request_tensors, told_to_rules

#: Stages of every graph, and those of graphs with a ranker. Between ``user_features`` and ``retrieval`` comes
#: one query stage, :func:`query_stage`, for each source with a query model.
USER_FEATURES, RETRIEVAL, FILTERING = "user_features", "retrieval", "filtering"
CANDIDATE_FEATURES, RANKING, ORDERING = "candidate_features", "ranking", "ordering"

#: Models beside the graph: titles of items, and similar items.
DESCRIBE_ITEMS, RELATED = "describe_items", "related"
BESIDE = (DESCRIBE_ITEMS, RELATED)

#: The lists of raw ids that a request may carry. The first stage reads those to exclude and the history;
#: retrieval reads the only allowed items, the candidates to rank instead of searching, and the items to
#: explain; the model ``related`` reads the given items. Then the companions with their lengths, and those
#: with the packed lists, for text ids (``sent_ids.py``).
EXCLUDED, HISTORY = "exclude_item_ids", "history_item_ids"
INCLUDED, CANDIDATES, EXPLAINED = "include_item_ids", "candidate_item_ids", "explain_item_ids"
RELATED_TO = "related_item_ids"
LISTS: Mapping[str, str] = {
    EXCLUDED: "Raw ids of items that must not be recommended.",
    HISTORY: "Raw ids of the items that the user interacted with, oldest first.",
    INCLUDED: "Raw ids of the only items that may be recommended.",
    CANDIDATES: "Raw ids of items to rank instead of searching.",
    EXPLAINED: "Raw ids of items to explain.",
    RELATED_TO: "Raw ids of items; items similar to all of them together are returned.",
}
LENGTHS: Mapping[str, str] = {name: f"{name}__length" for name in LISTS}
PACKED: Mapping[str, str] = {name: f"{name}__packed" for name in LISTS if name not in (EXPLAINED, RELATED_TO)}

#: Tensors of catalogue rows that are passed between stages.
ITEM_ROWS = ("history_row", "excluded_row", "retrieved_row", "kept_row")

#: Whether users may get items that they have already seen.
ALLOW_SEEN = "allow_seen"

#: The current time for rules and ``seen_again_days``, in seconds since 1970-01-01 UTC.
NOW = "now"

#: Names of tensors of every request and answer, which numbers of reorder steps must not use.
FACE = frozenset(
    (
        *("user_id", "k", ALLOW_SEEN, *LISTS, *LENGTHS.values(), *PACKED.values()),
        *("item_id", "score", "count", "status", "source"),
    )
)

#: Prefix of the tensor with the time that a Python stage took for the whole Triton batch.
TIME_PREFIX = "time_us_"

#: Prefix of the name of a query stage, of its artefact and of its output tensor.
QUERY_PREFIX = "query_"


def bucket_name(k: int) -> str:
    """Return the name of the ranker's engine for k candidates, in artefacts and reports."""
    return f"{RANKING}_k{k}"


def is_ranker(name: str) -> bool:
    """Whether an engine is the ranker, or the ranker for fewer candidates."""
    return name == RANKING or name.startswith(f"{RANKING}_k")


def query_stage(source: str) -> str:
    """Return the name of a source's query stage, which is also the name of its tensor."""
    return QUERY_PREFIX + source


def time_spec(stage: str) -> TensorSpec:
    """Return the tensor ``time_us_<stage>`` float32 ``[1]``: microseconds for the whole batch."""
    return TensorSpec(TIME_PREFIX + stage, "float32", (1,), doc=f"Microseconds in {stage} for the batch.")


@dataclass(frozen=True)
class Tensors:
    """Every tensor that a model may name as an input, derived from parts of the manifest."""

    settings: ServingSettings
    catalogue: Catalogue
    packed: Packed

    @property
    def user(self) -> tuple[TensorSpec, ...]:
        """The tensors of a user: packed features and history."""
        packed, length, pad = self.packed, self.settings.history_length, self.catalogue.items
        shown = len(self.settings.history_columns)
        return _without_empty(
            TensorSpec("user_cat", "int64", (len(packed.user_cat),), doc="Category ids of the user."),
            TensorSpec("user_num", "float32", (len(packed.user_num),), doc="Numeric features of the user."),
            *(_packed_list("user", entry) for entry in packed.user_lists),
            TensorSpec("history_row", "int64", (length,), pad=pad, doc="Rows of latest items, oldest first."),
            TensorSpec("history_length", "int32", (1,) if length else (0,), doc="Length of the history."),
            TensorSpec("history_cat", "int64", (length, shown), doc="Category ids of the history."),
        )

    @property
    def item(self) -> tuple[TensorSpec, ...]:
        """The packed features of the K candidates."""
        packed, k = self.packed, self.settings.kept
        return _without_empty(
            TensorSpec("item_cat", "int64", (k, len(packed.item_cat)), doc="Category ids of the items."),
            TensorSpec("item_num", "float32", (k, len(packed.item_num)), doc="Numeric features of items."),
            *(_packed_list("item", entry, k) for entry in packed.item_lists),
        )

    @property
    def kept(self) -> tuple[TensorSpec, ...]:
        """The outputs of filtering."""
        n, k, pad = self.settings.candidates, self.settings.kept, self.catalogue.items
        return (
            TensorSpec("kept_row", "int64", (k,), pad=pad, doc="Rows that passed every rule."),
            TensorSpec("kept_index", "int64", (k,), doc="Their positions among the retrieved."),
            TensorSpec("kept_score", "float32", (k,), doc="Retrieval scores of the kept."),
            TensorSpec("kept_source", "int32", (k,), doc="Sources of the kept; see source."),
            TensorSpec("filter_reason", "int32", (n,), doc="Why each was kept or removed."),
        )

    @property
    def by_candidate(self) -> frozenset[str]:
        """Names of the tensors of K candidates that a ranker may take."""
        return frozenset(tensor.name for tensor in (*self.item, *self.kept)) - {"filter_reason"}

    @property
    def ranker(self) -> tuple[TensorSpec, ...]:
        """The tensors that a ranker may take: of users, of candidates, their retrieval scores and sources."""
        said = (tensor for tensor in self.kept if tensor.name in ("kept_score", "kept_source"))
        return (*self.user, *self.item, *said)


def stage_specs(manifest: Manifest) -> tuple[StageSpec, ...]:
    """Return the specs of all stages: those of the served graph in order, then those beside it.

    ``ranking`` is present if there is a ranker, and ``candidate_features`` if there also are item features.

    Raises
    ------
    ManifestInvalid
        A model or a source names a tensor that the graph does not have.
    """
    settings, catalogue = manifest.settings, manifest.catalogue
    tensors, n, pad = Tensors(settings, catalogue, manifest.packed), settings.candidates, catalogue.items
    id_dtype = catalogue.user_id_dtype
    user_id = TensorSpec("user_id", id_dtype, (1,), False, empty_of(id_dtype), "Raw user id.")
    # The first stage only checks k and the steps' numbers, so that bad requests fail before any work.
    k = TensorSpec("k", "int32", (1,), True, settings.k_default, "Number of items to return.")
    doc = "Whether items that the user has already seen may be recommended."
    allow_seen = TensorSpec(ALLOW_SEEN, "bool", (1,), True, settings.allow_seen, doc)
    of_steps = tuple(one.tensor for one in per_request(settings.reorder))
    of_seen = tuple(_of_seen(settings))
    taken = {tensor.name: tensor for tensor in (*of_seen, *of_steps)}.values()
    status = TensorSpec("status", "int32", (1,), doc="0 known, 1 unknown with features, 2 unknown.")
    doc = "Rows of items that the request excludes, or that the user interacted with since the export."
    excluded = TensorSpec("excluded_row", "int64", (-1,), pad=pad, doc=doc)
    retrieved = (
        TensorSpec("retrieved_row", "int64", (n,), pad=pad, doc="Rows of the candidates, best first."),
        TensorSpec("retrieval_score", "float32", (n,), doc="Scores, scaled as the first scoring source's."),
        TensorSpec("source", "int32", (n,), doc="Number of the source, from 1; 0: empty slot."),
    )
    explained = (
        TensorSpec(
            "explain_reason", "int32", (-1,), doc="Why each item to explain is no candidate; 0: it is one."
        ),
        TensorSpec(
            "explain_place", "int64", (-1,), doc="Its rank among the allowed items, from 1; 0: unknown."
        ),
        TensorSpec("explain_score", "float32", (-1,), doc="Its retrieval score; NaN if no source scores it."),
        TensorSpec("explain_detail", "bytes", (-1,), pad=b"", doc="What the failed rule read, as JSON."),
    )
    queries = []
    for source, model in manifest.queries.items():
        query = TensorSpec(query_stage(source), "float32", (model.dimension,), doc="The user's vector.")
        queries.append(StageSpec(query.name, _named(query.name, tensors.user, model.inputs), (query,)))
    known = (*tensors.user, *(stage.outputs[0] for stage in queries))
    read = dict.fromkeys(name for source in settings.sources for name in source.reads())
    ranking = _ranking(manifest, tensors)
    return (
        StageSpec(
            USER_FEATURES,
            (user_id, *_request(manifest), allow_seen, k, *taken),
            (status, *tensors.user, excluded, *told_to_rules(manifest)),
        ),
        *queries,
        StageSpec(
            RETRIEVAL,
            (
                *_named(RETRIEVAL, known, read),
                *(user_id, status, excluded, allow_seen),
                *_id_lists(manifest, (EXCLUDED, INCLUDED, CANDIDATES, EXPLAINED)),
                *_asked_by_rules(manifest, of_seen),
            ),
            (*retrieved, *explained),
        ),
        StageSpec(FILTERING, retrieved, tensors.kept),
        *ranking,
        _ordering(manifest, tensors, ranking[-1].outputs if ranking else (), (status, k, *of_steps)),
        _describe_items(catalogue),
        *_related(manifest, k),
    )


def _id_lists(manifest: Manifest, names: Iterable[str]) -> Iterator[TensorSpec]:
    """Yield the tensors of lists of raw item ids."""
    dtype = manifest.catalogue.item_id_dtype
    for name in names:
        yield from list_tensors(name, LENGTHS[name], dtype, LISTS[name])
        if dtype == "bytes" and name in PACKED:
            said = f"{name}, each list packed into one element; empty is null. Send only one of these."
            yield TensorSpec(PACKED[name], dtype, (1,), True, b"", said, of=name, says=PACKED_OF)


def _request(manifest: Manifest) -> Iterator[TensorSpec]:
    """Yield the first stage's lists and columns of the request."""
    yield from _id_lists(manifest, (EXCLUDED, HISTORY))
    for column in manifest.request_columns:
        if not column.of_rules or column.part == "user":
            yield from request_tensors(column)


def _of_seen(settings: ServingSettings) -> Iterator[TensorSpec]:
    """Yield the tensors that decide which seen items may be recommended again."""
    days = settings.seen_again_days
    if days is not None:
        yield _clock()
    if isinstance(days, PerRequest):
        yield days.tensor


def _clock() -> TensorSpec:
    return TensorSpec(
        NOW, "float64", (1,), True, nan, "Now, in seconds since 1970-01-01 UTC; NaN: server time."
    )


def _asked_by_rules(manifest: Manifest, of_seen: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    """Yield the request tensors that rules and ``seen_again_days`` read."""
    asks = asked(manifest.settings.rules)
    for column in manifest.request_columns:
        if column.part != "user" and column.name in asks.requests:
            yield from request_tensors(column)
    yield from told_to_rules(manifest)
    yield from of_seen
    if asks.now and NOW not in {tensor.name for tensor in of_seen}:
        yield _clock()


def _ranking(manifest: Manifest, tensors: Tensors) -> list[StageSpec]:
    model, k = manifest.ranking, manifest.settings.kept
    if model is None:
        return []
    rank_score = TensorSpec("rank_score", "float32", (k, model.tasks), doc="One column for each task.")
    inputs = _named(RANKING, tensors.ranker, model.inputs)
    if manifest.settings.kept_buckets:  # the number of real slots decides which engine suffices
        inputs = (*inputs, *_named(RANKING, tensors.kept, ("kept_row",)))
    ranking = StageSpec(RANKING, inputs, (rank_score,))
    if not tensors.item:
        return [ranking]
    kept_row = _named(CANDIDATE_FEATURES, tensors.kept, ("kept_row",))
    return [StageSpec(CANDIDATE_FEATURES, kept_row, tensors.item), ranking]


def _ordering(
    manifest: Manifest,
    tensors: Tensors,
    ranked: tuple[TensorSpec, ...],
    request: tuple[TensorSpec, ...],
) -> StageSpec:
    dtype, steps = manifest.catalogue.item_id_dtype, manifest.settings.reorder
    read = (name for step in steps for name in step.reads())
    names = dict.fromkeys(("kept_row", "kept_score", *(tensor.name for tensor in ranked), *read))
    known = (*tensors.user, *tensors.kept, *ranked)
    outputs = [
        TensorSpec("item_id", dtype, (-1,), pad=empty_of(dtype), doc="Raw ids of the items, best first."),
        TensorSpec("score", "float32", (-1,), doc="Final scores."),
        TensorSpec("count", "int32", (1,), doc="Number of items returned; further slots are padding."),
    ]
    if any(hasattr(step, "seed") for step in steps):
        doc = "Probability that the item was drawn for its position; 1 if nothing was drawn."
        outputs.append(TensorSpec("propensity", "float32", (-1,), doc=doc))
    if reasons_of(steps):
        doc = "Why a reorder step moved or dropped each kept candidate; 0 if none did."
        outputs.append(TensorSpec("reorder_reason", "int32", (manifest.settings.kept,), doc=doc))
    return StageSpec(ORDERING, (*_named(ORDERING, known, names), *request), tuple(outputs))


def _describe_items(catalogue: Catalogue) -> StageSpec:
    dtype, items = catalogue.item_id_dtype, catalogue.items
    inputs = (
        TensorSpec("item_id", dtype, (-1,), True, empty_of(dtype), "Raw ids; send either these or item_row."),
        # -1 can't be sent: it marks the rows of a batch that send ids.
        TensorSpec("item_row", "int64", (-1,), True, -1, "Catalogue rows; send either these or item_id."),
    )
    outputs = (
        TensorSpec("item_id", dtype, (-1,), pad=empty_of(dtype), doc="Raw ids."),
        TensorSpec("item_row", "int64", (-1,), pad=items, doc="Catalogue rows; the pad row if not found."),
        TensorSpec("title", "bytes", (-1,), pad=b"", doc="The title; empty if there is none."),
        TensorSpec("found", "bool", (-1,), pad=False, doc="Whether the catalogue contains the item."),
    )
    return StageSpec(DESCRIBE_ITEMS, inputs, outputs)


def _related(manifest: Manifest, k: TensorSpec) -> Iterator[StageSpec]:
    """Yield the model of similar items, if there is one."""
    if manifest.settings.related:
        dtype = manifest.catalogue.item_id_dtype
        outputs = (
            TensorSpec("item_id", dtype, (-1,), pad=empty_of(dtype), doc="Raw ids, most similar first."),
            TensorSpec("score", "float32", (-1,), doc="Similarity, as the source computes it."),
            TensorSpec("count", "int32", (1,), doc="Number of items returned; further slots are padding."),
        )
        yield StageSpec(RELATED, (*_id_lists(manifest, (RELATED_TO, EXCLUDED)), k), outputs)


def _packed_list(part: str, entry: PackedList, *leading: int) -> TensorSpec:
    doc = f"The list column {entry.name}, padded with 0."
    return TensorSpec(list_tensor(part, entry.name), entry.dtype, (*leading, entry.length), doc=doc)


def _named(stage: str, known: Sequence[TensorSpec], names: Iterable[str]) -> tuple[TensorSpec, ...]:
    """Return the tensors with these names, in that order; raise ManifestInvalid if one is unknown."""
    tensors = {tensor.name: tensor for tensor in known}
    wanted = list(names)
    unknown = [name for name in wanted if name not in tensors]
    if unknown:
        raise ManifestInvalid(
            f"stage {stage}: {', '.join(unknown)} are wanted, but this graph has {', '.join(tensors)}; name "
            "the parameters of forward, and what a source or step reads, after these"
        )
    return tuple(tensors[name] for name in wanted)


def _without_empty(*tensors: TensorSpec) -> tuple[TensorSpec, ...]:
    """Return the tensors without those of width zero."""
    return tuple(tensor for tensor in tensors if 0 not in tensor.dims)
