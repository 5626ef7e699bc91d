"""Order by (score descending, row ascending) on a device: :mod:`tiercel_serving.ranked.order`, in torch.

For one user each kernel processes a few hundred numbers, hardly longer than its launch takes. So the number
of kernels decides the speed.
"""

from __future__ import annotations

import sys
from functools import cache

import torch
from torch import Tensor

_ALL_BUT_SIGN = 0x7FFFFFFF
_LOWER = 0xFFFFFFFF
_UPPER = 1 if sys.byteorder == "little" else 0

#: Lists of up to this many keys are sorted completely, which is faster than selecting and then sorting.
_SORTED_WHOLE = 1024

#: Type of device → number of pairs of keys, over all users, up to which ranks are counted instead of sorted.
#: A single warp would sort one user's few hundred keys, which takes 29 µs on an H200.
COUNTED: dict[str, int] = {"cuda": 1 << 21}


def sort_keys(scores: Tensor, rows: Tensor) -> Tensor:
    """Return int64 keys that sort ascending like (score descending, row ascending).

    They equal those of :func:`tiercel_serving.ranked.order.sort_keys`, for float32 scores without NaN and
    int64 rows below 2**31. Shapes broadcast, and have at least one axis.
    """
    bits = (0 - scores).view(torch.int32)
    flips = ((bits >> 31) & _ALL_BUT_SIGN) ^ bits
    return torch.add(rows, flips, alpha=1 << 32)


def read_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores (float32) and rows (int64) of keys from :func:`sort_keys`."""
    flipped = keys.view(torch.int32)[..., _UPPER::2]
    bits = flipped ^ ((flipped >> 31) & _ALL_BUT_SIGN)
    return 0 - bits.view(torch.float32), keys & _LOWER


def rows_of(keys: Tensor) -> Tensor:
    """Return only the rows of keys from :func:`sort_keys`."""
    return keys & _LOWER


def scored(keys: Tensor) -> Tensor:
    """Return which keys from :func:`sort_keys` have a score above -inf."""
    return keys < _NO_SCORE


def smallest(keys: Tensor, count: int) -> Tensor:
    """Return the ``count`` smallest keys of each user ``[B, M]`` in order; all of them if there are fewer."""
    if _are_few(keys):
        return torch.empty_like(keys).scatter_(1, places_of(keys), keys)[:, :count]
    if count >= keys.shape[1] or keys.shape[1] <= _SORTED_WHOLE:
        return keys.sort(dim=1).values[:, :count]
    return keys.topk(count, dim=1, largest=False, sorted=True).values


def ascending(keys: Tensor) -> Tensor:
    """Return the stable order ``[B, M]`` of each user's int64 keys, as ``argsort`` does."""
    if not _are_few(keys):
        return keys.argsort(dim=1, stable=True)
    places = numbers(keys.shape[1], keys.device).expand_as(keys)
    return torch.empty_like(keys).scatter_(1, places_of(keys), places)


def arranged(keys: Tensor, count: int, *values: Tensor) -> list[Tensor]:
    """Return the first ``count`` of each user's values ``[B, M]`` in the order of the keys.

    The order of equal keys is undefined.
    """
    if _are_few(keys):
        places = places_of(keys)
        return [
            value.new_empty(keys.shape).scatter_(1, places, value.expand_as(keys))[:, :count]
            for value in values
        ]
    if count >= keys.shape[1] or keys.shape[1] <= _SORTED_WHOLE:
        order = keys.argsort(dim=1)[:, :count]
    else:
        order = keys.topk(count, dim=1, largest=False, sorted=True).indices
    return [value.expand_as(keys).gather(1, order) for value in values]


def places_of(keys: Tensor) -> Tensor:
    """Return each key's rank ``[B, M]``, the number of keys before it; equal keys keep their order.

    The least int64 is not allowed as a key.
    """
    # Subtract 1 from earlier keys, so that the first of equal keys ranks first.
    earlier = _earlier(keys.shape[1], keys.device)
    return ((keys[:, None] - earlier) < keys[:, :, None]).sum(dim=2)


@cache
def numbers(size: int, device: torch.device) -> Tensor:
    """Return 0, 1, … ``[size]`` int64, cached."""
    # A synchronous copy, because the next caller may work on another stream.
    return torch.arange(size).to(device)


@cache
def _earlier(size: int, device: torch.device) -> Tensor:
    """Return ``[size, size]`` int64, 1 where the column is before the row, else 0; cached."""
    return torch.ones((size, size), dtype=torch.int64).tril_(-1).to(device)


def _are_few(keys: Tensor) -> bool:
    users, size = keys.shape
    return users * size * size <= COUNTED.get(keys.device.type, 0)


def first_of(flags: Tensor, count: int, none: int) -> Tensor:
    """Return ``[B, count]`` int64: the places of each user's first set flags, padded with ``none``."""
    users, size = flags.shape
    # Unset flags go to an extra first column.
    slots = flags.cumsum(dim=1) * flags
    found = slots.new_full((users, max(size, count) + 1), none)
    places = numbers(size, flags.device).expand(users, size)
    return found.scatter_(1, slots, places)[:, 1 : count + 1]


#: The least key of a score of -inf; keys of higher scores are smaller.
_NO_SCORE = int(sort_keys(torch.tensor([float("-inf")]), torch.zeros(1, dtype=torch.int64))[0])


def repeated(rows: Tensor) -> Tensor:
    """Return ``[B, M]`` bool, which rows occur earlier in their user's list."""
    ordered, order = rows.sort(dim=1, stable=True)
    again = torch.zeros_like(rows, dtype=torch.bool)
    return again.scatter(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
