"""Questions about all users of a batch. Most batches have one user, for whom NumPy is slow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]


def some(flags: Flags) -> bool:
    """Return whether any of the flags, of any shape, is set."""
    return bool(flags.item() if flags.size == 1 else flags.any())


def every(flags: Flags) -> bool:
    """Return whether all of the flags, of any shape, are set."""
    return bool(flags.item() if flags.size == 1 else flags.all())


def any_equal(array: npt.NDArray[Any], value: int) -> bool:
    """Return whether any element, of an array of any shape, equals the value."""
    return bool(array.item() == value if array.size == 1 else (array == value).any())


def all_equal(array: npt.NDArray[Any], value: int) -> bool:
    """Return whether all elements, of an array of any shape, equal the value."""
    return bool(array.item() == value if array.size == 1 else (array == value).all())
