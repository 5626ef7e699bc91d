"""Pseudo-random numbers as a function of a seed and an item, independent of the rest of the batch.

SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") is applied to the
seed, then to the result and the item.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..native.chance import draw_uniform
from ..problems import Range
from ..ranked.order import Rows
from .per_request import PerRequest

#: The seed that a request sends to enable exploration. Equal seeds give equal draws.
SEED = PerRequest("seed", None, 0.0, 2.0**53, whole=True)

#: Range of valid seeds.
SEEDS = Range(0, 2**53, whole=True)

_STEP, _ONE, _TWO = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ALL = 2**64 - 1
# NumPy scalars, created once.
_STEPS, _ONES, _TWOS, _30, _27, _31, _11 = map(np.uint64, (_STEP, _ONE, _TWO, 30, 27, 31, 11))


def uniform(seeds: npt.NDArray[np.float64], rows: Rows, of: int) -> npt.NDArray[np.float64]:
    """Return numbers ``[B, M]`` between 0 and 1, both excluded.

    Parameters
    ----------
    seeds
        ``[B, 1]`` seeds; the numbers of a NaN seed are meaningless.
    rows
        ``[B, M]``, not negative: what each number is drawn for.
    of
        Number of the draw, distinct for each use in the steps.
    """
    if seeds.size == 1:
        # Python integers for a single number: NumPy takes as long for one as for hundreds.
        seed = seeds.item()
        if seed != seed:
            return np.full(rows.shape, 0.5)
        if rows.size == 1:
            return np.full(rows.shape, plain_uniform(seed, rows.item(), of))
    offset = of * _STEP & _ALL
    found = draw_uniform(seeds, rows, offset)
    if found is not None:
        return found
    first = np.where(np.isnan(seeds), 0, seeds).astype(np.uint64)
    first += np.uint64(offset)
    _mix(first)
    mixed = first ^ rows.astype(np.uint64)
    _mix(mixed)
    mixed >>= _11
    drawn = mixed + 0.5
    drawn *= 2.0**-53
    return drawn


def _mix(x: npt.NDArray[np.uint64]) -> None:
    """Mix numbers in place."""
    x += _STEPS
    x ^= x >> _30
    x *= _ONES
    x ^= x >> _27
    x *= _TWOS
    x ^= x >> _31


def plain_uniform(seed: float, row: int, of: int) -> float:
    """Return one number of :func:`uniform`, in plain Python integers."""
    return ((_plain_mixed(_plain_first(seed, of) ^ row) >> 11) + 0.5) / 2.0**53


def _plain_first(seed: float, of: int) -> int:
    return _plain_mixed((int(seed) + of * _STEP) & _ALL)


def _plain_mixed(x: int) -> int:
    x = (x + _STEP) & _ALL
    x = ((x ^ (x >> 30)) * _ONE) & _ALL
    x = ((x ^ (x >> 27)) * _TWO) & _ALL
    return x ^ (x >> 31)
