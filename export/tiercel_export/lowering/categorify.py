"""Categorify: from the fitted vocabulary files to lookup tables.

The ids are read from the files, never counted again: which of two equally frequent values comes first
depends on a sort at fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WorkflowError
from .expressions import Columns, Expression, Where, apply

NULL, FIRST_OOV = 1, 2


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A fitted vocabulary.

    Parameters
    ----------
    source
        Its file.
    kind
        ``text``, ``bool``, or the NumPy name of its integer or float dtype: what inputs are cast to.
    values
        ``[V]`` distinct values: objects that are ``bytes``, or numbers of that dtype.
    ids
        ``[V]`` int64.
    first
        The id of the file's first row (also if that row is null).
    null_element
        The id that a null inside a list gets: that of a null row of the file, else None (unseen).
    """

    source: str
    kind: str
    values: Any
    ids: Any
    first: int
    null_element: int | None


def read_vocabulary(path: str, column: str, *, shift_small_ids: bool) -> Vocabulary:
    """Read one ``unique.<name>.parquet`` (or the folder of parts that ``split_out`` makes).

    Parameters
    ----------
    path
        The file or folder.
    column
        The column of values.
    shift_small_ids
        Whether NVTabular moves ids that start below 3 (a file without a stored index) up by 3.
    """
    import pandas as pd

    place = Path(path)
    if not place.exists():
        raise WorkflowError(
            f"{path}: expected the vocabulary of {column!r}, but there is no such file; "
            "save the workflow again, or fit it again"
        )
    try:
        files = sorted(place.glob("part.*.parquet"), key=_part_number) if place.is_dir() else [place]
        frame = pd.concat([pd.read_parquet(file, columns=[column]) for file in files])
    except Exception as error:
        raise WorkflowError(
            f"{path}: not a readable vocabulary of {column!r} ({type(error).__name__}: {error}); "
            "save the workflow again, or fit it again"
        ) from error
    ids = np.asarray(frame.index, np.int64)
    if shift_small_ids and len(ids) and ids[0] < FIRST_OOV + 1:
        ids = ids + FIRST_OOV + 1
    series = frame[column]
    null = series.isna().to_numpy()
    kind, values = _values(series[~null], path)
    if len(set(values.tolist())) != len(values):
        raise WorkflowError(f"{path}: a value occurs twice in the vocabulary of {column!r}; fit it again")
    null_element = int(ids[null][0]) if null.any() else None
    return Vocabulary(path, kind, values, ids[~null], int(ids[0]) if len(ids) else 0, null_element)


def vocabulary_of(op: Any, name: str) -> Vocabulary:
    """Read the vocabulary that a fitted Categorify has for a column."""
    storage = _storage(op, name)
    parts = op.split_out.get(storage, 1) if isinstance(op.split_out, dict) else op.split_out
    shift = op.cat_cache is not None and parts == 1
    return read_vocabulary(op.categories[storage], storage, shift_small_ids=shift)


def _storage(op: Any, name: str) -> str:
    """Return the name under which a column's vocabulary is kept: that of its group if encoded jointly."""
    return str(op.storage_name.get(name, name) if op.encode_type == "joint" else name)


def _part_number(file: Path) -> int:
    return int(re.sub(r"\D", "", file.name))


def _values(series: Any, path: str) -> tuple[str, Any]:
    dtype = getattr(series.dtype, "numpy_dtype", series.dtype)  # Int64 and its like are as int64
    if dtype.kind in "iufb" and dtype.name not in ("uint64", "float16"):
        return dtype.name, series.to_numpy(dtype)
    if dtype.kind == "O":
        values = np.empty(len(series), np.object_)
        values[:] = [_utf8(value, path) for value in series.tolist()]
        return "text", values
    raise WorkflowError(
        f"{path}: a vocabulary of {series.dtype} is not supported; cast the column to an integer, a float "
        "or text before the workflow"
    )


def _utf8(value: Any, path: str) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    raise WorkflowError(f"{path}: expected text, found {value!r}; cast the column before the workflow")


def lower_categorify(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """Vocabulary id; 1 for null, 2 for a value not in the vocabulary (and for a null inside a list)."""
    if op.encode_type != "joint" and any(len(group.names) > 1 for group in where.selector.subgroups):
        first = next(group.names for group in where.selector.subgroups if len(group.names) > 1)
        raise where.refuse(
            op.name_sep.join(first),
            "encode_type='combo' over several columns is not compiled yet",
            "Join the columns into one text column before the workflow",
        )
    out = dict(columns)
    for name in names:
        out[name] = _categorify(op, columns[name], name, where)
    return out


def _categorify(op: Any, source: Expression, name: str, where: Where) -> Expression:
    storage = _storage(op, name)
    buckets = op.num_buckets.get(storage) if isinstance(op.num_buckets, dict) else op.num_buckets
    if buckets and buckets > 1:
        raise where.refuse(
            name,
            f"num_buckets={buckets} spreads unseen values by a hash that, on CPU, includes the row's "
            "position in the batch",
            "Use num_buckets=None: all unseen values share id 2",
        )
    if storage not in op.categories:
        raise where.refuse(name, "it has no fitted vocabulary", "Fit the workflow before it is compiled")
    vocabulary = vocabulary_of(op, name)
    dtype = np.dtype(op.output_dtype)
    if dtype.kind not in "iu":
        raise where.refuse(name, f"dtype {dtype.name} is not an integer", "Use int32 or int64")
    _check_types(source, vocabulary, name, where)
    null = vocabulary.first if op.single_table else NULL
    unseen = null + 1
    if source.is_list:
        null = unseen if vocabulary.null_element is None else vocabulary.null_element
    return _encode(source, vocabulary, null, unseen, dtype.name)


def _check_types(source: Expression, vocabulary: Vocabulary, name: str, where: Where) -> None:
    if source.is_text != (vocabulary.kind == "text"):
        raise where.refuse(
            name,
            f"the column holds {source.dtype}, but its fitted vocabulary {vocabulary.kind}",
            "Give the column the type that it had at fit",
        )


def _encode(source: Expression, vocabulary: Vocabulary, null: int, unseen: int, dtype: str) -> Expression:
    if source.is_text:
        own = {"vocabulary": TextTable(vocabulary), "null": null, "unseen": unseen}
        return apply("encode_text", source, own=own, physical="int64", dtype=dtype)
    keys, kind = _keys(vocabulary, source)
    table = IntTable(vocabulary, keys)
    return apply(
        "encode_direct" if table.is_direct else "encode_hash",
        source,
        shared={"keys": kind},
        own={"vocabulary": table, "null": null, "unseen": unseen},
        physical="int64",
        dtype=dtype,
    )


def _keys(vocabulary: Vocabulary, source: Expression) -> tuple[Any, str]:
    """Return the vocabulary as int64 keys, and the runtime's name for how inputs become such keys."""
    values = vocabulary.values
    if values.dtype.kind in "iub":
        as_is = values.dtype == np.int64 and not source.is_float
        return values.astype(np.int64), "int64" if as_is else f"cast:{values.dtype.name}"
    if np.all(np.abs(values) < 2.0**53) and np.all(values == np.floor(values)):
        return values.astype(np.int64), "whole"
    # Adding 0.0 makes -0.0 the same key as 0.0, which it equals.
    bits = (values + values.dtype.type(0)).view(f"i{values.dtype.itemsize}")
    return bits.astype(np.int64), f"bits:{values.dtype.name}"


class TextTable:
    """The table of a vocabulary of strings. Equal if it comes from the same file."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextTable) and other.vocabulary.source == self.vocabulary.source

    def __hash__(self) -> int:
        return hash(self.vocabulary.source)


class IntTable(TextTable):
    """The table of a vocabulary of int64 keys."""

    def __init__(self, vocabulary: Vocabulary, keys: Any) -> None:
        super().__init__(vocabulary)
        self.keys = keys

    @property
    def is_direct(self) -> bool:
        """Whether the keys lie close enough for a table indexed by the key."""
        from tiercel_serving.lookup import is_dense

        return is_dense(self.keys)
