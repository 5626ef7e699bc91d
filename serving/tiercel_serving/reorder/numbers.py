"""One number per item, from a raw column or from the scores of a source that is one list."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..problems import Problem


def holds_no_numbers(column: Column, name: str) -> list[Problem]:
    """Return the problem of a column that does not hold one number per item."""
    if not column.is_list and column.values.dtype.kind in "iuf":
        return []
    holds = "lists" if column.is_list else "text" if column.values.dtype == np.object_ else "booleans"
    return [Problem("column", f"{name!r} holds {holds}", "name a column with one number an item")]


def numbers_of(column: Column) -> npt.NDArray[np.float64]:
    """Return the numbers ``[I + 1]`` as float64; NaN for null and infinite ones."""
    numbers = column.values.astype(np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    if column.valid is not None:
        numbers[~column.valid] = np.nan
    return numbers


def plain_number(value: Any) -> float | None:
    """Return an item's number for a plain reference; None for null, NaN and infinity."""
    return None if value is None or value - value != 0 else float(value)
