"""The step that compares two columns of ids by their rows in sparse feature matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..spec import Array
from .registers import Columns, Register, Registers


class Matrix(NamedTuple):
    """A sparse matrix in CSR form: ``ends [rows + 1]``, ``columns [entries]`` ascending per row, ``data``."""

    ends: Array
    columns: Array
    data: Array

    def entries(self, rows: Array) -> tuple[Array, Array, Array]:
        """Return the entries of these rows, as arrays of the index into ``rows``, the column and the value.

        A negative row number counts from the end of ``ends``, as in NVTabular's loop. A row beyond the matrix
        has no entries.
        """
        known = (rows >= -len(self.ends)) & (rows < len(self.ends) - 1)
        rows = np.where(known, rows, -1)  # from the last end to the first, hence no entries
        begins = self.ends[rows]
        sizes = np.maximum(self.ends[rows + 1] - begins, 0)
        ends = np.cumsum(sizes)
        index = np.arange(sizes.sum()) + np.repeat(begins - ends + sizes, sizes)
        return np.repeat(np.arange(len(rows)), sizes), self.columns[index], self.data[index]


class Similarity:
    """The inner product of two matrices' rows, with products summed in float64 in the order of the columns.

    A row that a matrix lacks is all zeros; a null gives NaN.
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._sources: list[tuple[int, int]] = [(register, row) for register, row in step["in"]]
        self._left, self._right = (
            Matrix(arrays[f"{side}_ends"], arrays[f"{side}_columns"], arrays[f"{side}_data"])
            for side in ("left", "right")
        )
        self._width = 1 + max(int(m.columns.max(initial=0)) for m in (self._left, self._right))

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Compare: ``[1, n]``, in the dtype of the left matrix."""
        (left, right), null = self._ids(registers)
        rows, columns_left, data_left = self._left.entries(left)
        others, columns_right, data_right = self._right.entries(right)
        # Both lists of keys ascend, because the rows ascend, and the columns within each row.
        keys, other_keys = rows * self._width + columns_left, others * self._width + columns_right
        place = other_keys.searchsorted(keys)
        shared = np.zeros(len(keys), np.bool_)
        inside = place < len(other_keys)
        shared[inside] = other_keys[place[inside]] == keys[inside]
        products = data_left[shared] * data_right[place[shared]]
        sums = np.bincount(rows[shared], weights=products, minlength=len(left))
        similarity = np.where(null, np.nan, sums).astype(self._left.data.dtype).reshape(1, -1)
        return Register(similarity, None, registers[self._sources[0][0]].offsets)

    def _ids(self, registers: Registers) -> tuple[list[Array], npt.NDArray[np.bool_]]:
        number, row = self._sources[0]
        ids, null = [], np.zeros(len(registers[number].x[row]), np.bool_)
        for number, row in self._sources:
            register = registers[number]
            ids.append(register.x[row])
            if register.valid is not None:
                null |= ~register.valid[row]
        return ids, null
