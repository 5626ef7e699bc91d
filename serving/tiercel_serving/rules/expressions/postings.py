"""Inverted index of an item column: which items have an element of a user's list."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...columns import Column, flat_ranges
from ...ranked.order import Rows
from ...spec import Array

Flags = npt.NDArray[np.bool_]

#: The validity of one row that is not null; read-only.
_ONE_ROW = np.ones(1, np.bool_)
_ONE_ROW.flags.writeable = False


class Elements(NamedTuple):
    """The lists of users, or one ``shared`` list, whose owner is 0.

    ``values`` are the elements of all lists end to end, ``owner`` the user of each, ``valid`` which lists are
    not null, ``absent`` which users did not send one (None: all did).
    """

    values: Array
    owner: Rows
    valid: Flags
    absent: Flags | None
    shared: bool

    def spread(self, users: int) -> Elements:
        """Return a shared list as one list per user."""
        if not self.shared:
            return self
        owner = np.repeat(np.arange(users), len(self.values))
        return self._replace(values=np.tile(self.values, users), owner=owner)


def real_elements(column: Column) -> Flags:
    """Return which elements of a column are not null."""
    real = np.ones(len(column.values), np.bool_) if column.valid is None else column.valid
    return real & ~np.isnan(column.values) if column.values.dtype.kind == "f" else real


def valid_rows(column: Column) -> Flags:
    """Return ``[n]``: which rows of a column are not null."""
    if column.offsets is None:
        return real_elements(column)
    if column.row_valid is None:
        return _ONE_ROW if len(column) == 1 else np.ones(len(column), np.bool_)
    return column.row_valid


def flat(column: Column) -> tuple[Array, Rows]:
    """Return the elements of a column that are not null, and the row of each."""
    if len(column) == 1 and column.offsets is not None and column.valid is None:
        # Fast path for one request's list, which saves a dozen NumPy calls.
        begin, end = column.offsets.tolist() if column.row_valid is None or column.row_valid[0] else (0, 0)
        if column.values.dtype.kind != "f":
            return column.values[begin:end], np.zeros(end - begin, np.int64)
    lengths = np.ones(len(column), np.int64) if column.offsets is None else np.diff(column.offsets)
    begin = 0 if column.offsets is None else int(column.offsets[0])
    owner = np.repeat(np.arange(len(column)), lengths)
    real = real_elements(column)[begin : begin + len(owner)] & valid_rows(column)[owner]
    return column.values[begin : begin + len(owner)][real], owner[real]


#: Values that more than this share of the items have are stored as masks: faster, and hardly larger.
_FREQUENT = 1 / 16

#: Columns with at most this many distinct values use one bit per value, so one gather reads all of an item's.
_BITS = 64

#: If no item has more elements than this, they are also stored as a table, for queries about few items.
_SHORT = 16


class Postings:
    """Value → the items that have it, for a column ``[I]`` of values or lists."""

    def __init__(self, column: Column) -> None:
        self.valid = valid_rows(column)
        #: Whether no row is null.
        self.complete = bool(self.valid.all())
        count = len(self.valid)
        values, owner = flat(column)
        self._values, codes = np.unique(values, return_inverse=True)
        # Looking up a few texts in a dict is faster than comparing arrays of objects.
        text = self._values.dtype == np.object_
        self._code_of = {one: code for code, one in enumerate(self._values.tolist())} if text else {}
        self._bits: Array | None = None
        if len(self._values) <= _BITS:
            kind: Any = np.uint32 if len(self._values) <= _BITS // 2 else np.uint64
            self._bits = np.zeros(count, kind)
            self._bit_of = {value: 1 << code for value, code in self._code_of.items()}
            np.bitwise_or.at(self._bits, owner, kind(1) << codes.astype(kind))
            return
        order = codes.argsort(kind="stable")
        self._rows = owner[order]
        self._offsets = np.searchsorted(codes[order], np.arange(len(self._values) + 1))
        self._frequent: dict[int, Flags] = {}
        for code in np.flatnonzero(np.diff(self._offsets) > count * _FREQUENT).tolist():
            self._frequent[code] = np.zeros(count, np.bool_)
            self._frequent[code][self._rows[self._offsets[code] : self._offsets[code + 1]]] = True
        self._table = _table(codes, owner, count, len(self._values))

    def having(self, lists: Elements, users: int, rows: Rows | None) -> Flags:
        """Return which items have an element of the user's list, ``[users, I]``; or which ``rows [B, n]``."""
        if self._bits is not None:
            has = self._bits if rows is None else self._bits.take(rows)
            found: Flags = (has & self._wanted(lists, users)).astype(np.bool_)
            return found if found.ndim == 2 else found[None]
        owner, places = self._known(lists)
        if rows is not None and self._table is not None:
            width = len(self._values) + 1
            wanted = np.zeros(users * width, np.bool_)
            wanted[owner * width + places] = True
            first = np.arange(users)[:, None] * width
            slots = [wanted.take(slot.take(rows) + first) for slot in self._table]
            return reduce(operator.or_, slots)
        found = np.zeros((users, len(self.valid)), np.bool_)
        rare = np.ones(len(places), np.bool_)
        for code in self._frequent.keys() & set(places.tolist()):
            here = places == code
            rare &= ~here
            found[owner[here]] |= self._frequent[code]
        owner, places = owner[rare], places[rare]
        begins = self._offsets[places]
        lengths = self._offsets[places + 1] - begins
        found[np.repeat(owner, lengths), self._rows[flat_ranges(begins, lengths)]] = True
        if rows is None:
            return found
        return np.take_along_axis(np.broadcast_to(found, (len(rows), found.shape[1])), rows, axis=1)

    def _wanted(self, lists: Elements, users: int) -> Array:
        """Return ``[users, 1]``, the bits of all values in each user's list; for one user, maybe a scalar."""
        assert self._bits is not None
        kind: Any = self._bits.dtype.type
        if users == 1 and self._code_of:
            # Plain Python integers save a dozen NumPy calls.
            bits = 0
            for value in lists.values.tolist():
                bits |= self._bit_of.get(value, 0)
            return kind(bits)  # type: ignore[no-any-return]
        owner, places = self._known(lists)
        wanted = np.zeros((users, 1), kind)
        np.bitwise_or.at(wanted[:, 0], owner, kind(1) << places.astype(kind))
        return wanted

    def _known(self, lists: Elements) -> tuple[Rows, Rows]:
        """Return the list elements that occur in the column: the owner and the code of each."""
        if not len(self._values) or not len(lists.values):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if lists.values.dtype == np.object_:
            found = [self._code_of.get(value, -1) for value in lists.values.tolist()]
            codes = np.array(found, np.int64)
            return lists.owner[codes >= 0], codes[codes >= 0]
        places = np.searchsorted(self._values, lists.values)
        places[places == len(self._values)] = 0
        known = np.asarray(self._values[places] == lists.values, np.bool_)
        return lists.owner[known], places[known]


def _table(codes: Rows, owner: Rows, items: int, empty: int) -> npt.NDArray[np.int32] | None:
    """Return the items' codes ``[L, I]``, padded with ``empty``; None if a list is too long."""
    counts = np.bincount(owner, minlength=items)
    length = int(counts.max(initial=1))
    if length > _SHORT:
        return None
    table = np.full((length, items), empty, np.int32)
    table[np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts), owner] = codes
    return table
