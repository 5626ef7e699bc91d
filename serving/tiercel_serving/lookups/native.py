"""The functions of ``text_lookup.c``, if it was built.

Installing the package builds them where there is a C compiler. Where there is none, NumPy does the same to
the bit, in several times the time.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..spec import Array
from .strings import Strings

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


@cache
def library() -> Any | None:
    """Return the built functions, or None: they were not built, or for another kind of machine."""
    found = sorted(Path(__file__).parent.glob("libtext_lookup*.so"))
    if not found or sys.byteorder != "little":
        return None
    try:
        return open_library(found[0])
    except OSError:
        return None


def open_library(file: Path) -> Any:
    """Open the functions in a file; OSError if that cannot be."""
    opened = ctypes.CDLL(str(file))
    opened.find_texts.argtypes = [
        *(_POINTER, _NUMBER, _POINTER, _NUMBER, _NUMBER),
        *(_POINTER, _NUMBER, _POINTER, _POINTER, _POINTER, _POINTER),
    ]
    opened.split_texts.argtypes = [_POINTER, _NUMBER, _NUMBER, _POINTER]
    opened.find_texts.restype = opened.split_texts.restype = _NUMBER
    return opened


class NativeTexts:
    """The hash tables of a text lookup, as ``text_lookup.c`` reads them.

    Parameters
    ----------
    functions
        What :func:`library` returned.
    records, displacements, columns
        As :func:`~.lookup.build_fused` returns them; every slot and bucket of a column is among them.
    """

    def __init__(self, functions: Any, records: Array, displacements: Array, columns: Array) -> None:
        self._find = functions.find_texts
        # They lie together, and stay while their addresses are known here.
        self._arrays = tuple(map(np.ascontiguousarray, (records, displacements, columns)))
        self._records, self._displacements, self._columns = map(_address, self._arrays)
        self._words, self._column_bytes = records.shape[1] - 1, 8 * columns.shape[1]

    def find(self, column: int, texts: Strings, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Write each string's code into ``codes [n]``; return the positions of odd ones, which get none."""
        odd = np.empty(len(texts), np.int64)
        offsets = np.ascontiguousarray(texts.offsets, np.int64)
        found = self._find(
            *(_address(texts.blob), len(texts.blob), _address(offsets), len(texts), texts.gap),
            *(self._records, self._words, self._displacements),
            *(self._columns + column * self._column_bytes, _address(codes), _address(odd)),
        )
        return odd[:found]


def split_at_nuls(blob: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int64]:
    """Return ``[count + 1]`` int64: where each of ``count`` strings that end in a NUL begins, and the end."""
    functions = library()
    if functions is None:
        return np.append(0, np.flatnonzero(blob == 0)[:count] + 1)
    offsets = np.empty(count + 1, np.int64)
    functions.split_texts(_address(blob), len(blob), count, _address(offsets))
    return offsets


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
