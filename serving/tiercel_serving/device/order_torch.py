"""Order by (score descending, row ascending) on a device: :mod:`tiercel_serving.ranked`, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

_ALL_BUT_SIGN = 0x7FFFFFFF
_LOWER = 0xFFFFFFFF

#: Lists of up to so many keys are sorted whole: choosing the smallest, and then sorting them, takes longer.
_SORTED_WHOLE = 1024

#: Type of device → pairs of keys, over all users, up to which they are counted instead of sorted: one user's
#: few hundred keys are sorted by a single warp, which takes an H200 29 µs.
COUNTED: dict[str, int] = {"cuda": 1 << 21}


def sort_keys(scores: Tensor, rows: Tensor) -> Tensor:
    """Return int64 keys that sort ascending like (score descending, row ascending).

    The same numbers as :func:`tiercel_serving.ranked.sort_keys` gives for float32 scores without NaN and
    int64 rows below 2**31, of shapes that broadcast.
    """
    bits = (0 - scores).view(torch.int32)
    flips = ((bits >> 31) & _ALL_BUT_SIGN) ^ bits
    return (flips.long() << 32) | rows


def read_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores and rows that :func:`sort_keys` put together."""
    flipped = (keys >> 32).int()
    bits = flipped ^ ((flipped >> 31) & _ALL_BUT_SIGN)
    return 0 - bits.view(torch.float32), keys & _LOWER


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
    numbers = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
    return torch.empty_like(keys).scatter_(1, places_of(keys), numbers)


def places_of(keys: Tensor) -> Tensor:
    """Return each key's place in that order ``[B, M]``: how many keys come before it.

    The least int64 is no key.
    """
    size = keys.shape[1]
    # One less for those before, so that of equal keys the first comes first.
    earlier = torch.ones((size, size), dtype=torch.int64, device=keys.device).tril_(-1)
    return ((keys[:, None] - earlier) < keys[:, :, None]).sum(dim=2)


def _are_few(keys: Tensor) -> bool:
    users, size = keys.shape
    return users * size * size <= COUNTED.get(keys.device.type, 0)


def first_of(flags: Tensor, count: int) -> Tensor:
    """Return the places of each user's first ``count`` flags ``[B, M]``, in order; M where there is none."""
    users, size = flags.shape
    slots = (flags.cumsum(dim=1) - 1).masked_fill(~flags, count).clamp_(max=count)
    found = slots.new_full((users, count + 1), size)
    return found.scatter_(1, slots, torch.arange(size, device=flags.device).expand(users, size))[:, :count]


def repeated(rows: Tensor) -> Tensor:
    """Return ``[B, M]``: which rows stand in their user's list before."""
    ordered, order = rows.sort(dim=1, stable=True)
    again = torch.zeros_like(rows, dtype=torch.bool)
    return again.scatter(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
