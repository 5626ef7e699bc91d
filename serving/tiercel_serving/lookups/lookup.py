"""Exact lookup tables for int64 and bytes keys, stored in plain arrays that can be memory-mapped.

A table maps each distinct key to a code (its position, unless codes are given) and every other value to
one ``missing`` code. Two layouts, chosen by :func:`~.build.build_lookup` from the keys alone:

``direct``
    Dense integers: one table indexed by ``key - lowest``.
``hash``
    All other keys: a perfect hash (``perfect_hash.py``) over *records* of 64-bit words, a key's words and
    its code. An integer is one word. A string is 1, 3, 7 or 15 words (up to 8, 24, 56 or 120 bytes),
    padded with NULs, so that a record has 16, 32, 64 or 128 bytes and does not cross a cache line if it fits
    into one. A lookup reads one displacement and one record and compares the whole key, so it is exact.

Strings that padding can't hold or distinguish are *odd*: those that end in a NUL, and the few that are longer
than the width chosen for the table. They are sorted by CRC-32, found by bisection and compared byte by byte.

Several tables of one kind and width can be *fused*: their displacements and records are concatenated, and one
call looks up a column in each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt

from ..native import library
from ..native.texts import NativeTexts
from ..spec import Array
from .build import WORDS
from .perfect_hash import DISPLACER, GOLDEN, MASK, MULTIPLIER, bucket_of, hash_words, slot_of
from .strings import Strings, words_of_objects, words_of_strings

#: Up to this many keys are looked up one by one: plain Python takes 0.9 (integers) to 1.2 (strings)
#: microseconds per key, the vectorised path at least 14 to 20 in all.
FEW = 16
#: Larger batches are looked up in blocks of this many keys, whose temporaries fit into the cache.
BLOCK = 1 << 14

#: The arrays of a table's odd strings.
ODD_PARTS = ("odd_tags", "odd_offsets", "odd_blob", "odd_codes")

_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)


class Lookup(Protocol):
    """A table from keys to codes."""

    def find(self, values: Any) -> npt.NDArray[np.int64]:
        """Return the code of each value, or the table's ``missing`` code.

        Parameters
        ----------
        values
            ``[n]`` int64 or ``[n]`` ``bytes`` objects, like the keys that the table was built from. Fused
            tables take ``[C, n]``. A table of strings also takes :class:`Strings`, C columns one after the
            other.

        Returns
        -------
        int64, ``[n]`` or ``[C, n]``.
        """
        ...

    def find_one(self, value: Any) -> int:
        """Return the code of one value in a table of one column; faster than an array of one value."""
        ...


def open_lookup(arrays: Mapping[str, Array], prefix: str | None = None) -> Lookup:
    """Open a table built by :mod:`.build`; the arrays may be memory-mapped.

    Raises
    ------
    KeyError
        The arrays hold no table of these layouts, or one that names slots or buckets that do not exist.
    """
    dot = "" if prefix is None else f"{prefix}."
    if f"{dot}table" in arrays:
        return DirectLookup(arrays[f"{dot}table"], int(arrays[f"{dot}lowest"][0]))
    named = {name.removeprefix(dot): array for name, array in arrays.items() if name.startswith(dot)}
    if not {"records", "displacements", "columns"} <= set(named):
        raise KeyError(f"no lookup table {prefix!r} of a layout that this Tiercel reads")
    return TextLookup(named) if "odd_tags" in named else IntLookup(named)


def read_keys(arrays: Mapping[str, Array], prefix: str | None = None) -> Array:
    """Return the keys of a table built by :func:`~.build.build_lookup`, by increasing code.

    Returns
    -------
    ``[n]`` int64, or ``bytes`` objects. Keys whose code is the missing code are left out.
    """
    dot = "" if prefix is None else f"{prefix}."
    if f"{dot}table" in arrays:
        table, lowest = arrays[f"{dot}table"], int(arrays[f"{dot}lowest"][0])
        there = np.flatnonzero(table[:-1] != table[-1])
        dense: Array = (there + lowest)[np.argsort(table[there], kind="stable")]
        return dense
    records, missing = arrays[f"{dot}records"], int(arrays[f"{dot}columns"][0, -1])
    held = records[records[:, -1] != missing]
    keys, codes = held[:, :-1], held[:, -1]
    if f"{dot}odd_tags" not in arrays:
        numbers: Array = keys[np.argsort(codes, kind="stable"), 0]
        return numbers
    odd = Strings(arrays[f"{dot}odd_blob"], arrays[f"{dot}odd_offsets"]).objects()
    # NumPy strips the padding of fixed-width strings; odd strings are stored unpadded.
    padded = np.ascontiguousarray(keys).view(f"S{8 * keys.shape[1]}").reshape(-1).astype(np.object_)
    codes = np.concatenate([codes, arrays[f"{dot}odd_codes"]])
    texts: Array = np.concatenate([padded, odd])[np.argsort(codes, kind="stable")]
    return texts


class DirectLookup:
    """Dense integers: one table indexed by ``key - lowest``.

    Parameters
    ----------
    table
        ``[span + 1]`` codes; the last one and those of absent keys are the missing code.
    lowest
        The lowest key.
    """

    def __init__(self, table: Array, lowest: int) -> None:
        self._table = table
        self._lowest = np.uint64(lowest & MASK)
        self._span = np.uint64(len(table) - 1)
        self._first, self._missing = lowest, len(table) - 1
        # Indexing a memoryview returns a Python int several times faster than indexing an array.
        self._view = memoryview(table)  # type: ignore[arg-type]

    def find_one(self, value: int) -> int:
        """Return the code of one int64 value, in plain Python: a single NumPy call takes as long."""
        at = value - self._first
        code: int = self._view[at if 0 <= at < self._missing else self._missing]
        return code

    def find(self, values: Array) -> npt.NDArray[np.int64]:
        """Return the code of each int64 value."""
        if values.shape == (1,):
            return np.array([self.find_one(values.item())], _INT64)
        # Subtraction modulo 2**64 is a bijection, so one unsigned comparison finds values out of range.
        offset = values.view(np.uint64) - self._lowest
        np.minimum(offset, self._span, out=offset)
        found: npt.NDArray[np.int64] = self._table.take(offset.view(np.int64), mode="clip")
        return found


class _HashLookup:
    """The hash layout of C columns.

    Parameters
    ----------
    arrays
        As :func:`~.build.build_fused` returns them, without a prefix.
    """

    #: Up to this many keys are looked up one by one.
    few: int

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        records, columns = arrays["records"], arrays["columns"]
        self.columns, self.words = len(columns), records.shape[1] - 1
        seed, buckets, first_bucket, slots, first_slot, _, _, missing = columns.T[:, :, None]
        ends = ((first_bucket, buckets, arrays["displacements"]), (first_slot, slots, records))
        if any((a < 0).any() or (b < 1).any() or (a + b > len(held)).any() for a, b, held in ends):
            raise KeyError("a lookup table names slots or buckets beyond those that it has")
        self._seed, self._buckets, self._slots = (a.view(_UINT64) for a in (seed, buckets, slots))
        self._first_bucket, self._first_slot, self._missing = first_bucket, first_slot, missing
        self._is_based = bool(first_bucket.any())
        # Whole records as single elements: complex128 is the only plain one of 16 bytes.
        whole = np.complex128 if self.words == 1 else np.dtype(f"V{8 * (self.words + 1)}")
        self._records = records.reshape(-1).view(whole)
        self._displacements = arrays["displacements"]
        # Indexing a memoryview returns a Python int several times faster than indexing an array.
        self._record_view = memoryview(records.reshape(-1))  # type: ignore[arg-type]
        self._displacement_view = memoryview(arrays["displacements"])  # type: ignore[arg-type]
        self._plain: list[list[int]] = columns.tolist()

    def find_words(self, words: Sequence[Array], columns: slice) -> npt.NDArray[np.int64]:
        """Return the codes of keys given as one ``[c, n]`` uint64 array for each word."""
        h = hash_words(words, self._seed[columns])
        bucket = bucket_of(h, self._buckets[columns])
        if self._is_based:
            bucket += self._first_bucket[columns]
        # All indexes are in range; NumPy's clip mode is faster, since it does not check for errors first.
        displacement = self._displacements.take(bucket, mode="clip").astype(_UINT64)
        slot = slot_of(h, displacement, self._slots[columns])
        if self._is_based:
            slot += self._first_slot[columns]
        records = self._records.take(slot, mode="clip").view(_UINT64).reshape(*slot.shape, self.words + 1)
        equal = records[..., 0] == words[0]
        for number in range(1, self.words):
            equal &= records[..., number] == words[number]
        return np.where(equal, records[..., -1].view(np.int64), self._missing[columns])

    def find_key(self, column: int, words: tuple[int, ...]) -> int:
        """Return the code of one key given as signed words: :meth:`find_words` in plain Python."""
        seed, buckets, first_bucket, slots, first_slot, _, _, missing = self._plain[column]
        h = words[0] * seed & MASK
        for word in words[1:]:
            h = ((h ^ h >> 32) + word) * MULTIPLIER & MASK
        h = (h ^ h >> 32) * MULTIPLIER & MASK
        displacement = self._displacement_view[first_bucket + ((h >> 32) * buckets >> 32)]
        slot = ((h ^ displacement * DISPLACER & MASK) * GOLDEN & MASK) >> 32
        at = (first_slot + (slot * slots >> 32)) * (self.words + 1)
        records = self._record_view
        if records[at] != words[0]:
            return missing
        for number in range(1, self.words):
            if records[at + number] != words[number]:
                return missing
        code: int = records[at + self.words]
        return code

    def _blocks(self, n: int) -> Iterator[tuple[slice, slice]]:
        """Split ``[C, n]`` into blocks of several columns, or of some rows of one column."""
        step = max(1, BLOCK // n)
        for column in range(0, self.columns, step):
            for row in range(0, n, BLOCK):
                yield slice(column, column + step), slice(row, row + BLOCK)


class IntLookup(_HashLookup):
    """Sparse integers; see :class:`_HashLookup`."""

    def find_one(self, value: int) -> int:
        """Return the code of one int64 value."""
        return self.find_key(0, (value,))

    def find(self, values: Array) -> npt.NDArray[np.int64]:
        """Return the code of each int64 value: ``[n]`` for one column, ``[C, n]`` for several."""
        if values.size <= FEW:
            n, keys = values.size // self.columns, values.reshape(-1).tolist()
            few = [self.find_key(at // n, (key,)) for at, key in enumerate(keys)]
            return np.array(few, _INT64).reshape(values.shape)
        keys = values.view(_UINT64).reshape(self.columns, -1)
        out = np.empty(keys.shape, np.int64)
        for columns, rows in self._blocks(keys.shape[1]):
            out[columns, rows] = self.find_words([keys[columns, rows]], columns)
        return out.reshape(values.shape)


class TextLookup(_HashLookup):
    """Strings as bytes; see :class:`_HashLookup`.

    Parameters
    ----------
    arrays
        As :func:`~.build.build_fused` returns them, without a prefix.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__(arrays)
        self._width = 8 * self.words
        self._unpack = Struct(f"<{self.words}q").unpack
        views = (memoryview(arrays[name]) for name in ODD_PARTS)  # type: ignore[arg-type]
        self._odd_tags, self._odd_offsets, self._odd_blob, self._odd_codes = views
        functions, parts = library(), (arrays["records"], arrays["displacements"], arrays["columns"])
        known = functions is not None and self.words in WORDS
        self._native = NativeTexts(functions, *parts) if known else None

    def find(self, values: Array | Strings) -> npt.NDArray[np.int64]:
        """Return the code of each string.

        Parameters
        ----------
        values
            ``[n]`` or ``[C, n]`` ``bytes`` objects, or packed strings, one column after the other.

        Returns
        -------
        int64 of the values' shape; for packed strings ``[n]`` for one column, ``[C, n]`` for several.
        """
        if isinstance(values, Strings):
            found = self._find_packed(values)
            return found[0] if self.columns == 1 else found
        if values.size <= FEW:
            return self._find_few(values.reshape(-1).tolist()).reshape(values.shape)
        rows = values.reshape(self.columns, -1)
        out = np.empty(rows.shape, np.int64)
        for columns, part in self._blocks(rows.shape[1]):
            block = rows[columns, part]
            words, odd = words_of_objects(block, self.words)
            out[columns, part] = self._find_block(words, columns)
            if odd is not None:
                for column, row in zip(*(index.tolist() for index in odd.nonzero()), strict=True):
                    found_odd = self._find_odd(columns.start + column, block[column, row])
                    out[columns.start + column, part.start + row] = found_odd
        return out.reshape(values.shape)

    def find_one(self, value: bytes) -> int:
        """Return the code of one string."""
        return self._find_item(0, value)

    def _find_packed(self, values: Strings) -> npt.NDArray[np.int64]:
        n = len(values) // self.columns
        if len(values) <= FEW:
            return self._find_few(values.objects().tolist()).reshape(self.columns, n)
        out = np.empty((self.columns, n), np.int64)
        flat = out.reshape(-1)
        for at in self._find_even(values, out):
            flat[at] = self._find_odd(at // n, values.part(at, at + 1).objects()[0])
        return out

    def _find_even(self, values: Strings, out: npt.NDArray[np.int64]) -> list[int]:
        """Write the codes ``[C, n]`` of all strings but the odd ones, and return the odd ones' positions."""
        n, odds = out.shape[1], list[int]()
        if self._native is not None:
            for column, codes in enumerate(out):
                odd = self._native.find(column, values.part(column * n, (column + 1) * n), codes)
                odds += (odd + column * n).tolist()
            return odds
        for columns, part in self._blocks(n):
            shape = out[columns, part].shape
            begin = columns.start * n + part.start
            words, is_odd = words_of_strings(values.part(begin, begin + shape[0] * shape[1]), self.words)
            out[columns, part] = self._find_block(words.reshape(*shape, -1), columns)
            if is_odd is not None:
                odds += (begin + is_odd.nonzero()[0]).tolist()
        return odds

    def _find_block(self, words: Array, columns: slice) -> npt.NDArray[np.int64]:
        return self.find_words([words[..., number] for number in range(self.words)], columns)

    def _find_few(self, items: Sequence[bytes]) -> npt.NDArray[np.int64]:
        n = len(items) // self.columns
        return np.array([self._find_item(at // n, item) for at, item in enumerate(items)], _INT64)

    def _find_item(self, column: int, item: bytes) -> int:
        if len(item) > self._width or item[-1:] == b"\0":
            return self._find_odd(column, item)
        return self.find_key(column, self._unpack(item.ljust(self._width, b"\0")))

    def _find_odd(self, column: int, item: bytes) -> int:
        first, end, missing = self._plain[column][5:]
        tag = crc32(item)
        at = bisect_left(self._odd_tags, tag, first, end)
        while at < end and self._odd_tags[at] == tag:
            if self._odd_blob[self._odd_offsets[at] : self._odd_offsets[at + 1]] == item:
                code: int = self._odd_codes[at]
                return code
            at += 1
        return missing
