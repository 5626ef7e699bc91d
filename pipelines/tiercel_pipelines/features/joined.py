"""The rows that a workflow is fitted on: interactions with the columns of their user and item.

Few rows are one table in memory. Of many, Dask joins piece by piece as it reads: joined they are several
times as wide as the interactions alone, and NVTabular reads them once for each operator. The workers of a
cluster have no interactions: theirs are written in pieces to Parquet.
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
    # As in workflow.py.
    warnings.simplefilter("ignore")
    from merlin.io import Dataset as MerlinDataset

#: Up to so many rows are one table in memory.
ROWS = 1 << 18

#: Rows that are joined at once, of more.
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
    """Give some columns of interactions, joined, as a ``merlin.io.Dataset``.

    Parameters
    ----------
    dataset, interactions, columns
        The tables, some of its interactions, and the raw columns of any table.
    place
        Where files may be written, in a folder that goes when the block ends; None is the temporary folder.
    in_files
        Whether to write files, for who reads them is another process.

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
    """Let Merlin find the columns' types in so many rows.

    By itself it looks at the first, whose lists may be empty: then lists that no operator reads are refused.
    """
    rows.infer_schema(size)
    return rows


#: At least so many pieces, so that the workers of a cluster have something to do.
PARTS = 8


def _lazily(dataset: Dataset, interactions: pd.DataFrame, columns: Sequence[str]) -> Any:
    """Return a Dask frame, each piece of which is joined when it is read."""
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

    # A name of its own: Dask would else make one of a pickle of all tables.
    name = f"joined-{uuid.uuid4().hex}"
    starts = range(0, len(interactions), PIECE)
    frames: Any = dd  # Dask has no types
    return frames.from_map(piece, starts, meta=piece(0).iloc[:0], token=name, enforce_metadata=False)


def _narrowed(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """Return the data set with users and items that have their ids and the wanted columns alone."""
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
    """Return one schema for all pieces, of which one alone may hold no value of a column."""
    tables = (dataset.users, dataset.items, interactions)
    held = {name: next(table[name] for table in tables if name in table.columns) for name in columns}
    types = {name: pa.array(values, from_pandas=True).type for name, values in held.items()}
    # A column without any value is one of text.
    return pa.schema({name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()})
