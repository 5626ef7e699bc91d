"""The models' tensors computed by NVTabular itself, not by compiled programs: an oracle for tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from tiercel_export.workflow.frames import frame_oracle
from tiercel_pipelines.features.graph_columns import packed_columns
from tiercel_serving.spec import list_tensor

Array = np.ndarray


def packed_frame(
    workflow: Any, part: str, frame: pd.DataFrame, lengths: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Transform raw rows of one part by NVTabular itself and pack them into the models' tensors.

    Parameters
    ----------
    workflow
        The fitted workflow.
    part
        ``user`` (with the context columns) or ``item``.
    frame
        ``[n]`` rows with that part's raw columns.
    lengths
        Length of each list column; with None, or for a column without one, the longest list decides.

    Returns
    -------
    dict
        ``<part>_cat`` int64 ``[n, C]``, ``<part>_num`` float32 ``[n, F]`` and, for each list,
        ``<part>_list_<column>`` ``[n, L]`` padded with 0. Tensors without columns are left out.
    """
    columns = packed_columns(workflow, part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformed = frame_oracle(workflow, part, frame)
    packed: dict[str, Array] = {}
    for kind, dtype in (("cat", np.int64), ("num", np.float32)):
        names = [column.name for column in columns if column.kind == kind and not column.is_list]
        if names:
            parts = [transformed[name].to_numpy().astype(dtype) for name in names]
            packed[f"{part}_{kind}"] = np.ascontiguousarray(np.stack(parts, axis=1))
    for column in columns:
        if column.is_list:
            length = (lengths or {}).get(column.name)
            dtype = np.int64 if column.kind == "cat" else np.float32
            packed[list_tensor(part, column.name)] = padded(transformed[column.name], length, dtype)
    return packed


def padded(rows: Iterable[Any], length: int | None, dtype: Any) -> Array:
    """Return lists as [n, L], cut or padded with 0 at the end; L is at least 1."""
    lists = [np.asarray(row) for row in rows]
    longest = max((len(row) for row in lists), default=0)
    width = max(1, longest if length is None else length)
    padded = np.zeros((len(lists), width), dtype=dtype)
    counts = np.minimum(np.array([len(row) for row in lists], dtype=np.int64), width)
    taken = np.arange(width) < counts[:, None]
    if taken.any():
        padded[taken] = np.concatenate([row[:width] for row in lists]).astype(dtype)
    return padded
