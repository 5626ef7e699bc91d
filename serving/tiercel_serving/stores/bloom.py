"""Bloom filters of items that users have seen, for histories too long to store in full.

A filter of m bits (Bloom 1970, "Space/time trade-offs in hash coding with allowable errors") sets k of them
for each item. An item that was added is always found; another item is found, after n items, with probability
p = (1 - e^(-k n / m))^k. The smallest filter for a given p has k = log2(1/p) and m = n k / ln 2: half of its
bits are set. k is rounded up here, so p is 2^-k or less.

A filter that keeps growing is a *series*: each filter is twice as large as the one before, with half its p
(Almeida et al. 2007, "Scalable Bloom filters"), so the series has at most twice the p of its first filter.
The release's filter and the store's series share the recipe's false positive rate: the release's filter gets
half of it, the first filter of the series a quarter.

The k bits of an item are numbers of a SplitMix64 generator (Steele et al. 2014, "Fast splittable pseudorandom
number generators") whose seed is the raw id, since stores outlive catalogue rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from math import ceil, floor, log, log2
from struct import Struct
from struct import error as StructError
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..lookups.strings import Strings
from ..problems import COUNT, Problem, Range, out_of_range
from ..ranked.order import Rows
from ..spec import Array

Bytes = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_ALL = 2**64 - 1

#: Header of one filter in a series: k, number of items added, number of bytes of the bits that follow.
_HEAD = Struct("<III")

#: Capacity, in items, of the first filter of a series.
FIRST = 1024


class SeenFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a history is stored in full; older items go into a Bloom filter.

    Parameters
    ----------
    beyond
        Number of a user's latest items that the release stores in full.
    false_positives
        Largest probability that an item counts as seen although it is not, and is never recommended.
    """

    beyond: int = 1000
    false_positives: float = 0.001

    def problems(self) -> list[Problem]:
        """Return numbers that are out of range."""
        ranges = {"beyond": COUNT, "false_positives": Range(1e-9, 0.5)}
        return list(out_of_range(self, ranges))

    @property
    def of_release(self) -> int:
        """Number k of bits per item in the release's filters."""
        return ceil(log2(2 / self.false_positives))

    @property
    def of_store(self) -> int:
        """Number k of bits per item in the first filter of a series."""
        return ceil(log2(4 / self.false_positives))


def byte_count(items: Any, hashes: int) -> Any:
    """Return the bytes of a filter for a number (or array) of items, rounded up to 64-bit words."""
    return np.ceil(items * (hashes / log(2) / 64)).astype(np.int64) * 8


def item_keys(ids: Array | Strings) -> Keys:
    """Return the generator seed ``[n]`` uint64 of each raw id ``[n]``."""
    if not isinstance(ids, Strings) and ids.dtype != np.object_:
        return np.ascontiguousarray(ids, np.int64).view(np.uint64)
    texts = (ids.objects() if isinstance(ids, Strings) else ids).tolist()
    return np.fromiter((_key_of_text(text) for text in texts), np.uint64, len(texts))


def _key_of_text(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def probe(keys: Keys, number: int) -> npt.NDArray[np.uint32]:
    """Return the upper 32 bits of the ``number``-th output, from 1, of each key's generator."""
    mixed = keys + np.uint64(number * _GOLDEN & _ALL)
    for shift, multiplier in _MULTIPLIERS:
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(multiplier)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


def bit_of(probes: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.int64]:
    """Return the bit index that each probe selects among ``bits`` (below 2^31)."""
    places = np.multiply(probes, np.uint64(bits), dtype=np.uint64)
    places >>= np.uint64(32)
    return places.view(np.int64)


class ItemProbes:
    """The items that filters are tested for: those of a catalogue, by row.

    Each of the k probes of every item is computed once for all users, as a table ``[n]`` uint32.

    Parameters
    ----------
    ids
        ``[n]`` raw ids.
    rows
        ``[n]`` their rows; None is 0 to n - 1.
    """

    def __init__(self, ids: Array | Strings, rows: Rows | None = None) -> None:
        self._keys = item_keys(ids)
        self._rows = np.arange(len(self._keys)) if rows is None else rows
        self._probes: list[npt.NDArray[np.uint32]] = []

    def _probe(self, place: int) -> npt.NDArray[np.uint32]:
        while len(self._probes) <= place:
            self._probes.append(probe(self._keys, len(self._probes) + 1))
        return self._probes[place]

    def members(self, data: Bytes, hashes: int) -> Rows:
        """Return the rows of the items that one filter contains, false positives included.

        Each probe rules out about half of the remaining items, so all k cost little more than the first two.
        """
        bits = np.unpackbits(data, bitorder="little").view(np.bool_)
        found = np.flatnonzero(bits[bit_of(self._probe(0), len(bits))])
        for place in range(1, hashes):
            found = found[bits[bit_of(self._probe(place).take(found), len(bits))]]
        return self._rows[found]

    def members_of_series(self, series: bytes) -> Rows:
        """Return the ascending rows of the items that a series contains, false positives included."""
        parts = [self.members(np.frombuffer(data, np.uint8), k) for k, _, data in read_series(series)]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def build_filters(users: Rows, keys: Keys, n_users: int, hashes: int) -> tuple[Rows, Bytes]:
    """Return the filters of users, end to end.

    Parameters
    ----------
    users, keys
        ``[n]`` user row of each item, ascending, and the item's seed.
    n_users
        U.
    hashes
        k.

    Returns
    -------
    offsets : ``[U + 1]`` int64, in bytes; a user without items has none
    data : uint8, 8 bits each, the lowest first
    """
    sizes = byte_count(np.bincount(users, minlength=n_users), hashes)
    offsets = np.append(0, np.cumsum(sizes))
    data = np.zeros(int(offsets[-1]), np.uint8)
    ends = np.searchsorted(users, np.arange(n_users + 1))
    for user in np.flatnonzero(sizes).tolist():  # few users need a filter, and each has many items
        own, bits = keys[ends[user] : ends[user + 1]], np.zeros(int(sizes[user]) * 8, np.bool_)
        for number in range(1, hashes + 1):
            bits[bit_of(probe(own, number), len(bits))] = True
        data[offsets[user] : offsets[user + 1]] = np.packbits(bits, bitorder="little")
    return offsets, data


def read_series(series: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield k, the number of items added, and the bits of each filter."""
    at = 0
    while at < len(series):
        hashes, count, size = _HEAD.unpack_from(series, at)
        at += _HEAD.size + size
        yield hashes, count, series[at - size : at]


def check_series(series: bytes) -> bytes:
    """Return the bytes if they are a series of filters.

    Raises
    ------
    ValueError
        They are not.
    """
    try:
        whole = all(0 < k < 100 and data and len(data) % 8 == 0 for k, _, data in read_series(series))
    except StructError:
        whole = False
    if not whole or sum(_HEAD.size + len(data) for _, _, data in read_series(series)) != len(series):
        raise ValueError("filters: these are not Bloom filters that a store has written; export them anew")
    return series


def put(series: bytes, items: Sequence[int | bytes], settings: SeenFilter) -> bytes:
    """Return the series with items added, raw ids; items that it already contains change nothing."""
    filters = [(hashes, count, bytearray(data)) for hashes, count, data in read_series(series)]
    for item in items:
        key = _key_of_text(item) if isinstance(item, bytes) else item
        if any(holds(data, hashes, key) for hashes, _, data in filters):
            continue
        if not filters or filters[-1][1] >= floor(len(filters[-1][2]) * 8 * log(2) / filters[-1][0]):
            begun = len(filters)
            hashes = settings.of_store + begun
            filters.append((hashes, 0, bytearray(int(byte_count(FIRST << begun, hashes)))))
        hashes, count, data = filters[-1]
        for bit in _bits(key, hashes, len(data) * 8):
            data[bit >> 3] |= 1 << (bit & 7)
        filters[-1] = (hashes, count + 1, data)
    return b"".join(_HEAD.pack(hashes, count, len(data)) + data for hashes, count, data in filters)


def holds(data: bytes | bytearray, hashes: int, key: int) -> bool:
    """Return whether a filter contains an item: the plain reference of :class:`ItemProbes`."""
    return all(data[bit >> 3] >> (bit & 7) & 1 for bit in _bits(key, hashes, len(data) * 8))


def _bits(key: int, hashes: int, bits: int) -> Iterator[int]:
    for number in range(1, hashes + 1):
        mixed = key + number * _GOLDEN & _ALL
        for shift, multiplier in _MULTIPLIERS:
            mixed = (mixed ^ mixed >> shift) * multiplier & _ALL
        yield ((mixed ^ mixed >> 31) >> 32) * bits >> 32
