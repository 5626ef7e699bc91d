"""Bloom filters of items that users had, for histories too long to carry.

A filter of m bits (Bloom 1970, "Space/time trade-offs in hash coding with allowable errors") sets k of them
for each item. An item that was put is always found; one that was not, with the chance (1 - e^(-k n / m))^k
after n items. Of all filters with that chance p the smallest has k = log2(1/p) and m = n k / ln 2: half of
its bits are set. k is rounded up here, so p is 2^-k or less.

A filter that is fed for years is a *series*, each filter twice as large as the one before with half its
chance (Almeida et al. 2007, "Scalable Bloom filters"): together they find no more than twice the first one's
p. The release's filter and the store's share the recipe's rate: half for the one, a quarter for the first of
the others.

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

#: Of one filter in a series: k, how many items were put, bytes of its bits, which follow.
_HEAD = Struct("<III")

#: Items that the first filter of a series holds.
FIRST = 1024


class SeenFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a history is carried as it is; what is older is kept in a Bloom filter.

    Parameters
    ----------
    beyond
        How many of a user's latest items the release carries.
    false_positives
        With which chance, at most, an item that a user did not have counts as had, and never comes.
    """

    beyond: int = 1000
    false_positives: float = 0.001

    def problems(self) -> list[Problem]:
        """Return numbers that make no sense."""
        ranges = {"beyond": COUNT, "false_positives": Range(1e-9, 0.5)}
        return list(out_of_range(self, ranges))

    @property
    def of_release(self) -> int:
        """K of the release's filters."""
        return ceil(log2(2 / self.false_positives))

    @property
    def of_store(self) -> int:
        """K of the first filter of a series."""
        return ceil(log2(4 / self.false_positives))


def byte_count(items: Any, hashes: int) -> Any:
    """Return how many bytes a filter of so many items has, in whole words of 64 bits; also of an array."""
    return np.ceil(items * (hashes / log(2) / 64)).astype(np.int64) * 8


def item_keys(ids: Array | Strings) -> Keys:
    """Return the seed of each raw id ``[n]``."""
    if not isinstance(ids, Strings) and ids.dtype != np.object_:
        return np.ascontiguousarray(ids, np.int64).view(np.uint64)
    texts = (ids.objects() if isinstance(ids, Strings) else ids).tolist()
    return np.fromiter((_key_of_text(text) for text in texts), np.uint64, len(texts))


def _key_of_text(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def probe(keys: Keys, number: int) -> npt.NDArray[np.uint32]:
    """Return the upper half of each generator's number ``number``, from 1."""
    mixed = keys + np.uint64(number * _GOLDEN & _ALL)
    for shift, multiplier in _MULTIPLIERS:
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(multiplier)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


def bit_of(probes: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.int64]:
    """Return which of so many bits (below 2^31) each probe means."""
    places = np.multiply(probes, np.uint64(bits), dtype=np.uint64)
    places >>= np.uint64(32)
    return places.view(np.int64)


class ItemProbes:
    """Items that filters are asked about: all of a catalogue, by row.

    What is the same for every user is worked out once, a table ``[I]`` uint32 for each of the k bits.

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
        """Return the rows, ascending, of the items that one filter holds, or seems to.

        Each bit leaves half of the rest, so that all of them cost little more than the first two.
        """
        bits = np.unpackbits(data, bitorder="little").view(np.bool_)
        found = np.flatnonzero(bits[bit_of(self._probe(0), len(bits))])
        for place in range(1, hashes):
            found = found[bits[bit_of(self._probe(place).take(found), len(bits))]]
        return self._rows[found]

    def members_of_series(self, series: bytes) -> Rows:
        """Return the rows of the items that a series of filters holds, or seems to."""
        parts = [self.members(np.frombuffer(data, np.uint8), k) for k, _, data in read_series(series)]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def build_filters(users: Rows, keys: Keys, n_users: int, hashes: int) -> tuple[Rows, Bytes]:
    """Return the filters of users, end to end.

    Parameters
    ----------
    users, keys
        ``[n]`` whose each item is, ascending, and its seed.
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
    for user in np.flatnonzero(sizes).tolist():  # few users have so much, and of those each has much
        own, bits = keys[ends[user] : ends[user + 1]], np.zeros(int(sizes[user]) * 8, np.bool_)
        for number in range(1, hashes + 1):
            bits[bit_of(probe(own, number), len(bits))] = True
        data[offsets[user] : offsets[user + 1]] = np.packbits(bits, bitorder="little")
    return offsets, data


def read_series(series: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield k, how many items were put, and the bits of each filter."""
    at = 0
    while at < len(series):
        hashes, count, size = _HEAD.unpack_from(series, at)
        at += _HEAD.size + size
        yield hashes, count, series[at - size : at]


def check_series(series: bytes) -> bytes:
    """Return bytes that are a series of filters.

    Raises
    ------
    ValueError
        They are none.
    """
    try:
        whole = all(0 < k < 100 and data and len(data) % 8 == 0 for k, _, data in read_series(series))
    except StructError:
        whole = False
    if not whole or sum(_HEAD.size + len(data) for _, _, data in read_series(series)) != len(series):
        raise ValueError("filters: these are not Bloom filters that a store has written; export them anew")
    return series


def put(series: bytes, items: Sequence[int | bytes], settings: SeenFilter) -> bytes:
    """Return a series of filters that holds more items; what it holds already changes nothing."""
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
    """Return whether a filter holds an item, or seems to: the plain reference of :class:`ItemProbes`."""
    return all(data[bit >> 3] >> (bit & 7) & 1 for bit in _bits(key, hashes, len(data) * 8))


def _bits(key: int, hashes: int, bits: int) -> Iterator[int]:
    for number in range(1, hashes + 1):
        mixed = key + number * _GOLDEN & _ALL
        for shift, multiplier in _MULTIPLIERS:
            mixed = (mixed ^ mixed >> shift) * multiplier & _ALL
        yield ((mixed ^ mixed >> 31) >> 32) * bits >> 32
