"""Reductions of a batch's flags. Most batches have one user, for whom a NumPy reduction is slow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]


def some(flags: Flags) -> bool:
    """Return whether any of the flags, of any shape, is set."""
    return bool(flags.item() if flags.size == 1 else flags.any())


def every(flags: Flags) -> bool:
    """Return whether all of the flags, of any shape, are set."""
    return bool(flags.item() if flags.size == 1 else flags.all())
