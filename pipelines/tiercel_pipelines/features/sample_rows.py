"""Rows to time a feature program on: the most realistic that its source has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiercel_export.workflow.frames import columns_from_frame
from tiercel_serving.columns import Column, take_rows
from tiercel_serving.features import InputColumn
from tiercel_serving.release.opened import open_release
from tiercel_serving.spec import DTYPES
from tiercel_serving.verify.golden import StoredGolden

from .arrow_columns import check_schema, columns_from_batch
from .origin import FeatureOrigin
from .parquet_files import read_head

#: How many elements each made-up list has.
_LIST = 3


@dataclass(frozen=True)
class SampleRows:
    """Some rows, at least one, repeated as often as needed; ``what`` says where they come from."""

    columns: Mapping[str, Column]
    what: str

    def take(self, n: int) -> dict[str, Column]:
        """Return ``n`` rows: the first, the second, …, and again from the first."""
        some = next(iter(self.columns.values()))
        rows = np.arange(n, dtype=np.int64) % len(some)
        return {name: take_rows(column, rows) for name, column in self.columns.items()}


def rows_of_file(path: Path, inputs: Sequence[InputColumn], n: int) -> SampleRows:
    """Return the first rows of a Parquet file, which must fit the inputs."""
    batch = read_head(path, n)
    check_schema(batch.schema, inputs, str(path))
    columns = columns_from_batch(batch, inputs, str(path))
    return SampleRows({name: _as_sent(column) for name, column in columns.items()}, f"rows of {path}")


def _as_sent(column: Column) -> Column:
    """Return a column whose text is objects, as in requests."""
    if column.text_offsets is None:
        return column
    return Column(column.strings().objects(), column.valid, column.offsets, column.row_valid)


def rows_of_origin(origin: FeatureOrigin, part: str, inputs: Sequence[InputColumn], n: int) -> SampleRows:
    """Return a run's training interactions, joined; a release's golden rows; or made-up ones."""
    if origin.kind == "run":
        from ..training.record import RUN_NAME, read_record
        from ..training.run import TrainedRun

        run = TrainedRun(origin.path, read_record(origin.path / RUN_NAME))
        data, joined = run.record.data, run.train.head(n)
        joined = joined.merge(run.users, on=data.user_id).merge(run.items, on=data.item_id)
        return SampleRows(columns_from_frame(joined, inputs), "training interactions of the run")
    if origin.kind == "release":
        golden, _ = StoredGolden(open_release(origin.path)).columns(f"{part}_features")
        return SampleRows(
            {column.name: golden[column.name] for column in inputs}, "golden rows of the release"
        )
    return made_up_rows(inputs, n)


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
