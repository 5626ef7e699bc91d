"""Numbers that look drawn, and are a function of a seed and an item: the same alone and in company.

SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), of the seed, then
of the item.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..ranked import Rows
from .per_request import PerRequest

#: What a request sends so that something is explored; without one nothing is. The same seed draws the same.
SEED = PerRequest("seed", None, 0.0, 2.0**53, whole=True)

_STEP, _ONE, _TWO = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ALL = 2**64 - 1


def uniform(seeds: npt.NDArray[np.float64], rows: Rows, of: int) -> npt.NDArray[np.float64]:
    """Return numbers ``[B, M]`` between 0 and 1, both excluded.

    Parameters
    ----------
    seeds
        ``[B, 1]``; what comes of NaN means nothing.
    rows
        ``[B, M]``: what is drawn for, not negative.
    of
        Which draw it is: a number of each kind of step.
    """
    first = _mixed(np.nan_to_num(seeds).astype(np.uint64) + np.uint64(of * _STEP & _ALL))
    return ((_mixed(first ^ rows.astype(np.uint64)) >> np.uint64(11)) + 0.5) / 2.0**53


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(_STEP)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_ONE)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_TWO)
    return x ^ (x >> np.uint64(31))


def plain_uniform(seed: float, row: int, of: int) -> float:
    """Return one such number, in Python's own integers."""
    first = _plain_mixed((int(seed) + of * _STEP) & _ALL)
    return ((_plain_mixed(first ^ row) >> 11) + 0.5) / 2.0**53


def _plain_mixed(x: int) -> int:
    x = (x + _STEP) & _ALL
    x = ((x ^ (x >> 30)) * _ONE) & _ALL
    x = ((x ^ (x >> 27)) * _TWO) & _ALL
    return x ^ (x >> 31)
