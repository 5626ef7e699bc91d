"""The rows that a workflow is fitted on: interactions with the columns of their user and item.

Few rows are joined to one table in memory. Many rows are joined piece by piece when Dask reads them: joined
rows are several times as wide as the interactions alone, and NVTabular reads them once for each operator. The
workers of a cluster do not have the interactions, so the joined rows are written in pieces to Parquet.
"""

from __future__ import annotations

import tempfile
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tiercel_serving.machine_faults import machine_faults

from ..arrays.pairs import narrow
from ..data import Dataset

with warnings.catch_warnings():
    # Merlin warns on import about TensorFlow and CUDA packages that nothing here uses.
    warnings.simplefilter("ignore")
    from merlin.io import Dataset as MerlinDataset

#: Up to this many rows are one table in memory.
ROWS = 1 << 18

#: Rows that are joined at once if there are more.
PIECE = 1 << 16


@contextmanager
def joined_rows(
    dataset: Dataset,
    interactions: pd.DataFrame,
    columns: Sequence[str],
    place: Path | None = None,
    *,
    in_files: bool = False,
) -> Iterator[Any]:
    """Yield some columns of the joined interactions as a ``merlin.io.Dataset``.

    Parameters
    ----------
    dataset, interactions, columns
        The tables, some of its interactions, and the raw columns of any table.
    place
        Where a folder for files may be made, which is removed when the block ends; None is the temporary
        folder.
    in_files
        Whether to write files, because another process reads the rows.

    Raises
    ------
    MachineFault
        If the disk is full.
    """
    narrowed = _narrowed(dataset, columns)
    if not in_files:
        few = len(interactions) <= ROWS
        joined = (
            narrowed.joined(interactions)[list(columns)] if few else _lazily(narrowed, interactions, columns)
        )
        yield _typed(MerlinDataset(joined, cpu=True), min(len(interactions), ROWS if few else PIECE))
        return
    size = max(1, min(PIECE, -(-len(interactions) // PARTS)))
    with tempfile.TemporaryDirectory(prefix="joined-", dir=place) as scratch:
        files, schema = [], _schema(narrowed, interactions, columns)
        with machine_faults(Path(scratch), "writing the rows that the workflow is fitted on"):
            for start in range(0, len(interactions), size):
                piece = narrowed.joined(interactions.iloc[start : start + size])[list(columns)]
                file = Path(scratch) / f"part-{start // size:05d}.parquet"
                pq.write_table(pa.Table.from_pandas(piece, schema, preserve_index=False), file)
                files.append(str(file))
        rows = MerlinDataset(files, engine="parquet", cpu=True, part_size="64MB")
        yield _typed(rows, min(len(interactions), size))


def _typed(rows: Any, size: int) -> Any:
    """Let Merlin infer the columns' types from ``size`` rows.

    By default it looks at the first row only, whose lists may be empty; then it refuses lists that no
    operator reads.
    """
    rows.infer_schema(size)
    return rows


#: Minimum number of pieces, so that the workers of a cluster have something to do.
PARTS = 8


def _lazily(dataset: Dataset, interactions: pd.DataFrame, columns: Sequence[str]) -> Any:
    """Return a Dask frame whose pieces are joined when they are read."""
    homes = ((dataset.users, dataset.user_id), (dataset.items, dataset.item_id))
    sides = [(table, narrow(pd.Index(table[own]).get_indexer(interactions[own]))) for table, own in homes]

    def piece(start: int) -> pd.DataFrame:
        some = slice(start, start + PIECE)
        found = {}
        for name in columns:
            table, rows = next(((t, r) for t, r in sides if name in t.columns), (interactions, None))
            column = table[name]
            found[name] = column.array[some] if rows is None else column.array.take(rows[some])
        return pd.DataFrame(found)

    # An explicit name, since Dask would compute one from a pickle of all tables.
    name = f"joined-{uuid.uuid4().hex}"
    starts = range(0, len(interactions), PIECE)
    frames: Any = dd  # Dask has no types
    return frames.from_map(piece, starts, meta=piece(0).iloc[:0], token=name, enforce_metadata=False)


def _narrowed(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """Return the data set with only the ids and the wanted columns of users and items."""
    users, items = (
        table[[name for name in table.columns if name in {*columns, own}]]
        for table, own in ((dataset.users, dataset.user_id), (dataset.items, dataset.item_id))
    )
    return Dataset(
        dataset.name,
        users,
        items,
        dataset.interactions.iloc[:0],
        dataset.user_id,
        dataset.item_id,
        dataset.timestamp,
    )


def _schema(dataset: Dataset, interactions: pd.DataFrame, columns: Sequence[str]) -> pa.Schema:
    """Return one schema for all pieces, since a single piece may hold no value of a column."""
    tables = (dataset.users, dataset.items, interactions)
    held = {name: next(table[name] for table in tables if name in table.columns) for name in columns}
    types = {name: pa.array(values, from_pandas=True).type for name, values in held.items()}
    # A column without any value is written as text.
    return pa.schema({name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()})
