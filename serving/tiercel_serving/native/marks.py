"""Setting of many flags: ``marks.c``, or NumPy if it was not built."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import library


def mark(cells: npt.NDArray[np.bool_], at: npt.NDArray[np.integer[Any]], width: int = 0) -> None:
    """Set cells to True at places in their flat order, none of them negative.

    Parameters
    ----------
    cells, at
        The cells, contiguous, and the places; each of any shape.
    width
        Also set the last of each ``width`` cells; 0 sets none of them.

    Raises
    ------
    IndexError
        A place is beyond the cells.
    """
    functions = library()
    if functions is None:
        flat = cells.reshape(-1)
        flat[at] = True
        if width:
            flat[width - 1 :: width] = True
        return
    places = np.ascontiguousarray(at, np.int64)
    beyond = functions.mark(cells, cells.size, places, places.size, width)
    if beyond:
        raise IndexError(f"{beyond} of {places.size} places are beyond the {cells.size} cells")
