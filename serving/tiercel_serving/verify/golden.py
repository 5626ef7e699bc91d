"""Golden vectors: a few inputs of every artefact with what its oracle makes of them.

The oracles are NVTabular for the feature programs, torch for the models, exact search for the index, and
:mod:`tiercel_export.release.reference` for the whole pipeline. They are asked once, at export; afterwards a
release can be verified on a machine that has neither NVTabular nor torch, and so this module needs
neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..columns import Column
from ..spec import Array
from ..tables.column_store import open_column, store_column
from ..verify.recall import exact_search

#: Rows of each feature program, users of the tower and the ranker, and of the whole pipeline.
FEATURE_ROWS, MODEL_ROWS, PIPELINE_USERS = 48, 8, 16


def put_arrays(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Lay out named tensors for an artefact; ``bytes`` become a stored column and a shape."""
    stored: dict[str, Array] = {}
    for name, array in arrays.items():
        key = f"{prefix}.{name}"
        if array.dtype == np.object_:
            stored.update(store_column(Column(array.reshape(-1)), key))
            stored[f"{key}.shape"] = np.array(array.shape, np.int64)
        else:
            stored[key] = array
    return stored


def get_arrays(arrays: Mapping[str, Array], prefix: str, names: Sequence[str]) -> dict[str, Array]:
    """Read what :func:`put_arrays` laid out."""
    found: dict[str, Array] = {}
    for name in names:
        key = f"{prefix}.{name}"
        if f"{key}.shape" in arrays:
            column = open_column(arrays, key)
            shape = tuple(int(size) for size in arrays[f"{key}.shape"])
            found[name] = column.take(np.arange(len(column))).values.reshape(shape)
        else:
            found[name] = np.asarray(arrays[key])
    return found


def put_columns(prefix: str, columns: Mapping[str, Column]) -> dict[str, Array]:
    """Lay out columns for an artefact."""
    stored: dict[str, Array] = {}
    for name, column in columns.items():
        stored.update(store_column(column, f"{prefix}.{name}"))
    return stored


def get_columns(arrays: Mapping[str, Array], prefix: str, names: Sequence[str]) -> dict[str, Column]:
    """Read what :func:`put_columns` laid out."""
    columns = {}
    for name in names:
        stored = open_column(arrays, f"{prefix}.{name}")
        columns[name] = stored.take(np.arange(len(stored)))
    return columns


def index_golden(vectors: Array, queries: Array, n: int) -> dict[str, Array]:
    """Return queries with their exact top-n."""
    rows, scores = exact_search(vectors, queries, min(n, len(vectors)))
    return {"queries": queries, "rows": rows, "scores": scores}
