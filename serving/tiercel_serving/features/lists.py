"""The step that changes the lengths of lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..spec import Array
from .registers import Columns, Register, Registers


class ListSlice:
    """``row[start:end]`` of each list, with Python's slicing; then padding to ``length`` elements, if given.

    Without ``length`` a null list stays null. With it, a null list becomes padding only.
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]
        self._start: int = step["start"]
        self._end: int = step["end"]
        self._length: int | None = step.get("length")
        value = step.get("value")
        self._value = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Slice: ``[1, m]``, the m elements of all rows."""
        given = registers[self._source]
        x, valid, offsets = given.x, given.valid, given.offsets
        assert offsets is not None
        lengths = np.diff(offsets)
        begins = _position(self._start, lengths)
        kept = np.maximum(_position(self._end, lengths) - begins, 0)
        widths = kept if self._length is None else np.maximum(kept, self._length)
        ends = np.zeros(n + 1, np.int64)
        np.cumsum(widths, out=ends[1:])
        # Element j of the output is element j - ends[i] + offsets[i] + begins[i] of the input, in its row i.
        source = np.arange(ends[-1]) + np.repeat(offsets[:-1] + begins - ends[:-1], widths)
        if self._length is None:
            return Register(x[:, source], None if valid is None else valid[:, source], ends, given.row_valid)
        real = np.arange(ends[-1]) - np.repeat(ends[:-1], widths) < np.repeat(kept, widths)
        out = np.full((1, len(source)), self._value, x.dtype)
        out[:, real] = x[:, source[real]]
        if valid is not None:
            padded = np.ones(out.shape, np.bool_)
            padded[:, real] = valid[:, source[real]]
            valid = padded
        return Register(out, valid, ends)


def _position(bound: int, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return a slice bound as a position in each row, from 0 to the row's length."""
    return np.clip(lengths + bound if bound < 0 else bound, 0, lengths)
