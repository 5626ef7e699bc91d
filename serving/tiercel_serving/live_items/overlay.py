"""A journal applied to one release: rows of new items, and columns and tensors of new and changed ones.

New items get the rows after the catalogue's own, in the order of the journal, so that every process gives an
item the same row without coordination. An item that was put for an older release, and is in this one's
catalogue, has this release's own values again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from tiercel_client.errors import InvalidInput
from tiercel_client.values import convert_column, sequence
from tiercel_client.wire.moments import ticks

from ..columns import Column, merge_rows
from ..errors import TiercelError
from ..features import FeatureProgram
from ..problems import choose
from ..ranked.order import Rows
from ..release.manifest import Manifest
from ..spec import Array
from ..tables.items import ItemTable
from .journal import Entry, Journal


@dataclass(frozen=True)
class ItemColumn:
    """A raw item column that can be written: its dtype, whether it holds lists, and the unit of a time."""

    name: str
    dtype: str
    is_list: bool
    unit: str | None = None


@dataclass(frozen=True)
class Overlay:
    """Items that are new or changed, and items that are withdrawn.

    Parameters
    ----------
    keys
        Raw id → row of the new items.
    rows
        ``[n]`` ascending rows of new and changed items.
    columns
        All raw item columns of the release, for these rows ``[n]``.
    packed
        Model-ready tensors ``[n, …]`` of these rows.
    withdrawn
        ``[W]`` ascending rows of withdrawn items.
    entries
        The entries of ``rows``.
    notes
        What had to be left out, for people.
    """

    keys: Mapping[int | bytes, int] = field(default_factory=dict)
    rows: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    columns: Mapping[str, Column] = field(default_factory=dict)
    packed: Mapping[str, Array] = field(default_factory=dict)
    withdrawn: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    entries: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()


class Overlays:
    """Make overlays from journals, for one release.

    Parameters
    ----------
    manifest
        The release's manifest.
    items
        The release's own items.
    program
        Opens the feature program of items, on first use.
    room
        Largest number of new items.
    """

    def __init__(
        self, manifest: Manifest, items: ItemTable, program: Callable[[], FeatureProgram], room: int
    ) -> None:
        self._manifest, self._items, self._open, self._room = manifest, items, program, room

    @cached_property
    def program(self) -> FeatureProgram:
        """The release's feature program of items."""
        return self._open()

    @cached_property
    def columns(self) -> dict[str, ItemColumn]:
        """The raw columns of the release's items."""
        return item_columns(self._manifest, self._items, self.program)

    def of(self, journal: Journal) -> Overlay:
        """Return the overlay of a journal; values of columns that this release lacks are ignored."""
        entries, notes, own = journal.entries, list[str](), self._items.size
        chosen: list[tuple[int, Entry]] = []
        withdrawn: list[int] = []
        keys: dict[int | bytes, int] = {}
        left_out: list[Entry] = []
        for entry, row in zip(entries, self.rows_of(entries).tolist(), strict=True):
            if row >= own + self._room:
                left_out += [entry] if entry.put and not entry.withdrawn else []
                continue
            if entry.withdrawn:
                withdrawn.append(row)
            if row >= own:
                keys[entry.key] = row
            if row >= own or (entry.values and not self._outdated(entry)):
                chosen.append((row, entry))
        if left_out:
            notes.append(
                f"{len(left_out)} items are left out, {left_out[0].item_id!r} the first: there is room for "
                f"{self._room} new ones; raise added_items of the settings, or export a release with them"
            )
        chosen.sort(key=lambda pair: pair[0])
        rows, kept = np.array([row for row, _ in chosen], np.int64), tuple(entry for _, entry in chosen)
        columns = self._columns_of(kept, rows, notes) if kept else {}
        packed = self.program.packed(columns, len(kept)) if kept else {}
        away = np.sort(np.array(withdrawn, np.int64))
        return Overlay(keys, rows, columns, packed, away, kept, tuple(notes))

    def rows_of(self, entries: Sequence[Entry]) -> Rows:
        """Return the catalogue row of each entry's item; new items get rows from I on, in order.

        An item that was only withdrawn and is not in the catalogue has no row; it gets the largest int64.
        """
        if not entries:
            return np.zeros(0, np.int64)
        rows = self._items.rows(self._ids([entry.key for entry in entries]))
        new = (rows == self._items.size) & np.array([entry.put for entry in entries])
        rows[rows == self._items.size] = np.iinfo(np.int64).max
        rows[new] = self._items.size + np.arange(np.count_nonzero(new))
        return rows

    def _ids(self, keys: Sequence[int | bytes]) -> Array:
        if self._manifest.catalogue.item_id_dtype == "int64":
            return np.array(keys, np.int64)
        ids = np.empty(len(keys), np.object_)
        ids[:] = list(keys)
        return ids

    def _outdated(self, entry: Entry) -> bool:
        """Whether this release was made after the one that the entry was put for, so its values win."""
        return bool(entry.after) and _moment(self._manifest.made.created) > _moment(entry.after)

    def _columns_of(self, entries: Sequence[Entry], rows: Rows, notes: list[str]) -> dict[str, Column]:
        """Return every raw column for these rows: values put, else the release's own, else null."""
        id_column = self._manifest.catalogue.item_id_column
        own = np.minimum(rows, self._items.size)
        columns = {}
        for column in self.columns.values():
            under = self._items.raw(column.name).take(own)
            values = [
                entry.values.get(column.name, entry.item_id if column.name == id_column else _LEFT_OUT)
                for entry in entries
            ]
            given = np.array([value is not _LEFT_OUT for value in values])
            if given.any():
                try:
                    put = convert(column, [None if value is _LEFT_OUT else value for value in values])
                    under = merge_rows(put, under, given)
                except (InvalidInput, TiercelError) as error:
                    notes.append(f"the column {column.name!r} of items is left out: {error}")
            columns[column.name] = under
        return columns


class _LeftOut:
    """Marks a value that was not put."""


_LEFT_OUT = _LeftOut()


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def item_columns(manifest: Manifest, items: ItemTable, program: FeatureProgram) -> dict[str, ItemColumn]:
    """Return the raw item columns of a release by name."""
    units = {column.name: column.unit for column in program.inputs}
    stored = {name: items.raw(name) for name in manifest.raw_item_columns}
    return {
        name: ItemColumn(name, column.dtype, column.is_list, units.get(name))
        for name, column in stored.items()
    }


def convert(column: ItemColumn, values: Sequence[Any]) -> Column:
    """Return values ``[n]`` as a column; None is null.

    Raises
    ------
    InvalidInput
        A value is not of the column's type.
    """
    what = f"values[{column.name!r}]"
    if not column.is_list:
        plain = values if column.unit is None else list(ticks(values, column.unit, lambda n: what))
        return Column(*convert_column(plain, column.dtype, lambda n: what, nullable=True))
    rows = [() if value is None else sequence(value, what) for value in values]
    flat = [one for row in rows for one in row]
    array, _ = convert_column(flat, column.dtype, lambda n: f"{what}[{n}]", nullable=False)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Column(array, None, offsets, np.array([value is not None for value in values], np.bool_))


def check_values(columns: Mapping[str, ItemColumn], values: Mapping[str, Any]) -> None:
    """Check values of an item's columns.

    Raises
    ------
    InvalidInput
        The release has no such column, or a value is of another type.
    """
    for name, value in values.items():
        if name not in columns:
            raise InvalidInput(
                f"values: the items of this release have no column {name!r}; {choose(name, list(columns))}"
            )
        convert(columns[name], [value])
