"""Questions about the flags of a batch. Most are of one user, where a reduction of NumPy's is dear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]


def some(flags: Flags) -> bool:
    """Return whether one of the flags, of any shape, is set."""
    return bool(flags.item() if flags.size == 1 else flags.any())


def every(flags: Flags) -> bool:
    """Return whether all of the flags, of any shape, are set."""
    return bool(flags.item() if flags.size == 1 else flags.all())
