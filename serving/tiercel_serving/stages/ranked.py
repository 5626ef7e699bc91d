"""Order by (score descending, row ascending), masks, and the first allowed of an ordered list."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

#: Up to this many cells a bitmap of users × items is the faster mask; beyond it, touching a page for
#: nearly every cell costs more than a binary search (measured with 64 users of 200 masked items each).
BITMAP_CELLS = 1 << 23


def order_by_score(scores: Scores, rows: Rows) -> Rows:
    """Return the places of each user's candidates by (score descending, row ascending).

    Parameters
    ----------
    scores
        ``[B, M]`` float32 without NaN; -0.0 equals 0.0.
    rows
        ``[B, M]`` int64, not negative, below 2**32.

    Returns
    -------
    ``[B, M]`` int64 places along the second axis.
    """
    if len(scores) == 1:
        # One lexsort beats the key's dozen small steps; on many rows it is the other way round.
        order: Rows = np.lexsort((rows[0], -scores[0]))
        return order[None]
    return _keys(scores, rows).argsort(axis=1)


def sort_by_score(scores: Scores, rows: Rows) -> tuple[Scores, Rows]:
    """Return each user's scores and rows by (score descending, row ascending).

    Parameters and shapes are those of :func:`order_by_score`; -0.0 may come back as 0.0.
    """
    if len(scores) == 1:
        order = np.lexsort((rows[0], -scores[0]))
        return scores[0][order][None], rows[0][order][None]
    keys = _keys(scores, rows)
    keys.sort(axis=1)
    flipped = ~(keys >> 32).astype(np.int32)
    return (flipped ^ ((flipped >> 31) & 0x7FFFFFFF)).view(np.float32), keys & 0xFFFFFFFF


def _keys(scores: Scores, rows: Rows) -> Rows:
    """Return int64 keys that sort ascending like (score descending, row ascending)."""
    # Adding 0.0 turns -0.0 into 0.0. The bits of a float, with all but the sign flipped where it is
    # negative, sort as integers do.
    bits = (scores + np.float32(0)).view(np.int32)
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys: Rows = (~ascending).astype(np.int64)
    keys <<= 32
    keys |= rows
    return keys


def first_allowed(allowed: npt.NDArray[np.bool_], count: int) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Return the places of the first ``count`` True of each row.

    Parameters
    ----------
    allowed
        ``[B, M]``.
    count
        How many at most.

    Returns
    -------
    ``[B, count]`` int64 places along the second axis, left aligned (0 where there is none);
    ``[B, count]`` boolean, True where there is one.
    """
    users = len(allowed)
    out = np.zeros((users, count), np.int64)
    if users == 1:
        places = allowed[0].nonzero()[0][:count]
        out[0, : len(places)] = places
        real = np.zeros((1, count), np.bool_)
        real[0, : len(places)] = True
        return out, real
    users_of, places = allowed.nonzero()
    counts = np.count_nonzero(allowed, axis=1)
    rank = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = rank < count
    out[users_of[kept], rank[kept]] = places[kept]
    return out, np.arange(count) < counts[:, None]


class Mask(Protocol):
    """Which items each user of a batch must not get. The pad row is always among them."""

    @property
    def most(self) -> int:
        """Upper bound of the items (without the pad row) that any one user must not get."""
        ...

    def add(self, rows: Rows) -> None:
        """Mask ``[B, M]`` more rows."""
        ...

    def allows(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return for ``[B, M]`` rows whether their user may get them."""
        ...


def make_mask(users: int, items: int, flat: Rows, counts: Rows) -> Mask:
    """Return a mask of ``users`` users over ``items`` items.

    Parameters
    ----------
    users, items
        B and I.
    flat, counts
        Item rows of all users end to end, and ``[B]`` how many belong to each.
    """
    kind = BitmapMask if users * (items + 1) <= BITMAP_CELLS else KeyMask
    return kind(users, items, flat, counts)


class BitmapMask:
    """A mask that is a table of users × items: for small ones."""

    def __init__(self, users: int, items: int, flat: Rows, counts: Rows) -> None:
        self._cells = np.zeros(users * (items + 1), np.bool_)
        self._base = (np.arange(users) * (items + 1))[:, None]
        self._cells[self._base + items] = True
        self._cells[flat + (np.repeat(self._base[:, 0], counts) if users > 1 else 0)] = True
        self._shape = (users, items + 1)

    @property
    def most(self) -> int:
        """Most masked items of any one user."""
        if self._shape[0] == 1:
            return int(np.count_nonzero(self._cells)) - 1
        return int(np.count_nonzero(self._cells.reshape(self._shape), axis=1).max()) - 1

    def add(self, rows: Rows) -> None:
        """Mask ``[B, M]`` more rows."""
        self._cells[rows + self._base] = True

    def allows(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return for ``[B, M]`` rows whether their user may get them."""
        masked: npt.NDArray[np.bool_] = self._cells[rows + self._base]
        return ~masked


class KeyMask:
    """A mask that is a sorted list of (user, item): for large catalogues."""

    def __init__(self, users: int, items: int, flat: Rows, counts: Rows) -> None:
        self._items = items
        self._base = (np.arange(users) * (items + 1))[:, None]
        self._users = users
        ends = self._base[:, 0] + items
        self._keys = np.concatenate([flat + np.repeat(self._base[:, 0], counts), ends])
        self._sort()

    def _sort(self) -> None:
        # The seen rows arrive sorted: a stable sort merges such runs.
        self._keys.sort(kind="stable")
        if len(self._keys) > 1:
            self._keys = self._keys[np.append(True, self._keys[1:] != self._keys[:-1])]

    @property
    def most(self) -> int:
        """Most masked items of any one user."""
        ends = np.searchsorted(self._keys, self._base[:, 0] + self._items, side="right")
        return int(np.diff(ends, prepend=0).max()) - 1

    def add(self, rows: Rows) -> None:
        """Mask ``[B, M]`` more rows."""
        self._keys = np.concatenate([self._keys, (rows + self._base).reshape(-1)])
        self._sort()

    def allows(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return for ``[B, M]`` rows whether their user may get them."""
        keys = rows + self._base
        # The last key is the last user's pad row and no key lies beyond it.
        allowed: npt.NDArray[np.bool_] = self._keys[np.searchsorted(self._keys, keys)] != keys
        return allowed
