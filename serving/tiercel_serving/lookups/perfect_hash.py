"""Perfect hashing: every key has a slot of its own, so that a lookup is one gather and one comparison.

A key is a row of 64-bit words. Its hash ``h`` selects a bucket. The bucket's *displacement*, found when the
table is built, maps each of its keys to a slot that no other key has (Belazzougui, Botelho, Dietzfelbinger:
"Hash, displace, and compress", ESA 2009). Lookups need no loop, which makes them fast in NumPy.

With ``>>`` logical and all arithmetic modulo 2**64::

    h      = seed · word₀;  for each further word: h = ((h ⊕ h >> 32) + word) · M
    h      = (h ⊕ h >> 32) · M
    bucket = (h >> 32) · buckets >> 32
    slot   = ((h ⊕ displacement[bucket] · D) · G >> 32) · slots >> 32
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..spec import Array

# Odd constants of established mixers: 2**64 / golden ratio; degski's 64-bit mixer; Stafford's "Mix13".
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIER = 0xD6E8FEB86659FD93
DISPLACER = 0xBF58476D1CE4E5B9
MASK = (1 << 64) - 1

_GOLDEN, _MULTIPLIER, _DISPLACER = np.uint64(GOLDEN), np.uint64(MULTIPLIER), np.uint64(DISPLACER)
_HALF = np.uint64(32)

#: Slots per seven keys, and keys per bucket. By measurement, emptier tables are slower, since less of them
#: fits into the cache, and fuller ones or larger buckets take longer to build.
SLOTS_FOR_7 = 8
KEYS_PER_BUCKET = 3
#: Number of seeds that are tried; the first nearly always works.
SEEDS = 16


#: uint64, one for all keys or one per key.
Unsigned: TypeAlias = "npt.NDArray[np.uint64] | np.uint64"


class Placement(NamedTuple):
    """The slot of each key of a table.

    Parameters
    ----------
    seed
        The multiplier of the first word.
    displacement
        ``[buckets]`` uint16.
    slot
        ``[n]`` int64, distinct, each below ``slots``.
    slots
        Number of slots.
    """

    seed: int
    displacement: npt.NDArray[np.uint16]
    slot: npt.NDArray[np.int64]
    slots: int


class RepeatedKey(ValueError):
    """Two keys are equal; ``position`` is that of one of them."""

    def __init__(self, position: int) -> None:
        super().__init__(f"lookup key {position} stands somewhere else too")
        self.position = position


def hash_words(words: Sequence[Array], seed: Unsigned) -> npt.NDArray[np.uint64]:
    """Return ``h`` of keys given as one uint64 array per word; ``seed`` broadcasts against them."""
    h: npt.NDArray[np.uint64] = words[0] * seed
    for word in words[1:]:
        h ^= h >> _HALF
        h += word
        h *= _MULTIPLIER
    h ^= h >> _HALF
    h *= _MULTIPLIER
    return h


def bucket_of(h: npt.NDArray[np.uint64], buckets: Unsigned) -> npt.NDArray[np.int64]:
    """Return each hash's bucket; ``buckets`` is uint64 and broadcasts."""
    bucket = h >> _HALF
    bucket *= buckets
    bucket >>= _HALF
    return bucket.view(np.int64)


def slot_of(h: npt.NDArray[np.uint64], displacement: Unsigned, slots: Unsigned) -> npt.NDArray[np.int64]:
    """Return each hash's slot, **overwriting** ``h``; ``displacement`` and ``slots`` are uint64."""
    h ^= displacement * _DISPLACER
    h *= _GOLDEN
    h >>= _HALF
    h *= slots
    h >>= _HALF
    return h.view(np.int64)


def place(words: Sequence[Array]) -> Placement:
    """Assign each key a slot of its own.

    Parameters
    ----------
    words
        One ``[n]`` uint64 array per word of the keys, which must be distinct.

    Raises
    ------
    RepeatedKey
        Two keys are equal.
    ValueError
        There are more than 2**31 keys, or no seed works.
    """
    if len(words[0]) > 1 << 31:
        raise ValueError(f"a lookup table holds up to 2**31 keys, not {len(words[0])}")
    for attempt in range(SEEDS):
        seed = GOLDEN * (2 * attempt + 1) & MASK
        h = hash_words(words, np.uint64(seed))
        placed = _displace(h)
        if placed is not None:
            return Placement(seed, *placed)
        _check_distinct(h, words)
    raise ValueError(f"lookup keys can't be placed with any of {SEEDS} seeds")


def _check_distinct(h: npt.NDArray[np.uint64], words: Sequence[Array]) -> None:
    order = np.argsort(h)
    same: npt.NDArray[np.bool_] = h[order[1:]] == h[order[:-1]]
    one, other = order[1:][same], order[:-1][same]
    for word in words:
        same = word[one] == word[other]
        one, other = one[same], other[same]
    if len(one):
        raise RepeatedKey(int(one[0]))


def _displace(h: npt.NDArray[np.uint64]) -> tuple[Array, Array, int] | None:
    """Find the displacements; None if two hashes are equal, or a bucket fits nowhere.

    Buckets are placed by decreasing size, as in the paper. All buckets of one size try one displacement after
    the other together. If several buckets claim a slot, one wins, and the others try the next displacement.
    """
    n = len(h)
    buckets, slots = n // KEYS_PER_BUCKET + 1, n * SLOTS_FOR_7 // 7 + 1
    bucket = bucket_of(h, np.uint64(buckets))
    sizes = np.bincount(bucket, minlength=buckets)
    order = np.argsort(bucket, kind="stable")
    begins = np.cumsum(sizes) - sizes
    by_bucket = h[order]
    displacement, slot = np.zeros(buckets, np.uint16), np.empty(n, np.int64)
    used, claimed = np.zeros(slots, np.bool_), np.empty(slots, np.int32)
    for size in range(int(sizes.max(initial=0)), 0, -1):
        rest = np.flatnonzero(sizes == size)
        keys = by_bucket[begins[rest][:, None] + np.arange(size)]
        if size > 1 and _equal_in_rows(keys).any():
            return None
        for step in range(1 << 16):
            if not len(rest):
                break
            at = slot_of(keys.copy(), np.array([step], np.uint64), np.uint64(slots))
            free = ~used[at].any(axis=1)
            if size > 1:
                free[free] = ~_equal_in_rows(at[free])
            fits = np.flatnonzero(free)
            claimed[at[fits]] = fits[:, None]
            won = fits[(claimed[at[fits]] == fits[:, None]).all(axis=1)]
            used[at[won]] = True
            slot[begins[rest[won]][:, None] + np.arange(size)] = at[won]
            displacement[rest[won]] = step
            left = np.ones(len(rest), np.bool_)
            left[won] = False
            rest, keys = rest[left], keys[left]
        if len(rest):
            return None
    slot_by_key = np.empty(n, np.int64)
    slot_by_key[order] = slot
    return displacement, slot_by_key, slots


def _equal_in_rows(rows: Array) -> npt.NDArray[np.bool_]:
    """Return which rows contain a value more than once."""
    ordered = np.sort(rows, axis=1)
    twice: npt.NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return twice
