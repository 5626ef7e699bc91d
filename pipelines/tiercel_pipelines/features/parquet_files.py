"""Parquet files that are read in pieces, and an output file that appears whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tiercel_serving.errors import TiercelError
from tiercel_serving.machine_faults import fault_of

from ..data.parquet import check_folder
from ..errors import DataCorrupt, DataError, DataMissing

#: Bytes of each column that are read ahead; without it a whole row group would be.
_READ_AHEAD = 1 << 18
#: Suffixes of a folder's Parquet files.
_SUFFIXES = (".parquet", ".parq", ".pq")


def read_footer(path: Path) -> tuple[pa.Schema, int]:
    """Read only a file's footer: its schema, and its number of rows."""
    with open_parquet(path) as file:
        return file.schema_arrow, file.metadata.num_rows


def read_head(path: Path, rows: int) -> pa.RecordBatch:
    """Read the first rows of a file, which must have some."""
    with open_parquet(path) as file:
        try:
            batch = next(file.iter_batches(rows), None)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(path, error) from error
    if batch is None:
        raise DataCorrupt(f"{path}: it has no rows; name a file with some")
    return batch


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a file to read batches of it; raise DataCorrupt if it is no Parquet file."""
    try:
        return pq.ParquetFile(path, buffer_size=_READ_AHEAD, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> TiercelError:
    """Return the error of a file that can't be read: DataCorrupt, unless the machine is at fault."""
    corrupt = DataCorrupt(f"{path}: not a readable Parquet file ({error}); write it again")
    return fault_of(error, path) or corrupt


def parquet_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that ``paths`` name: a file itself, and for a folder all Parquet files below it.

    Files of a folder are sorted by name, with numbers by value; hidden files and those that begin with
    an underscore are left out. Raises DataMissing if a path does not exist or a folder has no such file.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataMissing(
                f"{path}: there is no such file or folder; name a Parquet file or a folder of them"
            )
        if not path.is_dir():
            found.append(path)
            continue
        check_folder(path, "data")
        inside = [
            file
            for file in path.rglob("*")
            if file.suffix in _SUFFIXES
            and file.is_file()
            and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        ]
        if not inside:
            raise DataMissing(f"{path}: there is no Parquet file below this folder; name another")
        found += sorted(inside, key=_natural)
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", str(path))]


def check_output(output: Path, files: Sequence[Path], overwrite: bool) -> None:
    """Raise DataError if the output may not be written: early, before anything is computed."""
    if output.is_dir():
        raise DataError(f"{output}: is a folder; name the file to write")
    if not output.parent.is_dir():
        raise DataMissing(f"{output}: there is no folder {output.parent}; make it, or name another")
    if any(output.exists() and path.samefile(output) for path in files):
        raise DataError(f"{output}: is one of the files to read; name another output")
    if output.exists() and not overwrite:
        raise DataError(f"{output}: is there already; --overwrite replaces it")


@contextmanager
def whole_file(output: Path) -> Iterator[Path]:
    """Yield a hidden path beside ``output`` to write to, which becomes ``output`` only if the block succeeds.

    Otherwise the hidden file is removed, also after Ctrl-C. Raises MachineFault if the disk is full or the
    folder is not ours, and DataError if the file can't be written for another reason.
    """
    partial = output.with_name(f".{output.name}.partial-{secrets.token_hex(6)}")
    try:
        yield partial
        os.replace(partial, output)
    except OSError as error:
        raise fault_of(error, output.parent, f"writing {output.name}", partial) or DataError(
            f"{output}: can't be written ({error}); name another place"
        ) from error
    finally:
        with suppress(OSError):  # such as on a read-only file system
            partial.unlink(missing_ok=True)
