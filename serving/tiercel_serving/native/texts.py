"""Lookups of many texts, and splitting of NUL-terminated ones: the interface to ``texts.c``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..lookups.strings import Strings
from ..spec import Array
from . import library


class NativeTexts:
    """The hash tables of a text lookup, searched by ``texts.c``.

    Parameters
    ----------
    functions
        The result of :func:`~tiercel_serving.native.library`.
    records, displacements, columns
        As :func:`~tiercel_serving.lookups.build.build_fused` returns them. The caller must have checked that
        all slots and buckets of the columns exist.
    """

    def __init__(self, functions: Any, records: Array, displacements: Array, columns: Array) -> None:
        self._find = functions.find_texts
        lying = map(np.ascontiguousarray, (records, displacements, columns))
        self._records, self._displacements, self._columns = lying
        self._words = records.shape[1] - 1

    def find(self, column: int, texts: Strings, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Write the strings' codes into ``codes [n]``; return positions of odd strings, which get none."""
        odd = np.empty(len(texts), np.int64)
        offsets = np.ascontiguousarray(texts.offsets, np.int64)
        found = self._find(
            *(texts.blob, len(texts.blob), offsets, len(texts), texts.gap),
            *(self._records, self._words, self._displacements, self._columns[column], codes, odd),
        )
        return odd[:found]


def split_at_nuls(blob: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int64]:
    """Return ``[count + 1]`` int64: where each of ``count`` NUL-terminated strings begins, and the end."""
    functions = library()
    if functions is None:
        return np.append(0, np.flatnonzero(blob == 0)[:count] + 1)
    offsets = np.empty(count + 1, np.int64)
    functions.split_texts(blob, len(blob), count, offsets)
    return offsets
