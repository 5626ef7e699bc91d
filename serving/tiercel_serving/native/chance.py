"""Pseudo-random numbers for users and rows: the interface to ``chance.c``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import library


def draw_uniform(
    seeds: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], offset: int
) -> npt.NDArray[np.float64] | None:
    """Return numbers ``[B, M]`` for seeds ``[B or 1, 1]`` and rows ``[B, M]``; None if C was not built."""
    functions: Any = library()
    if functions is None:
        return None
    if len(seeds) != len(rows):
        seeds = np.repeat(seeds, len(rows), axis=0)
    drawn = np.empty(rows.shape, np.float64)
    given = np.ascontiguousarray(seeds, np.float64), np.ascontiguousarray(rows, np.int64)
    functions.draw_uniform(*rows.shape, offset, *given, drawn)
    return drawn
