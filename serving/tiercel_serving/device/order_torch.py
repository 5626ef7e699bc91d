"""Order by (score descending, row ascending) on a device: :mod:`tiercel_serving.ranked`, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

_ALL_BUT_SIGN = 0x7FFFFFFF
_LOWER = 0xFFFFFFFF

#: Lists of up to so many keys are sorted whole: choosing the smallest, and then sorting them, takes longer.
_SORTED_WHOLE = 1024


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
    if count >= keys.shape[1] or keys.shape[1] <= _SORTED_WHOLE:
        return keys.sort(dim=1).values[:, :count]
    return keys.topk(count, dim=1, largest=False, sorted=True).values


def repeated(rows: Tensor) -> Tensor:
    """Return ``[B, M]``: which rows stand in their user's list before."""
    ordered, order = rows.sort(dim=1, stable=True)
    again = torch.zeros_like(rows, dtype=torch.bool)
    return again.scatter(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
