"""Packed byte strings, also as rows of 8-byte words, so that text is looked up without Python objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..spec import Array

#: ``_KEEP[b]`` keeps the first ``b`` bytes of a little-endian word.
_KEEP = np.array([(1 << (8 * kept)) - 1 for kept in range(9)], np.uint64)


@dataclass(frozen=True, slots=True)
class Strings:
    """Byte strings stored end to end, as in Arrow.

    Parameters
    ----------
    blob
        uint8; the bytes of all strings.
    offsets
        ``[n + 1]`` int64, increasing: string ``i`` is ``blob[offsets[i] : offsets[i + 1] - gap]``.
    gap
        Number of bytes after each string that belong to none.
    """

    blob: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    gap: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, values: Array) -> Strings:
        """Pack ``[n]`` ``bytes`` objects.

        Raises
        ------
        TypeError
            One of them is not ``bytes``.
        """
        items: list[Any] = values.tolist()
        if not set(map(type, items)) <= {bytes}:
            stray = next((item for item in items if not isinstance(item, bytes)), b"")
            if not isinstance(stray, bytes):
                came = type(stray).__name__
                raise TypeError(f"expected bytes, got {came}: {stray!r}; encode text as UTF-8")
        offsets = np.zeros(len(items) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, items), np.int64, len(items)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(items), np.uint8), offsets)

    @classmethod
    def join(cls, parts: list[Strings]) -> Strings:
        """Return the strings of several columns, one column after the other; their gaps must be equal."""
        if len(parts) == 1:
            return parts[0]
        [gap] = {part.gap for part in parts}
        blobs = [part.blob[part.offsets[0] : part.offsets[-1]] for part in parts]
        begins = np.cumsum([0, *(len(blob) for blob in blobs)])
        ends = [
            part.offsets[1:] - part.offsets[0] + begin for part, begin in zip(parts, begins, strict=False)
        ]
        return cls(np.concatenate(blobs), np.concatenate([begins[:1], *ends]), gap)

    def objects(self) -> Array:
        """Return ``[n]`` ``bytes`` objects."""
        first = self.offsets[0]
        text, ends = self.blob[first : self.offsets[-1]].tobytes(), (self.offsets - first).tolist()
        out = np.empty(len(self), np.object_)
        out[:] = [text[ends[i] : ends[i + 1] - self.gap] for i in range(len(self))]
        return out

    def part(self, begin: int, end: int) -> Strings:
        """Return strings ``begin`` to ``end - 1``, without a copy."""
        return Strings(self.blob, self.offsets[begin : end + 1], self.gap)

    def take(self, rows: npt.NDArray[np.int64]) -> Strings:
        """Gather strings by position; the result has no gaps."""
        begins = self.offsets[rows]
        lengths = self.offsets[rows + 1] - begins - self.gap
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        index = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
        return Strings(self.blob[index], offsets)


def words_of_objects(values: Array, count: int) -> tuple[Array, Array | None]:
    """Split ``bytes`` objects into words.

    Parameters
    ----------
    values
        ``bytes`` objects, of any shape.
    count
        Number of words of a key.

    Returns
    -------
    ``[…, count + 1]`` uint64: the string, padded with NULs to 8·``count`` bytes, then a word that callers
    must ignore; and which strings are *odd* (boolean, the shape of ``values``; None if none is): longer than
    that, or ending in a NUL, so that they could not be distinguished from others once padded.
    """
    items: list[bytes] = values.ravel().tolist()
    nul = b"\0" in b"".join(items)
    # Truncate at one word more: a longer string without NULs has bytes in that word.
    words = values.astype(f"S{8 * (count + 1)}").view(np.uint64).reshape(*values.shape, count + 1)
    if nul:
        limit = 8 * count
        odd = [len(item) > limit or item.endswith(b"\0") for item in items]
        return words, np.array(odd, np.bool_).reshape(values.shape) if any(odd) else None
    longer = words[..., count] != 0
    return words, longer if longer.any() else None


def words_of_strings(strings: Strings, count: int) -> tuple[Array, Array | None]:
    """Split packed strings into words; see :func:`words_of_objects`. ``[n, count + 1]`` and ``[n]``."""
    offsets = strings.offsets - strings.offsets[0]
    begins, ends = offsets[:-1], offsets[1:] - strings.gap
    lengths = ends - begins
    size = 8 * (count + 1)
    blob = strings.blob[strings.offsets[0] : strings.offsets[-1]]
    padded = np.concatenate([blob, np.zeros(size, np.uint8)])
    # A view of every run of ``size`` bytes of the blob; only those at the beginning of a string are read.
    runs: npt.NDArray[Any] = np.ndarray((len(blob) + 1,), f"V{size}", padded, strides=(1,))
    words = runs[begins].view(np.uint64).reshape(-1, count + 1)
    longest = int(lengths.max(initial=0))
    shortest = int(lengths.min(initial=longest))
    for number in range(count):
        if longest <= 8 * number:
            words[:, number] = 0
        elif shortest < 8 * (number + 1):
            words[:, number] &= _KEEP.take(np.clip(lengths - 8 * number, 0, 8))
    odd = (lengths > 0) & (padded[ends - 1] == 0)
    odd |= lengths > 8 * count
    return words, odd if odd.any() else None


def packed_strings(values: Array | Strings) -> Strings:
    """Return keys as packed strings, from ``bytes`` objects or packed strings."""
    return values if isinstance(values, Strings) else Strings.of(values)
