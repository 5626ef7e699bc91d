"""Which items each user of a batch must not get."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from ..native.marks import mark
from .order import Rows

#: Up to this many cells a bitmap of users × items is the faster mask; beyond it, clearing and touching
#: its pages costs more than a binary search. Measured with 200 masked items a user: 64 users × 10,000
#: items 0.4 ms against 6, 16 × 300,000 10 ms against 0.6.
BITMAP_CELLS = 700_000

#: Where the table of one user begins; nobody writes to it.
_ONE_BASE = np.zeros((1, 1), np.int64)
_ONE_BASE.flags.writeable = False


class Mask(ABC):
    """Which items each user of a batch must not get. The pad row is always among them.

    Parameters
    ----------
    users, items
        B and I.
    flat, counts
        Item rows of all users end to end, and ``[B]`` how many belong to each.
    """

    def __init__(self, users: int, items: int, flat: Rows, counts: Rows) -> None:
        self.users = users
        #: ``[B]`` how many rows came with the users, before any were added.
        self.had = counts
        self._flat = flat
        self._added: list[Rows] = []
        self._shape, self._pad = (users, items + 1), items
        self._base = _ONE_BASE if users == 1 else (np.arange(users) * (items + 1))[:, None]
        # To find them is an appreciable part of a search, and a search asks twice.
        self._rows: dict[int, Rows] = {}
        self._start(flat if users == 1 else flat + np.repeat(self._base[:, 0], counts))

    def add(self, rows: Rows) -> None:
        """Mask ``[B, M]`` more rows."""
        self._rows.clear()
        self._added.append(rows)
        self._mask(rows if self.users == 1 else rows + self._base)

    def allows(self, rows: Rows, users: Rows | None = None) -> npt.NDArray[np.bool_]:
        """Return for ``[B, M]`` rows whether their user may get them; ``users`` are those of the rows."""
        if self.users == 1:
            return self._allows(rows)
        return self._allows(rows + (self._base if users is None else self._base[users]))

    def few(self, most: int) -> dict[int, Rows]:
        """Return what those users may get, ascending, whom an allowed set leaves ``most`` rows at most."""
        return {}

    def rows_of(self, user: int) -> Rows:
        """Return the rows that one user must not get, ascending, without the pad row."""
        if user not in self._rows:
            self._rows[user] = self._rows_of(user)
        return self._rows[user]

    def sample(self, user: int, masked: int, most: int) -> Rows:
        """Return some of the ``masked`` rows that one user must not get: about ``most``, spread evenly.

        They are taken from what was given: to find all that are masked costs more than a sample.
        """
        end = int(self.had[: user + 1].sum())
        added = (rows[user] for rows in self._added)
        parts = [self._flat[end - int(self.had[user]) : end], *(rows[rows != self._pad] for rows in added)]
        step = max(-(-sum(map(len, parts)) // most), 1)
        return np.concatenate([part[::step] for part in parts])

    @abstractmethod
    def counts(self) -> Rows:
        """Return ``[B]`` how many rows each user must not get, without the pad row."""

    @abstractmethod
    def table(self) -> npt.NDArray[np.bool_]:
        """Return ``[B, I + 1]``: True where a user must not get an item."""

    # Below, a user's item is one number: its place in that table, read row by row.
    @abstractmethod
    def _start(self, seen: Rows) -> None: ...

    @abstractmethod
    def _mask(self, cells: Rows) -> None: ...

    @abstractmethod
    def _allows(self, cells: Rows) -> npt.NDArray[np.bool_]: ...

    @abstractmethod
    def _rows_of(self, user: int) -> Rows: ...


def make_mask(users: int, items: int, flat: Rows, counts: Rows) -> Mask:
    """Return a :class:`Mask` of the kind that is the faster for so many users and items."""
    kind = BitmapMask if users * (items + 1) <= BITMAP_CELLS else KeyMask
    return kind(users, items, flat, counts)


class BitmapMask(Mask):
    """A mask that is a table of users × items: for small ones."""

    def _start(self, seen: Rows) -> None:
        users, width = self._shape
        self._cells = np.zeros(users * width, np.bool_)
        self._close(seen)

    def _close(self, seen: Rows) -> None:
        """Mask the pad rows, and what was seen."""
        self._cells[self._pad :: self._shape[1]] = True
        self._mask(seen)

    def _mask(self, cells: Rows) -> None:
        mark(self._cells, cells)

    def _allows(self, cells: Rows) -> npt.NDArray[np.bool_]:
        masked: npt.NDArray[np.bool_] = self._cells.take(cells)
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
        return self._cells.reshape(self._shape)


class AllowedMask(BitmapMask):
    """A mask that knows what its users may get: a table of users × items, however large.

    Parameters
    ----------
    allowed
        ``[B, I + 1]``: what each user may get, but for the rows below; the pad row is masked anyway.
    flat, counts
        As for :class:`Mask`.
    """

    def __init__(self, allowed: npt.NDArray[np.bool_], flat: Rows, counts: Rows) -> None:
        self._allowed = allowed
        super().__init__(len(allowed), allowed.shape[1] - 1, flat, counts)

    def _start(self, seen: Rows) -> None:
        self._cells = ~self._allowed.reshape(-1)
        self._close(seen)

    def sample(self, user: int, masked: int, most: int) -> Rows:
        """Look at some cells of the user's row: what was given is the least of what is masked."""
        step = masked // most | 1
        rows: Rows = np.flatnonzero(self.table()[user, :-1:step]) * step
        if 2 * len(rows) > min(masked, most):
            return rows
        # Too few, where what is masked has a period of its own.
        rows = self.rows_of(user)
        return rows[:: -(-masked // most)]

    def few(self, most: int) -> dict[int, Rows]:
        """Look for few free cells in each row of the table."""
        left = self._shape[1] - np.count_nonzero(self.table(), axis=1)
        return {user: np.flatnonzero(~self.table()[user]) for user in np.flatnonzero(left <= most).tolist()}


class KeyMask(Mask):
    """A mask that is a sorted list of (user, item): for large catalogues."""

    def _start(self, seen: Rows) -> None:
        self._keys, self._pads = seen, self._base[:, 0] + self._pad
        self._mask(self._pads)

    def _mask(self, cells: Rows) -> None:
        # The seen rows arrive sorted: a stable sort merges such runs.
        keys = np.concatenate([self._keys, cells.reshape(-1)])
        keys.sort(kind="stable")
        self._keys = keys[np.append(True, keys[1:] != keys[:-1])]

    def _allows(self, cells: Rows) -> npt.NDArray[np.bool_]:
        # The last key is the last user's pad row and no key lies beyond it.
        allowed: npt.NDArray[np.bool_] = self._keys[np.searchsorted(self._keys, cells)] != cells
        return allowed

    def _rows_of(self, user: int) -> Rows:
        base, pad = int(self._base[user, 0]), self._pads[user]
        begin, end = np.searchsorted(self._keys, [base, pad]).tolist()
        rows: Rows = self._keys[begin:end] - base
        return rows

    def counts(self) -> Rows:
        """Measure the users' runs of the list."""
        if self.users == 1:
            return np.array([len(self._keys) - 1])
        counts: Rows = np.diff(np.searchsorted(self._keys, self._pads, side="right"), prepend=0) - 1
        return counts

    def table(self) -> npt.NDArray[np.bool_]:
        """Return a table that is made of the list."""
        cells = np.zeros(self._shape, np.bool_)
        cells.reshape(-1)[self._keys] = True
        return cells
