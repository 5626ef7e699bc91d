"""Bucketize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .expressions import Columns, Expression, Where, apply


def lower_bucketize(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``numpy.digitize(x, boundaries)`` as int32; NaN lands in the last bucket."""
    return {name: _bucketize(op, columns[name], name, where) for name in names}


def _bucketize(op: Any, source: Expression, name: str, where: Where) -> Expression:
    if source.is_list:
        raise where.refuse(
            name, "NVTabular's Bucketize raises on lists", "Bucketize before the lists are built"
        )
    if source.is_text:
        raise where.refuse(name, "the column holds text", "Categorify it instead")
    boundaries = np.asarray(op.boundaries(name))
    if boundaries.ndim != 1 or boundaries.dtype.kind not in "iuf":
        raise where.refuse(name, f"boundaries {op.boundaries(name)!r} are not a list of numbers", "Fix them")
    steps = np.diff(boundaries)
    if np.isnan(boundaries).any() or not (np.all(steps >= 0) or np.all(steps <= 0)):
        raise where.refuse(name, f"boundaries {boundaries.tolist()} are not in order", "Sort them")
    down = len(boundaries) > 1 and boundaries[0] > boundaries[-1]
    ordered = tuple(boundaries[::-1].tolist() if down else boundaries.tolist())
    return apply(
        "bucketize_down" if down else "bucketize",
        source,
        own={"boundaries": ordered},
        physical="int64",
        dtype="int32",
    )
