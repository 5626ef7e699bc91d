"""Exact lookup tables for int64 and bytes keys, laid out in plain arrays that can be memory-mapped.

A table maps each distinct key to a code (its position, unless codes are given) and every other value to
one ``missing`` code. Three layouts, chosen by :func:`build_lookup` from the keys alone:

``direct``
    Integers that lie close together: one table indexed by ``key - lowest``.
``int hash``
    Other integers: open addressing, linear probing.
``bytes hash``
    Bytes: the same probing over CRC-32, and every hit is compared with the key's own bytes, so the answer
    is exact for any content: empty keys, NUL bytes, any encoding.

In both hash layouts the slots are ordered by home slot, so that a table is built by one sort and one
running maximum, and a key lies at most ``reach`` slots after its home.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt

from .spec import Array

#: A direct table may have this many slots for each key; beyond, integers are hashed.
DIRECT_SLOTS_PER_KEY = 8
#: A direct table of this size is always worth it.
DIRECT_SLOTS_FREE = 1024
#: Up to this many bytes keys are looked up value by value: measured, a probe costs 0.65 microseconds in
#: plain Python, and the vectorised path 30 to 50 microseconds however few the keys, 0.3 a key for many.
SMALL_BATCH = 128
#: Tables of bytes up to this size also open as a ``dict``: at 0.1 microseconds a key it beats every array
#: layout at any batch size, and so small a private copy costs nothing. Larger ones stay memory-mapped.
DICT_KEYS = 4096

#: The arrays of a bytes table.
BYTES_PARTS = ("tags", "entries", "offsets", "blob", "codes")

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_INT_GOLDEN = int(_GOLDEN)
_MASK = (1 << 64) - 1


class Lookup(Protocol):
    """A table from keys to codes."""

    def find(self, values: Array) -> npt.NDArray[np.int64]:
        """Return the code of each value, or the table's ``missing`` code.

        Parameters
        ----------
        values
            ``[n]`` int64, or ``[n]`` objects that are ``bytes``: whatever the table was built from.

        Returns
        -------
        ``[n]`` int64.
        """
        ...


def build_lookup(
    values: Array,
    prefix: str | None = None,
    *,
    codes: npt.NDArray[np.int64] | None = None,
    missing: int = -1,
) -> dict[str, Array]:
    """Lay out the lookup table of distinct keys.

    Parameters
    ----------
    values
        ``[n]`` distinct keys: any integer dtype, or objects that are ``bytes``.
    prefix
        Put before each array's name as ``<prefix>.<part>``; None leaves the bare part names.
    codes
        ``[n]`` what :meth:`Lookup.find` answers for each key; None is the key's position.
    missing
        What it answers for any other value.

    Returns
    -------
    Arrays to store in an artefact, for :func:`open_lookup`.

    Raises
    ------
    ValueError
        A key occurs twice.
    TypeError
        The keys are neither integers nor bytes.
    """
    answers = np.arange(len(values), dtype=np.int64) if codes is None else np.asarray(codes, np.int64)
    if values.dtype.kind in "iub":
        parts = _build_int(values.astype(np.int64), answers, missing)
    elif values.dtype == np.object_:
        parts = _build_bytes(values, answers)
    else:
        raise TypeError(f"lookup keys must be integers or bytes, not {values.dtype}")
    parts["missing"] = np.array([missing], np.int64)
    return parts if prefix is None else {f"{prefix}.{name}": array for name, array in parts.items()}


def open_lookup(arrays: Mapping[str, Array], prefix: str | None = None) -> Lookup:
    """Open a table that :func:`build_lookup` laid out; the arrays may be memory-mapped."""
    dot = "" if prefix is None else f"{prefix}."
    missing = int(arrays[f"{dot}missing"][0])
    if f"{dot}table" in arrays:
        return DirectLookup(arrays[f"{dot}table"], int(arrays[f"{dot}lowest"][0]))
    if f"{dot}keys" in arrays:
        return IntLookup(arrays[f"{dot}keys"], arrays[f"{dot}codes"], missing)
    return BytesLookup({name: arrays[f"{dot}{name}"] for name in BYTES_PARTS}, missing)


def is_dense(values: npt.NDArray[np.int64]) -> bool:
    """Whether distinct int64 keys lie close enough for a direct table."""
    if len(values) == 0:
        return True
    span = int(values.max()) - int(values.min()) + 1
    return span <= max(DIRECT_SLOTS_FREE, DIRECT_SLOTS_PER_KEY * len(values))


class DirectLookup:
    """Integers that lie close together: one table indexed by ``key - lowest``.

    Parameters
    ----------
    table
        ``[span + 1]`` codes; the last is the missing code, and so is every hole.
    lowest
        The lowest key.
    """

    def __init__(self, table: Array, lowest: int) -> None:
        self._table = table
        self._lowest = np.uint64(lowest & _MASK)
        self._span = np.uint64(len(table) - 1)

    def find(self, values: Array) -> npt.NDArray[np.int64]:
        """Return the code of each int64 value."""
        # Modulo 2**64 the subtraction is a bijection, so one unsigned comparison finds what is outside.
        offset = values.view(np.uint64) - self._lowest
        index = np.minimum(offset, self._span).view(np.int64)
        found: npt.NDArray[np.int64] = self._table[index]
        return found


class IntLookup:
    """Integers far apart: open addressing.

    Parameters
    ----------
    keys, codes
        ``[slots]`` int64; an empty slot has the missing code and any key.
    missing
        The missing code.
    """

    def __init__(self, keys: Array, codes: Array, missing: int) -> None:
        self._keys, self._codes, self._missing = keys, codes, missing
        self._shift = 64 - _bits(len(keys))

    def find(self, values: Array) -> npt.NDArray[np.int64]:
        """Return the code of each int64 value."""
        slot = _home(values.view(np.uint64), self._shift)
        found: npt.NDArray[np.int64] = self._codes[slot]
        other = (self._keys[slot] != values) & (found != self._missing)
        if other.any():
            self._probe(values, slot, found, other.nonzero()[0])
        return found

    def _probe(self, values: Array, slot: Array, found: Array, rest: Array) -> None:
        while len(rest):
            slot[rest] += 1
            at = slot[rest]
            found[rest] = self._codes[at]
            rest = rest[(self._keys[at] != values[rest]) & (found[rest] != self._missing)]


class BytesLookup:
    """Bytes: open addressing over CRC-32, each hit compared byte for byte.

    Parameters
    ----------
    arrays
        ``tags [slots]`` uint32, CRC-32 of the key in each slot; ``entries [slots]`` int64, which key lies
        in the slot, or -1; ``offsets [n + 1]`` and ``blob``, key ``i`` is
        ``blob[offsets[i]:offsets[i + 1]]``; ``codes [n]`` int64, the answer for each key.
    missing
        The missing code.
    """

    def __init__(self, arrays: Mapping[str, Array], missing: int) -> None:
        tags, entries, offsets, blob, codes = (arrays[name] for name in BYTES_PARTS)
        self._tags, self._entries, self._offsets, self._blob = tags, entries, offsets, blob
        self._codes, self._missing = codes, missing
        self._shift = 64 - _bits(len(tags))
        # Plain memoryviews: indexing one gives a Python int several times faster than indexing an array.
        self._views = tuple(memoryview(arrays[name]) for name in BYTES_PARTS)  # type: ignore[arg-type]
        self._dict: dict[bytes, int] | None = None
        if len(codes) <= DICT_KEYS:
            text = blob.tobytes()
            ends = offsets.tolist()
            keys = (text[ends[i] : ends[i + 1]] for i in range(len(codes)))
            self._dict = dict(zip(keys, codes.tolist(), strict=True))

    def find(self, values: Array) -> npt.NDArray[np.int64]:
        """Return the code of each ``bytes`` value of an object array."""
        n = len(values)
        items: list[bytes] = values.tolist()
        if self._dict is not None:
            get, missing = self._dict.get, self._missing
            return np.fromiter([get(item, missing) for item in items], np.int64, n)
        if n <= SMALL_BATCH:
            return np.fromiter(map(self._find_one, items), np.int64, n)
        return self._find_many(items, n)

    def _find_one(self, item: bytes) -> int:
        tags, entries, offsets, blob, codes = self._views
        tag = crc32(item)
        slot = ((tag * _INT_GOLDEN) & _MASK) >> self._shift
        while (entry := entries[slot]) >= 0:
            if tags[slot] == tag and blob[offsets[entry] : offsets[entry + 1]] == item:
                return int(codes[entry])
            slot += 1
        return self._missing

    def _find_many(self, items: list[bytes], n: int) -> npt.NDArray[np.int64]:
        tag = np.fromiter(map(crc32, items), np.uint32, n)
        lengths = np.fromiter(map(len, items), np.int64, n)
        blob = np.frombuffer(b"".join(items), np.uint8)
        starts = np.cumsum(lengths) - lengths
        slot = _home(tag.astype(np.uint64), self._shift)
        found = np.full(n, self._missing, np.int64)
        rest = np.arange(n)
        while len(rest):
            at = slot[rest]
            entry = self._entries[at]
            maybe = (entry >= 0) & (self._tags[at] == tag[rest])
            if maybe.any():
                rows, keys = rest[maybe], entry[maybe]
                equal = self._equal(keys, blob, starts[rows], lengths[rows])
                found[rows[equal]] = self._codes[keys[equal]]
                maybe[maybe.nonzero()[0][~equal]] = False
            rest = rest[(entry >= 0) & ~maybe]
            slot[rest] += 1
        return found

    def _equal(self, keys: Array, blob: Array, starts: Array, lengths: Array) -> npt.NDArray[np.bool_]:
        """Compare keys with as many runs of ``blob``, all bytes of all of them at once."""
        begins = self._offsets[keys]
        equal: npt.NDArray[np.bool_] = self._offsets[keys + 1] - begins == lengths
        compared = (equal & (lengths > 0)).nonzero()[0]
        if len(compared):
            sizes = lengths[compared]
            firsts = np.cumsum(sizes) - sizes
            within = np.arange(int(sizes.sum())) - np.repeat(firsts, sizes)
            same = (
                self._blob[np.repeat(begins[compared], sizes) + within]
                == blob[np.repeat(starts[compared], sizes) + within]
            )
            equal[compared] = np.logical_and.reduceat(same, firsts)
        return equal


def pack_bytes(values: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Lay ``bytes`` objects end to end.

    Parameters
    ----------
    values
        ``[n]`` objects that are ``bytes``.

    Returns
    -------
    ``offsets [n + 1]`` int64 and ``blob``: value ``i`` is ``blob[offsets[i]:offsets[i + 1]]``.
    """
    items: list[bytes] = values.tolist()
    for item in items:
        if not isinstance(item, bytes):
            raise TypeError(f"expected bytes, came {type(item).__name__}: {item!r}; encode text as UTF-8")
    offsets = np.zeros(len(items) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, items), np.int64, len(items)), out=offsets[1:])
    return offsets, np.frombuffer(b"".join(items), np.uint8)


def _build_int(values: npt.NDArray[np.int64], codes: Array, missing: int) -> dict[str, Array]:
    ordered = np.sort(values)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"lookup key {repeated[0]} occurs more than once")
    if is_dense(values):
        lowest = int(values.min()) if len(values) else 0
        span = int(values.max()) - lowest + 1 if len(values) else 0
        table = np.full(span + 1, missing, np.int64)
        table[values - lowest] = codes
        return {"table": table, "lowest": np.array([lowest], np.int64)}
    order, slots, total = _place(values.view(np.uint64))
    keys, answers = np.zeros(total, np.int64), np.full(total, missing, np.int64)
    keys[slots], answers[slots] = values[order], codes[order]
    return {"keys": keys, "codes": answers}


def _build_bytes(values: Array, codes: Array) -> dict[str, Array]:
    offsets, blob = pack_bytes(values)
    items: list[bytes] = values.tolist()
    if len(set(items)) != len(items):
        twice = Counter(items).most_common(1)[0][0]
        raise ValueError(f"lookup key {twice!r} occurs more than once")
    tag = np.fromiter(map(crc32, items), np.uint32, len(items))
    order, slots, total = _place(tag.astype(np.uint64))
    tags, entries = np.zeros(total, np.uint32), np.full(total, -1, np.int64)
    tags[slots], entries[slots] = tag[order], order
    return {"tags": tags, "entries": entries, "offsets": offsets, "blob": blob, "codes": codes}


def _home(keys: npt.NDArray[np.uint64], shift: int) -> npt.NDArray[np.int64]:
    home: npt.NDArray[np.int64] = ((keys * _GOLDEN) >> np.uint64(shift)).view(np.int64)
    return home


def _bits(slots: int) -> int:
    """Return how many bits name a home slot in a table with ``slots`` slots in all."""
    return slots.bit_length() - 1


def _place(keys: npt.NDArray[np.uint64]) -> tuple[Array, Array, int]:
    """Give each key a slot at or after its home.

    Returns
    -------
    ``order [n]`` (keys by home slot), ``slots [n]`` (the slot of each in that order), and how many slots
    there are: a power of two of homes, and a tail (shorter than the homes) that ends with an empty slot.
    """
    n = len(keys)
    bits = max(4, (2 * n).bit_length())
    home = _home(keys, 64 - bits)
    order = np.argsort(home, kind="stable")
    rank = np.arange(n)
    slots = np.maximum.accumulate(home[order] - rank) + rank
    last = int(slots[-1]) if n else 0
    return order, slots, max(1 << bits, last + 1) + 1
