"""Which items each user of a batch must not get."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from ..native.marks import mark
from .order import Rows

#: Up to this many cells, a bitmap of users × items is faster than sorted keys; beyond it, clearing and
#: touching its pages costs more than binary searches. Bitmap against keys, with 200 masked items per user:
#: 0.4 ms against 6 for 64 users × 10,000 items, 10 ms against 0.6 for 16 × 300,000.
BITMAP_CELLS = 700_000

#: Offsets of the users in the table, if there is one user; read-only.
_ONE_BASE = np.zeros((1, 1), np.int64)
_ONE_BASE.flags.writeable = False


class Mask(ABC):
    """Which items each user of a batch must not get. The pad row is always among them.

    Parameters
    ----------
    users, items
        B and I.
    flat, counts
        Masked item rows of all users end to end, and each user's number ``[B]``.
    """

    def __init__(self, users: int, items: int, flat: Rows, counts: Rows) -> None:
        self.users = users
        #: ``[B]``, the number of rows given for each user, before any were added.
        self.had = counts
        self._flat = flat
        self._added: list[Rows] = []
        self._shape, self._pad = (users, items + 1), items
        self._base = _ONE_BASE if users == 1 else (np.arange(users) * (items + 1))[:, None]
        # Cached: finding them is a noticeable part of a search, which needs them twice.
        self._rows: dict[int, Rows] = {}
        self._start(flat if users == 1 else flat + np.repeat(self._base[:, 0], counts))

    def add(self, rows: Rows) -> None:
        """Mask ``[B, M]`` more rows."""
        self._rows.clear()
        self._added.append(rows)
        self._mask(rows if self.users == 1 else rows + self._base)

    def allows(self, rows: Rows, users: Rows | None = None) -> npt.NDArray[np.bool_]:
        """Return ``[B, M]``: whether users may get the rows; ``users [B]`` are their users, None for all."""
        if self.users == 1:
            return self._allows(rows)
        return self._allows(rows + (self._base if users is None else self._base[users]))

    def few(self, most: int) -> dict[int, Rows]:
        """Return user → allowed rows, ascending, for users whose allowed set leaves at most ``most`` rows."""
        return {}

    def rows_of(self, user: int) -> Rows:
        """Return the rows that one user must not get, ascending, without the pad row."""
        if user not in self._rows:
            self._rows[user] = self._rows_of(user)
        return self._rows[user]

    def sample(self, user: int, masked: int, most: int) -> Rows:
        """Return an evenly spread sample, about ``most``, of the ``masked`` rows that one user must not get.

        It is taken from the rows as given, since finding all masked rows costs more than the sample.
        """
        end = int(self.had[: user + 1].sum())
        added = (rows[user] for rows in self._added)
        parts = [self._flat[end - int(self.had[user]) : end], *(rows[rows != self._pad] for rows in added)]
        step = max(-(-sum(map(len, parts)) // most), 1)
        return np.concatenate([part[::step] for part in parts])

    @abstractmethod
    def counts(self) -> Rows:
        """Return ``[B]``, the number of rows that each user must not get, without the pad row."""

    @abstractmethod
    def table(self) -> npt.NDArray[np.bool_]:
        """Return ``[B, I + 1]``: True where a user must not get an item."""

    # Below, a *cell* is the flat index of a user's item in that table.
    @abstractmethod
    def _start(self, seen: Rows) -> None: ...

    @abstractmethod
    def _mask(self, cells: Rows) -> None: ...

    @abstractmethod
    def _allows(self, cells: Rows) -> npt.NDArray[np.bool_]: ...

    @abstractmethod
    def _rows_of(self, user: int) -> Rows: ...


def make_mask(users: int, items: int, flat: Rows, counts: Rows) -> Mask:
    """Return a :class:`Mask` of the kind that is faster for this number of users and items."""
    kind = BitmapMask if users * (items + 1) <= BITMAP_CELLS else KeyMask
    return kind(users, items, flat, counts)


class BitmapMask(Mask):
    """A mask stored as a table of users × items, for small tables."""

    def _start(self, seen: Rows) -> None:
        self._table = np.zeros(self._shape, np.bool_)
        mark(self._table, seen, self._shape[1])

    def _mask(self, cells: Rows) -> None:
        mark(self._table, cells)

    def _allows(self, cells: Rows) -> npt.NDArray[np.bool_]:
        masked: npt.NDArray[np.bool_] = self._table.take(cells)
        return ~masked

    def _rows_of(self, user: int) -> Rows:
        rows: Rows = np.flatnonzero(self.table()[user])[:-1]
        return rows

    def counts(self) -> Rows:
        """Count the masked cells of each row of the table."""
        counts: Rows = np.array([np.count_nonzero(row) - 1 for row in self.table()])
        return counts

    def table(self) -> npt.NDArray[np.bool_]:
        """Return the table itself."""
        return self._table


class AllowedMask(BitmapMask):
    """A mask with an allowed set for each user, stored as a table of users × items of any size.

    Parameters
    ----------
    allowed
        ``[B, I + 1]``: the items that each user may get, apart from the rows below; the pad row is always
        masked.
    flat, counts
        As for :class:`Mask`.
    """

    def __init__(self, allowed: npt.NDArray[np.bool_], flat: Rows, counts: Rows) -> None:
        self._allowed = allowed
        super().__init__(len(allowed), allowed.shape[1] - 1, flat, counts)

    def _start(self, seen: Rows) -> None:
        self._table = np.logical_not(self._allowed, order="C")
        mark(self._table, seen, self._shape[1])

    def sample(self, user: int, masked: int, most: int) -> Rows:
        """Return a sample of the user's table row: most masked items are not among the given rows."""
        step = masked // most | 1
        rows: Rows = np.flatnonzero(self.table()[user, :-1:step]) * step
        if 2 * len(rows) > min(masked, most):
            return rows
        # Too few were hit, as happens if masked rows are periodic.
        rows = self.rows_of(user)
        return rows[:: -(-masked // most)]

    def few(self, most: int) -> dict[int, Rows]:
        """Return user → allowed rows, ascending, for users with at most ``most`` of them."""
        left = self._shape[1] - np.count_nonzero(self.table(), axis=1)
        return {user: np.flatnonzero(~self.table()[user]) for user in np.flatnonzero(left <= most).tolist()}


class KeyMask(Mask):
    """A mask stored as a sorted list of (user, item) keys, for large catalogues."""

    def _start(self, seen: Rows) -> None:
        self._keys, self._pads = seen, self._base[:, 0] + self._pad
        self._mask(self._pads)

    def _mask(self, cells: Rows) -> None:
        # Seen rows are mostly sorted, and a stable sort merges such runs quickly.
        keys = np.concatenate([self._keys, cells.reshape(-1)])
        keys.sort(kind="stable")
        self._keys = keys[np.append(True, keys[1:] != keys[:-1])]

    def _allows(self, cells: Rows) -> npt.NDArray[np.bool_]:
        # The last key is that of the last user's pad row, and no cell lies beyond it.
        allowed: npt.NDArray[np.bool_] = self._keys[np.searchsorted(self._keys, cells)] != cells
        return allowed

    def _rows_of(self, user: int) -> Rows:
        base, pad = int(self._base[user, 0]), self._pads[user]
        begin, end = np.searchsorted(self._keys, [base, pad]).tolist()
        rows: Rows = self._keys[begin:end] - base
        return rows

    def counts(self) -> Rows:
        """Return the lengths of the users' runs in the list, without the pad rows."""
        if self.users == 1:
            return np.array([len(self._keys) - 1])
        counts: Rows = np.diff(np.searchsorted(self._keys, self._pads, side="right"), prepend=0) - 1
        return counts

    def table(self) -> npt.NDArray[np.bool_]:
        """Return a table built from the list."""
        table = np.zeros(self._shape, np.bool_)
        mark(table, self._keys)
        return table
