"""A run: the directory that training writes and an export reads.

::

    run.json                     the record, with the size and SHA-256 of every other file; written last
    workflow/                    the fitted NVTabular workflow, as NVTabular saves it
    retrieval/<name>/            each retrieval model, as its family saves it
    ranking/                     the ranker, if there is one
    users.parquet, items.parquet, train.parquet, valid.parquet, test.parquet
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tiercel_serving.release.manifest import encode
from tiercel_serving.release.opened import check_file
from tiercel_serving.release.writing import list_files

from ..arrays.pairs import IntArray
from ..data import Dataset, Split
from ..data.dataset import ROW
from ..data.parquet import read_table
from ..data.split import TEST, TRAIN, VALID
from ..errors import DataError, TrainingError
from ..families.table import FittedRanking, FittedRetrieval
from .record import RUN_NAME, RunRecord, read_record

_RETRIEVAL, _RANKING = "retrieval", "ranking"


def _table(name: str) -> functools.cached_property[pd.DataFrame]:
    """Return a property that reads a table of a run."""

    def read(run: TrainedRun) -> pd.DataFrame:
        file = run.path / f"{name}.parquet"
        try:
            frame = read_table(file, name)
        except DataError as error:
            raise TrainingError(f"{file}: expected a Parquet table ({error}); train again") from error
        index = frame.pop(ROW).to_numpy()
        return frame.set_index(pd.Index(index))

    return functools.cached_property(read)


@dataclass(frozen=True)
class TrainedRun:
    """An opened run: its directory, and what ``run.json`` says."""

    path: Path
    record: RunRecord

    #: The raw tables; a row's position in ``items`` is the catalogue row. Nothing was trained on ``test``.
    users, items = _table("users"), _table("items")
    train, valid, test = _table("train"), _table("valid"), _table("test")

    @classmethod
    def open(cls, path: str | Path) -> TrainedRun:
        """Open the run in a directory after comparing every file with its checksum.

        Raises
        ------
        TrainingError
            If there is no run, or a Tiercel of another format wrote it.
        ReleaseError
            If a file is missing or changed.
        """
        root = Path(path)
        record = read_record(root / RUN_NAME)
        for name, entry in record.files.items():
            check_file(root / name, entry, RUN_NAME, "train again")
        return cls(root, record)

    @property
    def metrics(self) -> dict[str, Any]:
        """Offline figures: see ``docs/training.md``."""
        return self.record.metrics

    def load_workflow(self) -> Any:
        """Load the fitted NVTabular workflow."""
        import nvtabular

        return nvtabular.Workflow.load(str(self.path / "workflow"))

    def load_retrieval(self) -> dict[str, FittedRetrieval]:
        """Load the retrieval models by name."""
        models = self.record.models.retrieval
        return {
            name: family.load(self.path / _RETRIEVAL / name, self.record.inputs)
            for name, family in models.items()
        }

    def load_ranking(self) -> FittedRanking | None:
        """Load the ranker, if there is one."""
        family = self.record.models.ranking
        return None if family is None else family.load(self.path / _RANKING, self.record.inputs)

    @property
    def interactions(self) -> pd.DataFrame:
        """All interactions that serving may use: training and validation part in their original order."""
        return pd.concat([self.train, self.valid]).sort_index().reset_index(drop=True)


#: Rows of a table that are written at once.
_ROWS = 1 << 18


def _write_table(file: Path, table: pd.DataFrame, rows: IntArray) -> None:
    """Write some rows of a table, each with its position in it, which orders rows of the same time."""
    schema = pa.Schema.from_pandas(table, preserve_index=False).append(pa.field(ROW, pa.int64()))
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            piece = table.iloc[some].assign(**{ROW: table.index[some]})
            writer.write_table(pa.Table.from_pandas(piece, schema, preserve_index=False))


def write_run(
    directory: Path,
    record: RunRecord,
    retrieval: Mapping[str, FittedRetrieval],
    ranking: FittedRanking | None,
    dataset: Dataset,
    split: Split,
) -> None:
    """Fill a directory that already holds ``workflow/``; ``run.json``, which lists all files, comes last."""
    for name, model in retrieval.items():
        folder = directory / _RETRIEVAL / name
        folder.mkdir(parents=True)
        model.save(folder)
    if ranking is not None:
        (directory / _RANKING).mkdir()
        ranking.save(directory / _RANKING)
    for name, table in (("users", dataset.users), ("items", dataset.items)):
        _write_table(directory / f"{name}.parquet", table, np.arange(len(table)))
    for part, name in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test")):
        rows = np.flatnonzero(split.parts == part)
        _write_table(directory / f"{name}.parquet", split.interactions, rows)
    files = list_files(directory, RUN_NAME)
    (directory / RUN_NAME).write_bytes(encode(msgspec.structs.replace(record, files=files)))
