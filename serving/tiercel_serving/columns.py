"""A column as the feature program and the stores see it: values, what is null, and where lists end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .spec import Array


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a batch.

    Parameters
    ----------
    values
        ``[n]`` for a scalar column, the flat elements of all rows for a list column. Strings are an
        object array of ``bytes`` (UTF-8); every other kind is a plain NumPy dtype. What stands at a
        null's place is unspecified.
    valid
        Boolean, as long as ``values``; False is null. None means that nothing is null, except NaN in
        a float column, which is always null.
    offsets
        ``[n + 1]`` int64 for a list column: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
        None for a scalar column.
    row_valid
        For a list column, ``[n]`` boolean; False is a null list (not an empty one). None means none.
    """

    values: Array
    valid: npt.NDArray[np.bool_] | None = None
    offsets: npt.NDArray[np.int64] | None = None
    row_valid: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def is_list(self) -> bool:
        """Whether each row is a list."""
        return self.offsets is not None
