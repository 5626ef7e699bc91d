"""Numbers that look drawn, of users and rows: ``chance.c``, and NumPy where it was not built."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import address, library


def draw_uniform(
    firsts: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64] | None:
    """Return numbers ``[B, M]`` of each user's first ``[B or 1, 1]`` and rows ``[B, M]``; None: not built."""
    functions: Any = library()
    if functions is None:
        return None
    if len(firsts) != len(rows):
        firsts = np.repeat(firsts, len(rows), axis=0)
    drawn = np.empty(rows.shape, np.float64)
    given = np.ascontiguousarray(firsts), np.ascontiguousarray(rows, np.int64)
    functions.draw_uniform(*rows.shape, *map(address, given), address(drawn))
    return drawn
