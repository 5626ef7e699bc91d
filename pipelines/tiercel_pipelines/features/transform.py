"""Features of Parquet files, computed in bounded memory by the program that serves them.

Reads top to bottom: find the files → check their schemas → batch by batch: Arrow → columns → program →
Arrow → the file beside the output's name → rename.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiercel_serving.features import FeatureProgram, InputColumn
from tiercel_serving.spec import list_tensor

from ..errors import DataCorrupt, DataError, DataMissing
from .arrow_columns import array_from_column, array_from_tensor, arrow_type, check_schema, columns_from_batch
from .parquet_files import check_output, open_parquet, read_footer, unreadable, whole_file

#: Rows that go through the programs at once, and rows of the output's row groups.
BATCH_ROWS = 65_536
#: Key of a packed tensor's columns in the metadata of its field.
COLUMNS_KEY = b"columns"

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Transformed:
    """What a transform wrote; ``seconds`` include reading, and nothing read the ``ignored`` columns."""

    output: Path
    files: tuple[Path, ...]
    rows: int
    row_groups: int
    columns: tuple[str, ...]
    ignored: tuple[str, ...]
    seconds: float

    @property
    def rows_per_s(self) -> float:
        """Rows per second, reading and writing included."""
        return self.rows / self.seconds


@dataclass(frozen=True)
class Transform:
    """Feature programs, and which of their outputs to write.

    Parameters
    ----------
    programs
        One for each part; their features are written in this order.
    packed
        Whether to write the models' tensors instead of named features.
    keep
        Columns of the files that are written as they are: name there → name in the output.
    batch_rows
        Rows that go through the programs at once, and rows of the output's row groups.
    metadata
        Written into the output's schema.
    """

    programs: Sequence[FeatureProgram]
    packed: bool = False
    keep: Mapping[str, str] = field(default_factory=dict)
    batch_rows: int = BATCH_ROWS
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[InputColumn, ...]:
        """The raw columns that the programs read, each once."""
        return tuple({column.name: column for program in self.programs for column in program.inputs}.values())

    def features(self) -> list[pa.Field]:
        """Return the fields of the features; a packed list must have a fixed length."""
        if not self.packed:
            return [
                pa.field(output.name, arrow_type(output))
                for program in self.programs
                for output in program.outputs
            ]
        return [made for program in self.programs for made in _packed_fields(program)]

    def schema(self, given: pa.Schema) -> pa.Schema:
        """Return the output's schema: the kept columns of a file with schema ``given``, then the features.

        Raises
        ------
        DataMissing
            A column to keep is missing.
        DataError
            Two columns would have the same name.
        """
        kept = []
        for old, new in self.keep.items():
            if old not in given.names:
                raise DataMissing(
                    f"--keep {old}: there is no such column; there are {', '.join(given.names)}"
                )
            kept.append(given.field(old).with_name(new))
        fields = [*kept, *self.features()]
        names = [made.name for made in fields]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise DataError(
                f"the output would have two columns {twice[0]!r}; keep the raw one under another name: "
                f"--keep {twice[0]}=raw_{twice[0]}"
            )
        return pa.schema(fields, metadata=dict(self.metadata) or None)

    def batch(self, batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
        """Return the output's rows for a batch of the files' rows; ``where`` names it in messages."""
        columns = columns_from_batch(batch, self.inputs, where)
        arrays = [batch.column(old) for old in self.keep]
        for program in self.programs:
            if self.packed:
                with np.errstate(over="ignore"):  # values beyond float32 become infinite, as they do online
                    tensors = program.packed(columns, batch.num_rows)
                arrays += [array_from_tensor(tensors[made.name]) for made in _packed_fields(program)]
            else:
                features = program.run(columns, batch.num_rows)
                arrays += [array_from_column(features[output.name], output) for output in program.outputs]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _packed_fields(program: FeatureProgram) -> list[pa.Field]:
    """Return the fields of the packed tensors; ``columns`` in their metadata lists the columns in order."""
    made = []
    for kind, dtype in (("cat", pa.int64()), ("num", pa.float32())):
        names = [output.name for output in program.outputs if output.kind == kind and not output.is_list]
        if names:
            metadata = {COLUMNS_KEY: json.dumps(names, ensure_ascii=False).encode()}
            made.append(pa.field(f"{program.part}_{kind}", pa.list_(dtype, len(names)), metadata=metadata))
    for output in program.outputs:
        if output.is_list and output.kind != "raw":
            if output.length is None:
                raise DataError(
                    f"feature {output.name!r} is a list without a fixed length, which a packed tensor needs; "
                    f"give one: --list-length {output.name}=N"
                )
            dtype = pa.int64() if output.kind == "cat" else pa.float32()
            made.append(pa.field(list_tensor(program.part, output.name), pa.list_(dtype, output.length)))
    return made


def transform_files(
    transform: Transform,
    files: Sequence[Path],
    output: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Transformed:
    """Write the features of Parquet files, row for row in their order, to one Parquet file.

    Memory is bounded by the batch: neither a file nor a row group is ever held whole. The output appears
    under its name only when it is whole.

    Parameters
    ----------
    transform
        The programs, and what to write.
    files
        Parquet files, as :func:`parquet_files` finds them.
    output
        The file to write.
    overwrite
        Whether a file that is there may be replaced.
    progress
        Called as ``progress(what, done, total)`` with rows.

    Raises
    ------
    DataError
        A file is missing, unreadable or does not fit the programs, or the output is there already.
    """
    begun = time.perf_counter()
    check_output(output, files, overwrite)
    schemas, rows = zip(*(read_footer(path) for path in files), strict=True)
    schema = transform.schema(schemas[0])
    for path, came in zip(files, schemas, strict=True):
        check_schema(came, transform.inputs, str(path))
        _check_kept(path, came, schemas[0], transform.keep)
    total, done, row_groups = sum(rows), 0, 0
    with whole_file(output) as partial, _writer(partial, schema) as writer:
        if progress is not None:
            progress("rows", 0, total)
        for where, batch in _batches(transform, files):
            writer.write_batch(transform.batch(batch, schema, where))
            done, row_groups = done + batch.num_rows, row_groups + 1
            if progress is not None:
                progress("rows", done, total)
        if done != total:
            raise DataCorrupt(
                f"read {done:,} rows, the files' footers promise {total:,}; they changed meanwhile: run again"
            )
    used = {column.name for column in transform.inputs} | set(transform.keep)
    ignored = dict.fromkeys(name for came in schemas for name in came.names if name not in used)
    took, columns = time.perf_counter() - begun, tuple(schema.names)
    return Transformed(output, tuple(files), done, row_groups, columns, tuple(ignored), took)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open the output, without dictionaries for floats: nearly all differ, so one costs time and space."""
    worth = []
    for made in schema:
        is_list = pa.types.is_list(made.type) or pa.types.is_fixed_size_list(made.type)
        if not pa.types.is_floating(made.type.value_type if is_list else made.type):
            worth.append(f"{made.name}.list.element" if is_list else made.name)
    return pq.ParquetWriter(path, schema, use_dictionary=worth or False)


def _batches(transform: Transform, files: Sequence[Path]) -> Iterator[tuple[str, pa.RecordBatch]]:
    names = list(dict.fromkeys([*(column.name for column in transform.inputs), *transform.keep]))
    for path in files:
        first = 0
        with open_parquet(path) as file:
            try:
                for batch in file.iter_batches(transform.batch_rows, columns=names, use_threads=False):
                    last = first + batch.num_rows
                    yield f"{path}: rows {first:,} to {last - 1:,}", batch
                    first = last
            except (pa.ArrowException, OSError) as error:
                raise unreadable(path, error) from error


def _check_kept(path: Path, came: pa.Schema, first: pa.Schema, keep: Mapping[str, str]) -> None:
    for name in keep:
        if name not in came.names:
            raise DataMissing(
                f"{path}: column {name!r}, which is to be kept, is missing; the first file has it"
            )
        if came.field(name).type != first.field(name).type:
            raise DataCorrupt(
                f"{path}: column {name!r} is to be kept, and is {came.field(name).type}, in the first file "
                f"it is {first.field(name).type}; write all files alike"
            )
