"""The table of operators: how each operator of NVTabular 23.08, Merlin's graph and Tiercel is compiled.

Keys are ``<package>.<class>``; nothing registers itself. A test checks that ``docs/features.md`` shows this
table; another fails if a compiled entry has no parity test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .bucketize import lower_bucketize
from .categorify import files_of_vocabularies, lower_categorify
from .expressions import Lowering
from .filters import columns_of_dropna, columns_of_filter, lower_dropna, lower_filter
from .groupby import columns_of_groupby, keys_of_groupby, lower_groupby
from .join_external import columns_joined, columns_of_keys, lower_join_external
from .join_groupby import files_of_statistics, keys_of_statistics, lower_join_groupby
from .lists import lower_list_slice
from .numeric import lower_clip, lower_fill_median, lower_fill_missing, lower_log
from .own_numbers import (
    lower_arithmetic,
    lower_cast,
    lower_compare,
    lower_cyclical,
    lower_function,
    lower_is_in,
    lower_is_null,
    lower_logic,
    lower_not,
)
from .own_texts import (
    lower_text_case,
    lower_text_length,
    lower_text_slice,
    lower_text_split_count,
    lower_text_strip,
)
from .own_times import lower_date_part, lower_time_difference
from .refused import (
    Frame,
    advice_for_lambda,
    any_columns,
    fewer_rows,
    hashed_frame,
    named_columns,
    own_columns,
)
from .scaling import lower_min_max, lower_normalize, lower_reduce_dtype
from .similarity import lower_column_similarity
from .structure import lower_frame, lower_rename, lower_selection, lower_subgraph
from .target_encoding import files_of_encodings, keys_of_encodings, lower_target_encoding

#: Bit-identical to NVTabular.
COMPILED = "compiled"
#: Bit-identical, with a documented answer where NVTabular raises on input that a live service must expect.
TOTAL = "compiled, total"
#: An error at compile time.
REFUSED = "refused"


@dataclass(frozen=True)
class Entry:
    """How one operator is compiled, or why it is refused.

    Parameters
    ----------
    outcome
        :data:`COMPILED`, :data:`TOTAL` or :data:`REFUSED`.
    lower
        Its lowering, if compiled.
    note
        If compiled: where it goes beyond NVTabular, or which uses are refused. If refused: the reason.
    remedy
        If refused: what to do instead.
    reads
        ``reads(operator, selector)``: output column → the columns that it is computed from, for operators
        whose own ``column_mapping`` is wrong about this.
    asks
        ``asks(operator)``: columns that NVTabular needs for every output, beyond those in its mapping.
    files
        ``files(operator, selector)``: pairs of a column (or group of columns) and the file with its fitted
        state.
    frame
        If refused: the columns of its output frame other than its own outputs.
    advise
        If refused: ``advise(operator, remedy)``, a longer remedy that depends on the operator.
    times
        Whether it accepts columns of dates and times.
    keys
        ``keys(operator)``: the columns by which it groups events into rows.
    drops_rows
        Whether it drops rows. It is compiled if the rows are events that a later operator groups, or if the
        caller chose to keep rows; otherwise it is refused, as ``note`` and ``remedy`` say.
    """

    outcome: str
    lower: Lowering | None = None
    note: str = ""
    remedy: str = ""
    reads: Callable[[Any, Any], Mapping[str, list[str]]] | None = None
    asks: Callable[[Any], list[str]] | None = None
    files: Callable[[Any, Any], list[tuple[str, str]]] | None = None
    frame: Frame = any_columns
    advise: Callable[[Any, str], str] | None = None
    times: bool = False
    keys: Callable[[Any], list[str]] | None = None
    drops_rows: bool = False


#: Why an operator that drops rows is refused.
DROPS_ROWS = "it drops rows, and a served batch must keep every row"

TABLE: Mapping[str, Entry] = {
    # The graph itself
    "merlin.SelectionOp": Entry(COMPILED, lower_selection, times=True),
    "merlin.GroupingOp": Entry(COMPILED, lower_selection, times=True),
    "merlin.ConcatColumns": Entry(COMPILED, lower_selection, times=True),
    "merlin.SubsetColumns": Entry(COMPILED, lower_selection, times=True),
    "merlin.SubtractionOp": Entry(COMPILED, lower_selection, times=True),
    "merlin.Rename": Entry(COMPILED, lower_rename, times=True),
    "merlin.AddMetadata": Entry(COMPILED, lower_frame, times=True),
    "merlin.AddTags": Entry(COMPILED, lower_frame, times=True),
    "merlin.AddProperties": Entry(COMPILED, lower_frame, times=True),
    "merlin.TagAsUserID": Entry(COMPILED, lower_frame, times=True),
    "merlin.TagAsItemID": Entry(COMPILED, lower_frame, times=True),
    "merlin.TagAsUserFeatures": Entry(COMPILED, lower_frame, times=True),
    "merlin.TagAsItemFeatures": Entry(COMPILED, lower_frame, times=True),
    "merlin.Subgraph": Entry(COMPILED, lower_subgraph, note="loop_until is refused", times=True),
    "merlin.UDF": Entry(
        REFUSED,
        note="it is a LambdaOp: arbitrary Python, which can't be compiled exactly",
        remedy="Or apply it to the data before the workflow, or tag what it makes as TARGET if it is a label",
        frame=named_columns,
        advise=advice_for_lambda,
    ),
    # NVTabular
    "nvtabular.Rename": Entry(COMPILED, lower_rename, times=True),
    "nvtabular.AddMetadata": Entry(COMPILED, lower_frame, times=True),
    "nvtabular.AddTags": Entry(COMPILED, lower_frame, times=True),
    "nvtabular.AddProperties": Entry(COMPILED, lower_frame, times=True),
    "nvtabular.TagAsUserID": Entry(COMPILED, lower_frame, times=True),
    "nvtabular.TagAsItemID": Entry(COMPILED, lower_frame, times=True),
    "nvtabular.TagAsUserFeatures": Entry(COMPILED, lower_frame, times=True),
    "nvtabular.TagAsItemFeatures": Entry(COMPILED, lower_frame, times=True),
    "nvtabular.Categorify": Entry(
        TOTAL,
        lower_categorify,
        note="NVTabular raises on an all-null column, a null list row, and NaN or ±inf into an integer "
        "vocabulary. Here a null is id 1, a null list is empty, and ±inf is unseen. In a combination a null "
        "is a value like any other, unless all are null, and a null boolean is True, as in NVTabular. "
        "num_buckets above 1 is refused, because unseen values are then hashed. So is a column called "
        "'order', because NVTabular sorts the batch by it",
        files=files_of_vocabularies,
    ),
    "nvtabular.FillMissing": Entry(
        TOTAL,
        lower_fill_missing,
        note="a null list row becomes an empty list; if it was filled with text, operators that read "
        "elements are refused, because NVTabular gives them its letters. NVTabular widens a column for a "
        "fill_val that its dtype can't hold only if a row of the batch is null. Here an integer or float32 "
        "column is then always wider, and refused if Normalize or NormalizeMinMax of a float32 column "
        "follows",
    ),
    "nvtabular.Clip": Entry(
        COMPILED,
        lower_clip,
        note="refused on lists and text, on booleans with bounds that exclude 0 or 1, and on float32 with a "
        "bound that float32 can't hold. A bound that an integer column can't hold always makes it wider; in "
        "NVTabular only if a row needs it",
    ),
    "nvtabular.LogOp": Entry(TOTAL, lower_log, note="NVTabular raises on a null list row; here it is empty"),
    "nvtabular.Normalize": Entry(
        TOTAL, lower_normalize, note="NVTabular raises on a null list row; here it is empty"
    ),
    "nvtabular.Bucketize": Entry(COMPILED, lower_bucketize, note="refused on lists and text"),
    "nvtabular.FillMedian": Entry(
        COMPILED,
        lower_fill_median,
        note="the median of an even number of rows may be a number that the column's dtype can't hold; then "
        "as FillMissing. NVTabular can't fit it on text and lists",
    ),
    "nvtabular.NormalizeMinMax": Entry(
        COMPILED,
        lower_min_max,
        note="nothing is clipped; a column that was constant at fit gives x / (2 * x), which is 0.5 or NaN. "
        "Refused on lists, text and booleans. If no column of the operator is a float, integers are "
        "subtracted as integers: int32 and int64 wrap around on overflow, as in NVTabular if no row of the "
        "batch is null. Narrower and unsigned ones are refused, unless their minimum is 0, and also beside "
        "float32 columns",
    ),
    "nvtabular.HashBucket": Entry(
        REFUSED,
        note="on CPU its hash includes the row's position in the batch",
        remedy="Use Categorify, with max_size or freq_threshold for a bounded number of ids",
        frame=hashed_frame,
    ),
    "nvtabular.HashedCross": Entry(
        REFUSED,
        note="on CPU its hash includes the row's position in the batch",
        remedy="Use Categorify with encode_type='combo' on the group of columns",
        frame=own_columns,
    ),
    "nvtabular.TargetEncoding": Entry(
        TOTAL,
        lower_target_encoding,
        note="with kfold=1, or without folds if compiled with target_encoding='no_fold'. Otherwise it is "
        "refused, because NVTabular applies its folds at transform too, by the position of the row. The "
        "target is not needed at serving time",
        reads=keys_of_encodings,
        files=files_of_encodings,
    ),
    "nvtabular.JoinGroupby": Entry(
        TOTAL,
        lower_join_groupby,
        note="NVTabular raises on an unseen key if it counts; here its count is 0. NVTabular can't fit "
        "minima and maxima without another statistic. An unseen key's other statistics are null. Sum, min "
        "and max of integers and booleans then keep their dtype, which pandas changes as soon as a key of "
        "the batch is unseen",
        reads=keys_of_statistics,
        files=files_of_statistics,
    ),
    "nvtabular.JoinExternal": Entry(
        TOTAL,
        lower_join_external,
        note="the table is read when the workflow is compiled. An unseen key's columns are null. Integers, "
        "booleans and lists then keep their dtype, which pandas changes as soon as a key of the batch is "
        "unseen. how='inner', keys that occur twice, and numeric keys of a table of several partitions are "
        "refused",
        reads=columns_joined,
        asks=columns_of_keys,
    ),
    "nvtabular.ListSlice": Entry(
        TOTAL,
        lower_list_slice,
        note="NVTabular raises on a null list row; here it stays null, and with pad it is all padding. pad "
        "lengthens the lists of a request. Lists that an operator computed, and lists of float32, are arrays "
        "in NVTabular, which it silently leaves unpadded, and so does the program. A pad_value of another "
        "type than the elements is refused, except that a number that integers can't hold makes them float64",
    ),
    "nvtabular.ColumnSimilarity": Entry(
        TOTAL,
        lower_column_similarity,
        note="a null gives NaN, where NVTabular raises; a row that the feature matrix does not have gives 0, "
        "where NVTabular reads beyond the matrix. Refused for integer matrices that metric='inner' keeps as "
        "integers, and on columns that are not integers",
    ),
    "nvtabular.ReduceDtypeSize": Entry(
        TOTAL,
        lower_reduce_dtype,
        note="the dtype is that of the fit: a value beyond it wraps around, as in NVTabular if no row of the "
        "batch is null. A null stays null where NVTabular raises, and becomes True among booleans. Refused "
        "on lists, for float16, and on integers that an earlier operator may have widened",
    ),
    "nvtabular.DropLowCardinality": Entry(
        COMPILED,
        lower_selection,
        note="which columns it drops is decided at fit; NVTabular itself fails on columns that are not "
        "categories, so put Categorify or Bucketize before it",
    ),
    "nvtabular.ValueCount": Entry(
        COMPILED, lower_frame, note="its statistics are only in the schema", times=True
    ),
    "nvtabular.DataStats": Entry(
        COMPILED, lower_frame, note="its statistics are only of the fit", times=True
    ),
    "nvtabular.Groupby": Entry(
        TOTAL,
        lower_groupby,
        note="by one key, with list, count, first, last, min, max, mean and sum: a served row is one "
        "session, whose events come as lists (see Sessions). A session without events, which NVTabular "
        "leaves out, has an empty list, count and sum 0, and null for everything else. Ties of one sort "
        "column, which pandas leaves in any order, keep their order. Refused: several keys, dates as keys, "
        "Groupby of sessions, other aggregations, lists, sums and means of dates, and names that NVTabular "
        "casts by",
        reads=columns_of_groupby,
        asks=keys_of_groupby,
        keys=keys_of_groupby,
        times=True,
    ),
    "nvtabular.DifferenceLag": Entry(
        REFUSED,
        note="it subtracts another row of the batch from each row",
        remedy="Compute the difference before the workflow and send it as a column",
        frame=own_columns,
    ),
    "nvtabular.Dropna": Entry(
        TOTAL,
        lower_dropna,
        note="before Groupby it drops events of a session. Elsewhere it is refused, because a served batch "
        "keeps every row, unless compiled with rows='keep': then it does nothing, and nulls pass unchanged",
        remedy="Drop the rows of the data before the fit, use FillMissing, or choose rows='keep', with which "
        "the served row passes unchanged",
        reads=columns_of_dropna,
        frame=fewer_rows,
        drops_rows=True,
    ),
    "nvtabular.Filter": Entry(
        TOTAL,
        lower_filter,
        note="before Groupby it drops events of a session, if its function compares columns with values or "
        "with each other (==, <, isin, between, isna, &, |, ~ and similar), which is found by calling it "
        "with a stand-in for the frame. Elsewhere it is refused, because a served batch keeps every row, "
        "unless compiled with rows='keep': then it does nothing",
        remedy="Filter the data before the fit, or choose rows='keep', with which the served row passes "
        "unchanged",
        reads=columns_of_filter,
        drops_rows=True,
    ),
    # Ours, for NVTabular's graphs
    "tiercel_export.Arithmetic": Entry(COMPILED, lower_arithmetic),
    "tiercel_export.Cast": Entry(COMPILED, lower_cast, times=True),
    "tiercel_export.Compare": Entry(COMPILED, lower_compare),
    "tiercel_export.Cyclical": Entry(COMPILED, lower_cyclical),
    "tiercel_export.DatePart": Entry(COMPILED, lower_date_part, times=True),
    "tiercel_export.Function": Entry(COMPILED, lower_function),
    "tiercel_export.IsIn": Entry(COMPILED, lower_is_in),
    "tiercel_export.IsNull": Entry(COMPILED, lower_is_null, times=True),
    "tiercel_export.Logic": Entry(COMPILED, lower_logic),
    "tiercel_export.Not": Entry(COMPILED, lower_not),
    "tiercel_export.TextCase": Entry(COMPILED, lower_text_case),
    "tiercel_export.TextLength": Entry(COMPILED, lower_text_length),
    "tiercel_export.TextSlice": Entry(COMPILED, lower_text_slice),
    "tiercel_export.TextSplitCount": Entry(COMPILED, lower_text_split_count),
    "tiercel_export.TextStrip": Entry(COMPILED, lower_text_strip),
    "tiercel_export.TimeDifference": Entry(COMPILED, lower_time_difference, times=True),
}


def key_of(operator: object) -> str:
    """Return the key in :data:`TABLE` of an operator or operator class."""
    kind = operator if isinstance(operator, type) else type(operator)
    return f"{kind.__module__.split('.')[0]}.{kind.__name__}"


def markdown() -> str:
    """Return the table as ``docs/features.md`` shows it."""
    lines = ["| operator | outcome | note |", "|---|---|---|"]
    for key, entry in TABLE.items():
        ours = "" if entry.advise is None else "Write it with [operators of ours](operators.md). "
        note = entry.note if entry.lower or not entry.note else f"{entry.note}. {ours}{entry.remedy}"
        lines.append(f"| `{key}` | {entry.outcome} | {note} |")
    return "\n".join(lines) + "\n"
