"""Sorting by (score descending, row ascending), and the first allowed items of a sorted list."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from ..native import order as native

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

_ZERO = np.float32(0)
_ALL_BUT_SIGN = np.int32(0x7FFFFFFF)
#: Index of the lower int32 half of an int64.
_LOW = 0 if sys.byteorder == "little" else 1


def order_by_score(scores: Scores, rows: Rows) -> Rows:
    """Return the indexes that sort each user's candidates by (score descending, row ascending).

    Parameters
    ----------
    scores
        ``[B, M]`` float32 without NaN; -0.0 equals 0.0.
    rows
        ``[B, M]`` int64, not negative, below 2**31.

    Returns
    -------
    ``[B, M]`` int64 places along the second axis.
    """
    order = native.order_by_score(scores, rows)
    return sort_keys(scores, rows).argsort(axis=1) if order is None else order


def sort_by_score(scores: Scores, rows: Rows) -> tuple[Scores, Rows]:
    """Return each user's scores and rows, sorted by (score descending, row ascending).

    Parameters and shapes are those of :func:`order_by_score`; -0.0 becomes 0.0.
    """
    found = native.sort_by_score(scores, rows)
    if found is not None:
        return found
    keys = sort_keys(scores, rows)
    keys.sort(axis=1)
    return read_keys(keys)


def best_by_score(
    scores: Scores, rows: Rows, count: int, pad: int, masked: npt.NDArray[np.bool_] | None = None
) -> tuple[Scores, Rows]:
    """Return each user's best ``count`` like :func:`sort_by_score`; empty slots hold -inf and ``pad``.

    Parameters
    ----------
    scores
        As for :func:`order_by_score`.
    rows
        ``[B, M]``, or ``[M]`` if they are equal for all users; at most ``pad``.
    count, pad
        How many, and the pad row.
    masked
        ``[B, pad + 1]``: which rows each user must not get; None masks nothing.
    """
    found = native.best_by_score(scores, rows, count, pad, masked)
    if found is not None:
        return found
    keys = sort_keys(scores, rows)
    nothing = int(sort_keys(np.full(1, -np.inf, np.float32), np.array([pad]))[0])
    if masked is not None:
        taken = np.broadcast_to(rows, scores.shape)
        keys[np.take_along_axis(masked, taken, axis=1)] = nothing
    if keys.shape[1] > count:
        keys = np.ascontiguousarray(np.partition(keys, max(count - 1, 0), axis=1)[:, :count])
    elif keys.shape[1] < count:
        keys = np.pad(keys, ((0, 0), (0, count - keys.shape[1])), constant_values=nothing)
    keys.sort(axis=1)
    return read_keys(keys)


def sorted_scores(scores: Scores) -> Scores:
    """Return only each user's sorted scores, as :func:`sort_by_score` does."""
    found = native.sorted_scores(scores)
    if found is not None:
        return found
    negated = np.subtract(_ZERO, scores)
    negated.sort(axis=1)
    return np.subtract(_ZERO, negated)


def sort_keys(scores: Scores, rows: Rows) -> Rows:
    """Return int64 keys that sort ascending like (score descending, row ascending).

    One integer sort is several times faster than a lexsort, and both parts can be read back from the keys.
    The lower half is the row. The upper half is the negated score (0 - x, so that -0.0 equals 0.0): its bits,
    with all but the sign flipped if it is negative, sort like integers.
    """
    bits = np.subtract(_ZERO, scores).view(np.int32)
    flips = bits >> 31
    flips &= _ALL_BUT_SIGN
    flips ^= bits
    keys = np.empty(flips.shape, np.int64)
    halves = keys.view(np.int32)
    halves[..., _LOW::2] = rows
    halves[..., 1 - _LOW :: 2] = flips
    return keys


def read_keys(keys: Rows) -> tuple[Scores, Rows]:
    """Return the scores and rows of keys made by :func:`sort_keys`."""
    flipped = (keys >> 32).astype(np.int32)
    bits = flipped ^ ((flipped >> 31) & _ALL_BUT_SIGN)
    return np.subtract(_ZERO, bits.view(np.float32)), keys & 0xFFFFFFFF


def strictly_falling(scores: Scores) -> Scores:
    """Return scores ``[B, M]``, each below the one before it, changed as little as possible.

    Parameters
    ----------
    scores
        Descending, ties allowed, without NaN; -inf stays unchanged.
    """
    falls = scores[:, 1:] < scores[:, :-1]
    falls |= np.isneginf(scores[:, 1:])
    if falls.all():
        return scores
    if len(scores) > 1:
        tied = ~falls.all(axis=1)
        if not tied.all():
            falling = scores.copy()
            falling[tied] = strictly_falling(scores[tied])
            return falling
    places = np.arange(scores.shape[1])
    steps = sort_keys(scores, np.zeros(scores.shape, np.int64)) >> 32
    steps = np.maximum.accumulate(steps - places, axis=1) + places
    lowest = int(sort_keys(np.array([[np.finfo(np.float32).min]]), np.zeros((1, 1), np.int64))[0, 0]) >> 32
    lowered, _ = read_keys(np.minimum(steps, lowest) << 32)
    return np.where(np.isneginf(scores), scores, lowered)


def pick(array: npt.NDArray[Any], places: Rows) -> npt.NDArray[Any]:
    """Return ``array[b, places[b, m]]`` for all b and m of an array ``[B, N]`` and places ``[B, M]``."""
    if len(places) == 1:
        picked: npt.NDArray[Any] = array[0].take(places[0])
        return picked[None]
    base = (np.arange(len(places)) * array.shape[1])[:, None]
    return array.reshape(-1).take(places + base)


def first_allowed(allowed: npt.NDArray[np.bool_], count: int) -> tuple[Rows, npt.NDArray[np.bool_] | None]:
    """Return the indexes of at most the first ``count`` True values in each row of ``[B, M]``.

    Returns
    -------
    ``[B, count]`` int64 indexes along the second axis, left aligned (0 in empty slots);
    ``[B, count]`` boolean, False in empty slots, or None if there are none.
    """
    users = len(allowed)
    if users == 1:
        found = allowed[0].nonzero()[0][:count]
        if len(found) == count:
            return found[None], None
        out = np.zeros((1, count), np.int64)
        out[0, : len(found)] = found
        return out, (np.arange(count) < len(found))[None]
    users_of, places = allowed.nonzero()
    ends = np.searchsorted(users_of, np.arange(users + 1))
    counts = ends[1:] - ends[:-1]
    if counts.min() >= count:
        return places[ends[:-1, None] + np.arange(count)], None
    real = np.arange(count) < counts[:, None]
    out = np.zeros((users, count), np.int64)
    out[real] = places[(ends[:-1, None] + np.arange(count))[real]]
    return out, real


def last_real(rows: Rows, real: npt.NDArray[np.bool_], length: int, pad: int) -> Rows:
    """Return the last ``length`` rows of ``[B, W]`` that are real, in order, left aligned and padded."""
    after = np.cumsum(real[:, ::-1], axis=1)[:, ::-1]
    kept = real & (after <= length)
    users, places = kept.nonzero()
    counts = np.count_nonzero(kept, axis=1)
    out = np.full((len(rows), length), pad, np.int64)
    out[users, np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)] = rows[users, places]
    return out


def repeated(rows: Rows) -> npt.NDArray[np.bool_]:
    """Return ``[B, M]``: which rows occur earlier in their user's list."""
    order = rows.argsort(axis=1, kind="stable")
    again = np.zeros(rows.shape, np.bool_)
    ordered = np.take_along_axis(rows, order, axis=1)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return again
