"""Greedy placing of items: the interface to ``vectors.c`` and ``placing.c``.

Lines, places and picks are those of :mod:`tiercel_serving.reorder.placing`: K candidates of each of B users,
best first, and ``[B, S]``, the candidate at each place, K if none is left. All functions return None if the
C files were not built, and raise MemoryError if C runs out of memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..ranked.order import Rows
from ..spec import Array
from . import library

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

#: Kinds of placing by vectors, numbered as in ``vectors.c``.
MMR, DPP, SPREAD = range(3)

#: The length of vectors is a multiple of this.
LANES = 8


class Vectors(NamedTuple):
    """Candidates' vectors: ``matrix[row] * scale``.

    Parameters
    ----------
    matrix
        ``[any, D]`` float32; D is a multiple of :data:`LANES`.
    row, scale
        ``[B, K]`` int64 and float32.
    """

    matrix: Floats
    row: Rows
    scale: Floats


def place_by_vectors(
    kind: int,
    vectors: Vectors,
    relevance: Floats,
    strength: Floats,
    places: int,
    *,
    window: int = 1,
    least: float = 0.0,
    nothing: float = 0.0,
) -> Rows | None:
    """Place by how dissimilar candidates are to those already placed.

    Parameters
    ----------
    kind
        :data:`MMR`, whose vectors are scaled by the root of the strength, :data:`DPP` or :data:`SPREAD`.
    vectors
        Vectors of the line's candidates.
    relevance
        ``[B, K]``, weighted; -inf without a score.
    strength
        ``[B or 1, 1]``.
    places
        S.
    window
        How many directions :data:`SPREAD` keeps, at least 1.
    least
        Lower bound on the squared residual length in the logarithm of :data:`DPP`.
    nothing
        A residual vector whose squared length is at most this adds no direction.
    """
    limits = np.array([least, nothing], np.float32)
    return _picks(
        "place_by_vectors",
        relevance.shape,
        places,
        (vectors.matrix.shape[1], window),
        (*vectors, relevance, _each(strength, len(relevance)), limits),
        before=kind,
    )


def place_by_mix(
    codes: Rows, relevance: Floats, start: Floats, weights: Floats, adds: Floats, places: int
) -> Rows | None:
    """Place by each item's effect on the answer's mix of values.

    Parameters
    ----------
    codes
        ``[B, K, L]``: an item's values, padded with G.
    relevance
        ``[B, K]``, weighted; -inf without a score.
    start, weights
        ``[B, G]``: what each place adds to the share of a value, and the weight of the share's logarithm.
    adds
        ``[L + 1]``: number of an item's values → what it adds to the share of each.
    places
        S.
    """
    numbers = (codes.shape[2], start.shape[1])
    return _picks("place_by_mix", relevance.shape, places, numbers, (codes, relevance, start, weights, adds))


def place_under_caps(
    codes: Rows, none: int, real: Flags, most: npt.NDArray[np.float64], places: int
) -> tuple[Rows, Flags] | None:
    """Place the first candidates in the line without a full value; also return which have one, ``[B, K]``.

    Parameters
    ----------
    codes, none
        ``[B, K, L]``: an item's values, padded with ``none``.
    real
        ``[B, K]``: which have a score.
    most
        ``[B or 1, 1]``: largest number of items of one value.
    places
        S.
    """
    dropped = np.empty(real.shape, np.bool_)
    caps = _each(np.ceil(most), len(real), np.int64)
    picks = _picks(
        "place_under_caps", real.shape, places, (codes.shape[2], none), (codes, real, caps), (dropped,)
    )
    return None if picks is None else (picks, dropped)


def place_in_shares(group: Rows, least: Rows, most: Rows) -> Rows | None:
    """Place groups of items in their shares.

    Parameters
    ----------
    group
        ``[B, K]``: an item's group, below G; G without a score.
    least, most
        ``[S, G]``: bounds on the number of a group's items in the first 1, 2, … places.
    """
    places, groups = least.shape
    return _picks("place_in_shares", group.shape, places, (groups,), (group, least, most))


def _picks(
    name: str,
    shape: tuple[int, ...],
    places: int,
    numbers: tuple[int, ...],
    given: tuple[Array, ...],
    made: tuple[Array, ...] = (),
    before: int | None = None,
) -> Rows | None:
    """Call a C function with (users, width, places, further numbers; arrays, picks, further results)."""
    functions: Any = library()
    if functions is None:
        return None
    picks = np.empty((shape[0], places), np.int64)
    lying = [np.ascontiguousarray(array) for array in given]
    first = () if before is None else (before,)
    failed = getattr(functions, name)(*first, *shape, places, *numbers, *lying, picks, *made)
    if failed:
        raise MemoryError(f"no memory to place {shape[1]} candidates of each of {shape[0]} users")
    return picks


def _each(values: Array, users: int, dtype: Any = np.float32) -> Array:
    return values.astype(dtype) if len(values) == users else np.full((users, 1), values[0, 0], dtype)
