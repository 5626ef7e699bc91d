"""Categorify: from the fitted vocabulary files to lookup tables.

The ids are read from the files, never recomputed: the order of equally frequent values depends on a sort
during the fit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import WorkflowError
from .expressions import Columns, Expression, Where, cast, refused_column, with_elements
from .keys import find_row
from .vocabulary import Vocabulary, check_type, encode, plain_values

NULL, FIRST_OOV = 1, 2


def read_categories(path: str, columns: Sequence[str], *, below: int | None) -> Any:
    """Read one ``unique.<name>.parquet`` (or the folder of parts that ``split_out`` makes).

    Parameters
    ----------
    path
        The file or folder.
    columns
        The columns of values: one, or those of a combination.
    below
        NVTabular shifts all ids up by this much if the first id is below it (a file without a stored index).
        None never shifts.

    Returns
    -------
    Data frame of these columns, the ids as its index.

    Raises
    ------
    WorkflowError
        The file is missing or unreadable, lacks a column, or contains a value or an id twice.
    """
    import pandas as pd

    place, name = Path(path), ", ".join(columns)
    if not place.exists():
        raise WorkflowError(
            f"{path}: expected the vocabulary of {name!r}, but there is no such file; "
            "save the workflow again, or fit it again"
        )
    try:
        files = sorted(place.glob("part.*.parquet"), key=_part_number) if place.is_dir() else [place]
        frame = pd.concat([pd.read_parquet(file, columns=list(columns)) for file in files])
    except Exception as error:
        raise WorkflowError(
            f"{path}: not a readable vocabulary of {name!r} ({type(error).__name__}: {error}); "
            "save the workflow again, or fit it again"
        ) from error
    ids = np.asarray(frame.index, np.int64)
    if below is not None and len(ids) and ids[0] < below:
        frame.index = ids + below
    if frame.duplicated().any():
        raise WorkflowError(f"{path}: a value occurs twice in the vocabulary of {name!r}; fit it again")
    if not frame.index.is_unique:
        raise WorkflowError(f"{path}: an id occurs twice in the vocabulary of {name!r}; fit it again")
    return frame


def vocabulary_of(op: Any, name: str) -> Vocabulary:
    """Read the vocabulary of a column from a fitted Categorify."""
    storage = _storage(op, name)
    return _vocabulary(_categories(op, storage, [storage], 1), op.categories[storage])


def _vocabulary(frame: Any, path: str) -> Vocabulary:
    ids, series = np.asarray(frame.index, np.int64), frame.iloc[:, 0]
    null = series.isna().to_numpy()
    kind, values = plain_values(series[~null], path)
    # NVTabular casts the elements of a list to the vocabulary's dtype; to bool, a null becomes False.
    as_null = ids[~values if series.dtype == np.bool_ else null]
    null_element = int(as_null[0]) if len(as_null) else None
    return Vocabulary(path, kind, values, ids[~null], int(ids[0]) if len(ids) else 0, null_element)


def _categories(op: Any, storage: str, columns: Sequence[str], oov: int) -> Any:
    parts = op.split_out.get(storage, 1) if isinstance(op.split_out, dict) else op.split_out
    below = FIRST_OOV + oov if op.cat_cache is not None and parts == 1 else None
    return read_categories(op.categories[storage], columns, below=below)


def _storage(op: Any, name: str) -> str:
    """Return the name under which a column's vocabulary is stored; its group's if encoded jointly."""
    return str(op.storage_name.get(name, name) if op.encode_type == "joint" else name)


def _part_number(file: Path) -> int:
    return int(re.sub(r"\D", "", file.name))


def lower_categorify(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """Encode as vocabulary id; 1 for null, 2 for an unseen value (and for a null inside a list).

    A combination of columns (``encode_type="combo"``) is null if all of its columns are null. If only some
    are null, it is a value like any other.
    """
    groups = _groups(op, names, where)
    made = {
        name: _or_refused(op, name, group, [columns[column] for column in group], where)
        for name, group in groups.items()
    }
    return dict(columns) | made


def _or_refused(op: Any, name: str, group: list[str], sources: list[Expression], where: Where) -> Expression:
    try:
        return _categorify(op, name, group, sources, where)
    except WorkflowError as error:
        return refused_column(sources[0], error)


def files_of_vocabularies(op: Any, selector: Any) -> list[tuple[str, str]]:
    """Return each column or group of a node with the file that its fit wrote, except files given by users."""
    own = os.path.join(op.out_path, "categories")
    given = [path for path in op.vocabs.values() if not path.startswith(own)]
    names = [g if isinstance(g, str) else op.name_sep.join(g) for g in selector.grouped_names]
    files = [(name, op.categories[name]) for name in names if name in op.categories]
    return [(name, path) for name, path in files if path not in given]


def _groups(op: Any, names: Sequence[str], where: Where) -> dict[str, list[str]]:
    """Return the columns that each output encodes: its own, or those of a combination."""
    if op.encode_type == "joint":
        return {name: [name] for name in names}
    groups = [[group] if isinstance(group, str) else [*group] for group in where.selector.grouped_names]
    return {op.name_sep.join(group): group for group in groups if set(group) <= set(names)}


def _categorify(op: Any, name: str, group: list[str], sources: list[Expression], where: Where) -> Expression:
    if "order" in group:
        raise where.refuse(
            "order",
            "NVTabular keeps the rows' order in a column of that name, and so sorts the batch by its values",
            "Rename the column before the workflow",
        )
    storage = _storage(op, name) if len(group) == 1 else str(op.storage_name.get(name, name))
    oov = _oov_ids(op, name, storage, group, where)
    if storage not in op.categories:
        raise where.refuse(name, "it has no fitted vocabulary", "Fit the workflow before it is compiled")
    dtype = np.dtype(op.output_dtype)
    if dtype.kind not in "iu" and dtype.name not in ("float32", "float64"):
        raise where.refuse(name, f"dtype {dtype.name} is not a number's", "Use int32 or int64")
    path = where.own_file(name, op.categories[storage])
    frame = _categories(op, storage, group if len(group) > 1 else [storage], oov)
    _check_size(op, name, storage, path, frame, where)
    if len(group) == 1:
        encoded = _one(op, sources[0], _vocabulary(frame, path), name, dtype, where)
    else:
        encoded = _combination(op, sources, frame, path, dtype, where)
    return cast(encoded, dtype.name) if dtype.kind == "f" else encoded


def _one(
    op: Any, source: Expression, vocabulary: Vocabulary, name: str, dtype: np.dtype[Any], where: Where
) -> Expression:
    check_type(with_elements(source, name, where), vocabulary.kind, name, where)
    null = vocabulary.first if op.single_table else NULL
    unseen = null + 1
    if source.is_list:
        null = unseen if vocabulary.null_element is None else vocabulary.null_element
    held = replace(
        vocabulary, source=f"{vocabulary.source} as {dtype.name}", ids=_held(vocabulary.ids, dtype)
    )
    null, unseen = (int(_held(np.int64(value), dtype)) for value in (null, unseen))
    return encode(source, held, null, unseen, _encoded(dtype), cast=True)


def _combination(
    op: Any, sources: list[Expression], frame: Any, path: str, dtype: np.dtype[Any], where: Where
) -> Expression:
    ids = np.asarray(frame.index, np.int64)
    null = int(ids[0]) if op.single_table and len(ids) else NULL
    index = find_row(
        sources,
        frame,
        _held(ids, dtype),
        missing=int(_held(np.int64(null + 1), dtype)),
        all_null=int(_held(np.int64(null), dtype)),
        source=f"{path} as {dtype.name}",
        cast=True,
        where=where,
    )
    return replace(index, dtype=_encoded(dtype))


def _held(ids: npt.NDArray[np.int64] | np.int64, dtype: np.dtype[Any]) -> npt.NDArray[np.int64]:
    """Return ids with the output dtype's overflow: int8 turns 128 into -128."""
    return np.asarray(ids.astype(dtype).astype(np.int64) if dtype.kind in "iu" else ids)


def _encoded(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.kind in "iu" else "int64"


def _oov_ids(op: Any, name: str, storage: str, group: list[str], where: Where) -> int:
    """Return how many ids are reserved for unseen values; refuse if a hash spreads values over them.

    NVTabular looks this number up by the vocabulary's name, but hashes by the name of the first column or of
    the combination. If ``num_buckets`` is an integer, neither lookup finds a joint vocabulary, and all unseen
    values share id 2.
    """
    buckets = op.num_buckets
    if isinstance(buckets, int):
        buckets = dict.fromkeys(op.column_mapping(where.whole), buckets)
    if not buckets or storage not in buckets:
        return 1
    by = group[0] if op.encode_type == "joint" or len(group) == 1 else "_".join(group)
    if buckets.get(by) != 1:
        raise where.refuse(
            name,
            f"num_buckets={buckets.get(by)} spreads unseen values by a hash that, on CPU, includes the "
            "row's position in the batch",
            "Use num_buckets=None: all unseen values share id 2",
        )
    return int(buckets[storage])


def _check_size(op: Any, name: str, storage: str, path: str, frame: Any, where: Where) -> None:
    """Check a vocabulary against the cardinality that the fit stored in the schema."""
    schema = where.schema[name] if where.schema is not None and name in where.schema.column_names else None
    properties = schema.properties if schema is not None else {}
    size = properties.get("embedding_sizes", {}).get("cardinality")
    if size is None or properties.get("domain", {}).get("name") != storage:
        return
    buckets = op.num_buckets
    oov = buckets.get(storage, 0) if isinstance(buckets, dict) else buckets or 1
    if len(frame) != size - oov - FIRST_OOV:
        raise WorkflowError(
            f"{path}: the workflow was fitted with {size - oov - FIRST_OOV} categories of {storage!r}, the "
            f"file has {len(frame)}; save the workflow again, or fit it again"
        )
