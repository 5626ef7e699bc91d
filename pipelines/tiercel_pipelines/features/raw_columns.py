"""Raw columns of a data set's tables, as sources, rules and reorder steps read them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from tiercel_export.release.given import infer_column
from tiercel_export.workflow.frames import column_from_series
from tiercel_serving.columns import Column


def raw_columns(frame: pd.DataFrame, names: Iterable[str], what: str = "items") -> dict[str, Column]:
    """Return some columns of a table with plain dtypes, as a release would store them.

    Raises
    ------
    ExportInputError
        A column holds something other than numbers, booleans, text, or lists of these.
    """
    return {name: column_from_series(frame[name], infer_column(frame[name], name, what)) for name in names}
