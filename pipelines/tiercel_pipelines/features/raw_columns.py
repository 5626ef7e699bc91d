"""Raw columns of a data set's tables, as sources, rules and reorder steps read them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from tiercel_export.workflow.frames import column_from_series
from tiercel_serving.columns import Column
from tiercel_serving.features import InputColumn


def raw_columns(frame: pd.DataFrame, names: Iterable[str], what: str = "items") -> dict[str, Column]:
    """Return some columns of a table with plain dtypes, as a release would store them.

    Raises
    ------
    ExportInputError
        A column holds something else than numbers, booleans, text, or lists of these.
    """
    return {name: column_from_series(frame[name], infer_column(frame[name], name, what)) for name in names}


def infer_column(series, name, what):
    present = series[series.notna()] if series.dtype == object else series
    first = present.iloc[0] if len(present) else None
    is_list = isinstance(first, list)
    sample = pd.Series([v for row in present for v in row], dtype=object) if is_list else present
    if sample.dtype == object:
        kinds = {type(v) for v in sample}
        dtype = (
            "int64" if kinds <= {int} and kinds else "float64" if kinds <= {int, float} and kinds else "bytes"
        )
    else:
        dtype = {"b": "bool", "i": "int64", "f": "float64"}[sample.dtype.kind]
    return InputColumn(name, dtype, is_list, "item")
