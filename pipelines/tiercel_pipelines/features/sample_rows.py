"""Rows to time a feature program on: the best that its source has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tiercel_export.workflow.frames import columns_from_frame
from tiercel_serving.columns import Column, take_rows
from tiercel_serving.features import InputColumn
from tiercel_serving.release.opened import open_release
from tiercel_serving.spec import DTYPES
from tiercel_serving.verify.golden import StoredGolden

from .arrow_columns import check_schema, columns_from_batch
from .parquet_files import read_head

#: How many elements each made-up list has.
_LIST = 3


@dataclass(frozen=True)
class SampleRows:
    """Some rows, repeated as often as needed.

    Parameters
    ----------
    columns
        At least one row.
    what
        Where they come from, in words.
    """

    columns: Mapping[str, Column]
    what: str

    def take(self, n: int) -> dict[str, Column]:
        """Return ``n`` rows: the first, the second, …, and again from the first."""
        some = next(iter(self.columns.values()))
        rows = np.arange(n, dtype=np.int64) % len(some)
        return {name: take_rows(column, rows) for name, column in self.columns.items()}


def rows_of_file(path: Path, inputs: Sequence[InputColumn], n: int) -> SampleRows:
    """Return the first rows of a Parquet file.

    Raises
    ------
    DataError
        It can't be read, does not fit, or is empty.
    """
    batch = read_head(path, n)
    check_schema(batch.schema, inputs, str(path))
    columns = columns_from_batch(batch, inputs, str(path))
    return SampleRows({name: _as_sent(column) for name, column in columns.items()}, f"rows of {path}")


def _as_sent(column: Column) -> Column:
    """Return a column with text as requests have it: objects."""
    if column.text_offsets is None:
        return column
    return Column(column.strings().objects(), column.valid, column.offsets, column.row_valid)


def rows_of_run(path: Path, inputs: Sequence[InputColumn], n: int) -> SampleRows:
    """Return training interactions of a run, joined with their users and items."""
    from ..training.record import RUN_NAME, read_record

    data = read_record(path / RUN_NAME).data
    joined = pd.read_parquet(path / "train.parquet").head(n)
    for table, key in (("users", data.user_id), ("items", data.item_id)):
        own = pd.read_parquet(path / f"{table}.parquet").drop(columns="__row__")
        joined = joined.merge(own, on=key)
    return rows_of_frame(joined, inputs, "training interactions of the run")


def rows_of_frame(frame: pd.DataFrame, inputs: Sequence[InputColumn], what: str) -> SampleRows:
    """Return the rows of a frame that holds every input."""
    return SampleRows(columns_from_frame(frame, inputs), what)


def rows_of_release(path: Path, part: str, inputs: Sequence[InputColumn]) -> SampleRows:
    """Return the golden rows of a release."""
    columns, _ = StoredGolden(open_release(path)).columns(f"{part}_features")
    return SampleRows({column.name: columns[column.name] for column in inputs}, "golden rows of the release")


def made_up_rows(inputs: Sequence[InputColumn], n: int) -> SampleRows:
    """Return rows of consecutive numbers and of text that no vocabulary has."""
    made: dict[str, Column] = {}
    for column in inputs:
        size = n * _LIST if column.is_list else n
        if column.dtype == "bytes":
            values = np.array([f"text {i}".encode() for i in range(size)], np.object_)
        else:
            values = np.arange(size).astype(DTYPES[column.dtype])
        offsets = np.arange(n + 1, dtype=np.int64) * _LIST if column.is_list else None
        made[column.name] = Column(values, None, offsets)
    return SampleRows(made, "made-up rows: consecutive numbers, unseen text")
