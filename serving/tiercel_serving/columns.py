"""A column as the feature program and the stores see it: values, what is null, and where lists end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .spec import Array
from .strings import Strings


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
        Boolean, as long as there are values; False is null. None means that nothing is null, except NaN
        in a float column, which is always null.
    offsets
        ``[n + 1]`` int64 for a list column: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
        None for a scalar column.
    row_valid
        For a list column, ``[n]`` boolean; False is a null list (not an empty one). None means none.
    text_offsets
        ``[m + 1]`` int64 for *packed text*, which only feature programs take: ``values`` is then uint8,
        the bytes of all m strings, and value ``i`` is ``values[text_offsets[i]:text_offsets[i + 1]]``.
        Vocabularies look it up without a Python object for each string. None for any other column.
    """

    values: Array
    valid: npt.NDArray[np.bool_] | None = None
    offsets: npt.NDArray[np.int64] | None = None
    row_valid: npt.NDArray[np.bool_] | None = None
    text_offsets: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        if self.offsets is not None:
            return len(self.offsets) - 1
        return len(self.values) if self.text_offsets is None else len(self.text_offsets) - 1

    @property
    def is_list(self) -> bool:
        """Whether each row is a list."""
        return self.offsets is not None

    def strings(self) -> Strings:
        """Return the values of a column of packed text."""
        assert self.text_offsets is not None
        return Strings(self.values, self.text_offsets)
