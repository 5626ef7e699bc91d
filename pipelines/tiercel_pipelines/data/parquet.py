"""Your own three tables, as Parquet files with a schema."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from tiercel_serving.errors import TiercelError
from tiercel_serving.kinds import Settings
from tiercel_serving.machine_faults import fault_of

from ..errors import DataCorrupt, DataError, DataMissing
from .arrow import canonical, joined, kind_of, of_kind, plain_values
from .dataset import Dataset, Progress, dates_as_ids
from .places import STARTS, find_data
from .plain import check_names

_T = TypeVar("_T")
Columns = tuple[tuple[str, str], ...]

#: Column types that a schema may name, which are kinds of :func:`kind_of`.
COLUMN_TYPES = ("int", "float", "bool", "string", "time", "list[int]", "list[float]", "list[string]")

#: Maximum number of files and folders below the folder of a table.
MOST_ENTRIES = 100_000

#: Kinds of columns without any value, which do not determine the table's type.
_NO_VALUES = ("null", "list[null]")


class Parquet(Settings, frozen=True, tag="Parquet"):
    """Your own three tables.

    Parameters
    ----------
    users, items, interactions
        Paths of Parquet files (or folders of them). A relative path starts at ``data_dir``; without one,
        at the first of ``$TIERCEL_DATA_DIR``, ``./data`` and the current directory that has it.
    user_id, item_id
        The id columns: 64-bit integers or strings, the same type in both tables that have them.
    timestamp
        The column of ``interactions`` with the time, as dates or as seconds; None if there is none.
    user_columns, item_columns, context_columns
        The columns to read from ``users``, ``items`` and ``interactions`` besides ids and time, each
        with its type (``int``, ``float``, ``bool``, ``string``, ``time``, ``list[int]``,
        ``list[float]`` or ``list[string]``); None reads all as they are.
    name
        Name of the data set.
    """

    users: str
    items: str
    interactions: str
    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = "timestamp"
    user_columns: tuple[tuple[str, str], ...] | None = None
    item_columns: tuple[tuple[str, str], ...] | None = None
    context_columns: tuple[tuple[str, str], ...] | None = None
    name: str = "parquet"

    def load(self, data_dir: str | Path | None, progress: Progress | None) -> Dataset:
        """Read the three tables and check them against their schema."""
        paths = [find_data(path, data_dir) for path in (self.users, self.items, self.interactions)]
        ids = [self.user_id, self.item_id]
        time = [self.timestamp] if self.timestamp is not None else []
        users = _read(paths[0], "users", [self.user_id], [], self.user_columns, progress)
        items = _read(paths[1], "items", [self.item_id], [], self.item_columns, progress)
        interactions = _read(paths[2], "interactions", ids, time, self.context_columns, progress)
        source = ", ".join(map(str, paths))
        dataset = Dataset(
            self.name, users, items, interactions, self.user_id, self.item_id, self.timestamp, source
        )
        return dataset.check()


def read_table(
    path: Path, table: str, *, keep: Callable[[str], bool] = lambda name: True, ids: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a Parquet file that exists, or a folder of them, with plain dtypes; messages call it ``table``.

    The files of a folder are one table: each has the same columns, of one kind each. Integers may have
    several widths, floats several precisions, times several units, and a column without any value matches
    every kind.

    Parameters
    ----------
    path, table
        The file or folder, and what it holds.
    keep
        Which columns to read, by name.
    ids
        Which of them are ids, which must not be dates.

    Raises
    ------
    DataMissing
        If there is no file in the folder, or one lacks a column.
    DataCorrupt
        If a file is not a Parquet file or differs from the others, an id is a date, or a value has no plain
        dtype.
    """
    parts = _parts(path, table)
    _check_ids(parts, table, ids)
    return _plain(parts, str(path), table, [name for name in _names(parts) if keep(name)], {})


def _read(
    path: Path,
    table: str,
    ids: list[str],
    time: list[str],
    columns: Columns | None,
    progress: Progress | None,
) -> pd.DataFrame:
    roles = ids + time
    if not path.exists():
        raise DataMissing(
            f"parquet: {table}: {path.absolute()} does not exist; correct `{table}` in the recipe's data set "
            f"({STARTS})"
        )
    parts = _parts(path, table)
    wanted = [*roles, *(name for name, _ in columns)] if columns is not None else _names(parts)
    for part in parts:
        _check_columns(part, table, [*roles, *wanted], columns or ())
    _check_ids(parts, table, ids)
    names = list(dict.fromkeys(wanted))
    return _plain(parts, str(path), table, names, dict(columns or ()), progress)


def _names(parts: Sequence[_Part]) -> list[str]:
    """Return the columns of all parts, each once."""
    return list(dict.fromkeys(name for part in parts for name in part.names))


# ---------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class _Part:
    """One file; ``folders`` are its partition columns, from folder names such as ``country=NL``."""

    path: str
    fragment: pads.ParquetFileFragment
    schema: pa.Schema
    folders: dict[str, object]
    rows: int

    @property
    def names(self) -> list[str]:
        return [*self.schema.names, *(name for name in self.folders if name not in self.schema.names)]

    def kind(self, name: str) -> str:
        if not self.rows:
            return _NO_VALUES[0]
        return kind_of(self._folder(name, 0).type if self._in_folders(name) else self.type_of(name))

    def type_of(self, name: str) -> pa.DataType:
        return self._folder(name, 0).type if self._in_folders(name) else self.schema.field(name).type

    def read(self, names: Sequence[str], table: str) -> pa.Table:
        own = [name for name in names if not self._in_folders(name)]
        try:
            # Arrow's own allocator would keep this memory for the rest of the process.
            pool = pa.system_memory_pool()
            read = self.fragment.to_table(schema=self.schema, columns=own, memory_pool=pool)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.path, table, error) from error
        if not self.rows:
            return pa.table({name: pa.nulls(0) for name in names})
        for name in names:
            if self._in_folders(name):
                read = read.append_column(name, self._folder(name, read.num_rows))
        return read

    def _in_folders(self, name: str) -> bool:
        return name not in self.schema.names

    def _folder(self, name: str, rows: int) -> pa.Array:
        return pa.repeat(pa.scalar(self.folders[name]), rows)


def check_folder(path: Path, table: str) -> None:
    """Refuse a folder that cannot be one table's, such as the whole disk, without walking through it."""
    entries = 0
    for _, folders, files in os.walk(path):
        entries += len(folders) + len(files)
        if entries > MOST_ENTRIES:
            raise DataError(
                f"{path}: {table}: expected a folder of Parquet files, found more than {MOST_ENTRIES:,} "
                "files and folders below it; name the table's own folder, or write it in fewer parts"
            )


def _parts(path: Path, table: str) -> list[_Part]:
    check_folder(path, table)
    try:
        fragments = pq.ParquetDataset(path).fragments
    except (pa.ArrowException, OSError) as error:
        _check_names(path, table)
        raise _unreadable(path, table, error) from error
    if not fragments:
        raise DataMissing(
            f"{path}: {table}: there is no Parquet file in this folder; name another, or write one"
        )
    parts = []
    for fragment in fragments:
        try:
            schema, rows = fragment.physical_schema, fragment.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(fragment.path, table, error) from error
        check_names(schema.names, f"{fragment.path}: {table}")
        folders = pads.get_partition_keys(fragment.partition_expression)
        parts.append(_Part(fragment.path, fragment, schema, folders, rows))
    return parts


def _check_names(path: Path, table: str) -> None:
    """Refuse a duplicate column, for which Arrow only reports that the file is unreadable."""
    with contextlib.suppress(pa.ArrowException, OSError):
        check_names(pq.read_schema(path).names, f"{path}: {table}")


def _plain(
    parts: Sequence[_Part],
    where: str,
    table: str,
    names: list[str],
    kinds: Mapping[str, str],
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Read columns of all parts, after comparing their kinds; ``kinds`` is for columns without values."""
    rows = sum(part.rows for part in parts)
    reading, making = _Half(progress, table, rows, 0), _Half(progress, table, rows, 1)
    for name in names:
        _check_alike(parts, table, name)
    read = [part.read(names, table) for part in reading.through(parts, [part.rows for part in parts])]
    unmade = {name: [piece.column(name) for piece in read] for name in names}
    del read
    columns = {}
    for name in making.through(names, [rows / len(names)] * len(names)):
        # Each converted column replaces the one that was read, to save memory.
        pieces = [
            canonical(piece, f"{part.path}: {table}, column {name!r}")
            for part, piece in zip(parts, unmade.pop(name), strict=True)
        ]
        whole = of_kind(joined(pieces), kinds.get(name))
        columns[name] = plain_values(whole, f"{where}: {table}, column {name!r}")
        del pieces, whole
    pa.default_memory_pool().release_unused()  # Arrow would keep the memory
    return pd.DataFrame(columns, index=pd.RangeIndex(rows), columns=names)


@dataclass(frozen=True)
class _Half:
    """Progress of half of a table's loading, in rows: reading files, then converting columns."""

    progress: Progress | None
    table: str
    rows: int
    number: int

    def through(self, pieces: Sequence[_T], sizes: Sequence[float]) -> Iterator[_T]:
        """Yield each piece, and report it when it is done."""
        done = 0.0
        for piece, size in zip(pieces, sizes, strict=True):
            yield piece
            done += size
            if self.progress is not None:
                self.progress(f"loading {self.table}", round(self.number * self.rows + done) // 2, self.rows)


def _check_alike(parts: Sequence[_Part], table: str, name: str) -> None:
    """Refuse a column that some part lacks, or that differs in kind between parts."""
    first = None
    for part in parts:
        if name not in part.names:
            having = next(other for other in parts if name in other.names)
            raise DataMissing(
                f"{part.path}: {table} has no column {name!r}, which {having.path} has; write the parts of "
                "one folder with the same columns"
            )
        kind = part.kind(name)
        if kind in _NO_VALUES:
            continue
        if first is None:
            first = part
        elif kind != first.kind(name):
            raise DataCorrupt(
                f"{part.path}: {table}.{name}: the file holds {part.type_of(name)}, but {first.path} holds "
                f"{first.type_of(name)}; write the parts of one folder with the same types"
            )


def _check_ids(parts: Sequence[_Part], table: str, ids: Sequence[str]) -> None:
    """Refuse ids that are dates, before reading turns them into seconds."""
    for name in ids:
        if any(name in part.names and part.kind(name) == "time" for part in parts):
            raise dates_as_ids(f"parquet: {table}.{name}")


def _unreadable(path: Path | str, table: str, error: Exception) -> TiercelError:
    if _begins_as_parquet(Path(path)):
        remedy = "write it again"
    else:
        remedy = "write it as Parquet, such as a CSV file by pandas.read_csv(…).to_parquet(…)"
    corrupt = DataCorrupt(f"{path}: {table} is not a readable Parquet file ({error}); {remedy}")
    return fault_of(error, Path(path), f"reading {table}") or corrupt


def _begins_as_parquet(path: Path) -> bool:
    """Whether a path is a file that begins as Parquet does, or cannot be read, such as a folder."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return True


def _check_columns(part: _Part, table: str, wanted: list[str], columns: Columns) -> None:
    missing = [name for name in dict.fromkeys(wanted) if name not in part.names]
    if missing:
        raise DataMissing(
            f"{part.path}: {table} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(part.names)}; correct the recipe's data set or the file"
        )
    for name, expected in columns:
        if expected not in COLUMN_TYPES:
            raise DataError(
                f"parquet: {table}.{name}: {expected!r} is not a column type; use one of "
                f"{', '.join(COLUMN_TYPES)}"
            )
        if part.kind(name) != expected and part.kind(name) not in _NO_VALUES:
            raise DataCorrupt(
                f"{part.path}: {table}.{name}: the recipe says {expected}, the file holds "
                f"{part.type_of(name)}; correct the recipe's data set or write the file again"
            )
