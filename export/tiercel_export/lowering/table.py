"""The table of operators: every operator of NVTabular 23.08 and of Merlin's graph, and what becomes of it.

Keys are ``<package>.<class>``; nothing registers itself. ``docs/features.md`` shows this table and a test
holds that it does; another test fails if an entry that is compiled has no parity test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .bucketize import lower_bucketize
from .categorify import lower_categorify
from .expressions import Lowering
from .join_external import columns_joined, columns_of_keys, lower_join_external
from .join_groupby import keys_of_statistics, lower_join_groupby
from .numeric import lower_clip, lower_fill_missing, lower_log, lower_normalize
from .structure import lower_rename, lower_selection, lower_subtraction
from .target_encoding import keys_of_encodings, lower_target_encoding

#: Equal to NVTabular to the last bit.
COMPILED = "compiled"
#: The same, and a documented answer where NVTabular raises on what a live service must expect.
TOTAL = "compiled, total"
#: An error at compile time.
REFUSED = "refused"
#: Refused for now.
NOT_YET = "not yet compiled"


@dataclass(frozen=True)
class Entry:
    """What becomes of one operator.

    Parameters
    ----------
    outcome
        :data:`COMPILED`, :data:`TOTAL`, :data:`REFUSED` or :data:`NOT_YET`.
    lower
        Its lowering, if compiled.
    note
        If compiled: where it is more than NVTabular, or what of it is refused. Else: the reason.
    remedy
        If refused: what to do instead.
    reads
        ``reads(operator, selector)``: the columns that each output is computed from, where the operator's
        own ``column_mapping`` names others.
    asks
        ``asks(operator)``: columns that NVTabular wants for any output, besides those of its mapping.
    """

    outcome: str
    lower: Lowering | None = None
    note: str = ""
    remedy: str = ""
    reads: Callable[[Any, Any], Mapping[str, list[str]]] | None = None
    asks: Callable[[Any], list[str]] | None = None


_LATER = "there is no lowering for it yet"
_APPLY_BEFORE = "Apply it to the data before the workflow"
_DROPS_ROWS = "it drops rows, and a served batch must keep every row"

TABLE: Mapping[str, Entry] = {
    # The graph itself
    "merlin.SelectionOp": Entry(COMPILED, lower_selection),
    "merlin.GroupingOp": Entry(COMPILED, lower_selection),
    "merlin.ConcatColumns": Entry(COMPILED, lower_selection),
    "merlin.SubsetColumns": Entry(COMPILED, lower_selection),
    "merlin.SubtractionOp": Entry(COMPILED, lower_subtraction),
    "merlin.Rename": Entry(COMPILED, lower_rename),
    "merlin.AddMetadata": Entry(COMPILED, lower_selection),
    "merlin.AddTags": Entry(COMPILED, lower_selection),
    "merlin.AddProperties": Entry(COMPILED, lower_selection),
    "merlin.TagAsUserID": Entry(COMPILED, lower_selection),
    "merlin.TagAsItemID": Entry(COMPILED, lower_selection),
    "merlin.TagAsUserFeatures": Entry(COMPILED, lower_selection),
    "merlin.TagAsItemFeatures": Entry(COMPILED, lower_selection),
    "merlin.Subgraph": Entry(NOT_YET, note=_LATER, remedy="Write the subgraph's operators into the workflow"),
    # NVTabular calls this one LambdaOp.
    "merlin.UDF": Entry(
        REFUSED, note="it is arbitrary Python, which can't be compiled exactly", remedy=_APPLY_BEFORE
    ),
    # NVTabular
    "nvtabular.Rename": Entry(COMPILED, lower_rename),
    "nvtabular.AddMetadata": Entry(COMPILED, lower_selection),
    "nvtabular.AddTags": Entry(COMPILED, lower_selection),
    "nvtabular.AddProperties": Entry(COMPILED, lower_selection),
    "nvtabular.TagAsUserID": Entry(COMPILED, lower_selection),
    "nvtabular.TagAsItemID": Entry(COMPILED, lower_selection),
    "nvtabular.TagAsUserFeatures": Entry(COMPILED, lower_selection),
    "nvtabular.TagAsItemFeatures": Entry(COMPILED, lower_selection),
    "nvtabular.Categorify": Entry(
        TOTAL,
        lower_categorify,
        note="NVTabular raises on an all-null column, a null list row, and NaN or ±inf into an integer "
        "vocabulary; here a null is id 1 (in a combination a value like any other, unless all are null), a "
        "null list is empty, ±inf is unseen. num_buckets above 1 is refused where unseen values are hashed",
    ),
    "nvtabular.FillMissing": Entry(
        TOTAL,
        lower_fill_missing,
        note="a null list row stays an empty list; a fill_val that the column's dtype can't hold widens an "
        "integer column always, and is refused on float32",
    ),
    "nvtabular.Clip": Entry(
        COMPILED,
        lower_clip,
        note="refused on lists, text and booleans; bounds that the column's dtype can't hold as FillMissing",
    ),
    "nvtabular.LogOp": Entry(TOTAL, lower_log, note="NVTabular raises on a null list row; here it is empty"),
    "nvtabular.Normalize": Entry(
        TOTAL, lower_normalize, note="NVTabular raises on a null list row; here it is empty"
    ),
    "nvtabular.Bucketize": Entry(COMPILED, lower_bucketize, note="refused on lists and text"),
    "nvtabular.FillMedian": Entry(NOT_YET, note=_LATER, remedy="Use FillMissing with the median"),
    "nvtabular.NormalizeMinMax": Entry(NOT_YET, note=_LATER, remedy="Use Normalize"),
    "nvtabular.HashBucket": Entry(
        REFUSED, note="on CPU its hash includes the row's position in the batch", remedy="Use Categorify"
    ),
    "nvtabular.HashedCross": Entry(
        REFUSED,
        note="on CPU its hash includes the row's position in the batch",
        remedy="Join the columns into one text column before the workflow and Categorify it",
    ),
    "nvtabular.TargetEncoding": Entry(
        TOTAL,
        lower_target_encoding,
        note="with kfold=1, or without folds if compiled with target_encoding='no_fold': as it stands, any "
        "other kfold is refused, since NVTabular applies its folds at transform too, by the row's position. "
        "The target is not needed at serving time",
        reads=keys_of_encodings,
    ),
    "nvtabular.JoinGroupby": Entry(
        TOTAL,
        lower_join_groupby,
        note="NVTabular raises on an unseen key if it counts; here its count is 0. An unseen key's other "
        "statistics are null; sum, min and max of integers and booleans keep their dtype then, which pandas "
        "changes as soon as a key of the batch is unseen",
        reads=keys_of_statistics,
    ),
    "nvtabular.JoinExternal": Entry(
        TOTAL,
        lower_join_external,
        note="the table is read when the workflow is compiled. An unseen key's columns are null; integers, "
        "booleans and lists keep their dtype then, which pandas changes as soon as a key of the batch is "
        "unseen. how='inner', keys that occur twice, and numeric keys of a table of several partitions are "
        "refused",
        reads=columns_joined,
        asks=columns_of_keys,
    ),
    "nvtabular.ListSlice": Entry(NOT_YET, note=_LATER, remedy=_APPLY_BEFORE),
    "nvtabular.ColumnSimilarity": Entry(NOT_YET, note=_LATER, remedy=_APPLY_BEFORE),
    "nvtabular.ReduceDtypeSize": Entry(NOT_YET, note=_LATER, remedy="Leave it out: features are packed"),
    "nvtabular.DropLowCardinality": Entry(NOT_YET, note=_LATER, remedy="Leave the columns out by name"),
    "nvtabular.ValueCount": Entry(NOT_YET, note=_LATER, remedy="Leave it out of the served workflow"),
    "nvtabular.DataStats": Entry(NOT_YET, note=_LATER, remedy="Leave it out of the served workflow"),
    "nvtabular.Groupby": Entry(REFUSED, note="it computes across the rows of a batch", remedy=_APPLY_BEFORE),
    "nvtabular.DifferenceLag": Entry(
        REFUSED, note="it computes across the rows of a batch", remedy=_APPLY_BEFORE
    ),
    "nvtabular.Dropna": Entry(REFUSED, note=_DROPS_ROWS, remedy="Filter the data before the fit"),
    "nvtabular.Filter": Entry(REFUSED, note=_DROPS_ROWS, remedy="Filter the data before the fit"),
}


def key_of(operator: object) -> str:
    """Return the table's key of an operator, or of an operator's class."""
    kind = operator if isinstance(operator, type) else type(operator)
    return f"{kind.__module__.split('.')[0]}.{kind.__name__}"


def markdown() -> str:
    """Return the table as ``docs/features.md`` shows it."""
    lines = ["| operator | outcome | note |", "|---|---|---|"]
    for key, entry in TABLE.items():
        note = entry.note if entry.lower or not entry.note else f"{entry.note}. {entry.remedy}"
        lines.append(f"| `{key}` | {entry.outcome} | {note} |")
    return "\n".join(lines) + "\n"
