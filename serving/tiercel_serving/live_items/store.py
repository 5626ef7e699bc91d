"""Adding, changing and withdrawing of items between releases: the API behind ``tiercel items``.

::

    from tiercel_serving.live_items.store import ItemStore

    store = ItemStore.open("releases/movielens", store="embedded:/var/lib/tiercel/movielens")
    store.put(2001, {"title": "New", "year": 2026})  # the release's item tower computes its vectors
    store.put(50, {"stock": 0})  # an item of the release; its other columns stay
    store.withdraw([172])

Every process that serves the release with this store sees a write after about a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tiercel_client.errors import InvalidInput
from tiercel_client.values import convert_ids, sequence, shown

from ..errors import InvalidSettings
from ..release.opened import Release, open_release
from ..stores.chosen import read_store
from ..stores.schema import check_utf8
from ..stores.table import Records, StoreKind
from .journal import Entry, Journal, read_journal, write_entries
from .overlay import check_values

#: Number of lines that are written together.
_BLOCK = 500


class ItemLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One item in a file of JSON lines: its id, values by column, vectors by source."""

    item_id: int | str
    values: dict[str, Any] = {}
    vectors: dict[str, list[float]] = {}
    withdrawn: bool = False


class ItemStore:
    """The changes to a recommender's items since its release was made. :meth:`open` makes one.

    Parameters
    ----------
    release
        The release, with its items and their columns.
    records
        The opened store.
    """

    def __init__(self, release: Release, records: Records) -> None:
        self.release, self._records = release, records
        catalogue = release.manifest.catalogue
        self._dtype, self._own = catalogue.item_id_dtype, catalogue.items

    @classmethod
    def open(cls, release: Release | str | Path, store: StoreKind | str | None = None) -> ItemStore:
        """Open the store of a release; ``store`` replaces the one that the release names.

        Raises
        ------
        InvalidSettings
            The release names no store that can be written, and none is given.
        ReleaseError, StoreError, MachineFault
            The release or the store can't be opened.
        """
        opened = release if isinstance(release, Release) else open_release(release)
        kind = read_store(store) if isinstance(store, str) else store
        records = opened.open_records(opened.store_kind if kind is None else kind, patient=True)
        if records is None:
            raise InvalidSettings(
                f"{opened.path}: this release keeps nothing that is written; name a store "
                "(--store embedded:FOLDER or --store redis:HOST:PORT, here and at `tiercel serve`), or give "
                "its recipe one"
            )
        return cls(opened, records)

    def put(
        self,
        item_id: int | str,
        values: Mapping[str, Any] | None = None,
        *,
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Add a new item, or change values of an existing one; a withdrawn item is restored.

        Parameters
        ----------
        item_id
            The raw id.
        values
            Raw column → value; None is null. Other columns stay as they were; for a new item they are null.
        vectors
            Source → the item's vector, used instead of the one that the release's item tower computes. An
            item of the release keeps the release's vector.

        Raises
        ------
        InvalidInput
            A column or source does not exist, a value has another type, a vector another length, a new item
            has no vector, or there is no room for another new item.
        StoreError, MachineFault
            The item was not written.
        """
        for name, given in (("values", values), ("vectors", vectors)):
            if given is not None and not isinstance(given, Mapping):
                raise InvalidInput(f"{name}: expected a mapping from names, got {shown(given)}")
        made = {source: _numbers(vector, source) for source, vector in (vectors or {}).items()}
        self.write([ItemLine(item_id, dict(values or {}), made)])

    def withdraw(self, item_ids: Sequence[int | str]) -> None:
        """Withdraw items: no source, list, request's own candidates or related items return them any more.

        Raises
        ------
        InvalidInput
            An id is of another type, or there are no ids.
        StoreError, MachineFault
            The items were not withdrawn.
        """
        ids = sequence(item_ids, "item_ids")
        if not len(ids):
            raise InvalidInput("item_ids: expected items, got none; name some")
        self.write([ItemLine(one, withdrawn=True) for one in ids])

    def unknown(self, item_ids: Sequence[int | str]) -> tuple[int | str, ...]:
        """Return those of the items that are not in the release's catalogue and were never put."""
        ids = convert_ids(item_ids, self._dtype, lambda n: f"item_ids[{n}]")
        lacking = self.release.items.rows(ids) == self.release.items.size
        put = {entry.item_id for entry in self.list() if entry.put}
        return tuple(one for one, gone in zip(item_ids, lacking, strict=True) if gone and one not in put)

    def list(self) -> tuple[Entry, ...]:
        """Return all entries of the journal, in its order."""
        return read_journal(self._records, self._dtype).entries

    def notes(self) -> tuple[str, ...]:
        """Return notes for people about entries that this release has to leave out."""
        return self.release.overlays.of(read_journal(self._records, self._dtype)).notes

    def load(self, lines: Iterable[bytes | str]) -> int:
        """Write the items of a file of JSON lines (:class:`ItemLine`), and return how many there were.

        Lines are written in blocks, each completely or not at all; a file can be loaded again.

        Raises
        ------
        InvalidInput
            A line is invalid; if it can't be parsed, the message has its number.
        StoreError, MachineFault
            A block was not written.
        """
        done, numbered = 0, enumerate(lines, 1)
        while block := list(islice(numbered, _BLOCK)):
            read = [_read(number, text) for number, text in block if text.strip()]
            self.write(read)
            done += len(read)
        return done

    def write(self, lines: Sequence[ItemLine]) -> None:
        """Write several items in one atomic change; see :meth:`put` and :meth:`withdraw`."""
        manifest = self.release.manifest
        for line in lines:
            self._check(line)

        def change(journal: Journal) -> list[Entry]:
            held, changed = journal.of_item, dict[int | str, Entry]()
            for line in lines:
                before = changed.get(line.item_id) or held.get(line.item_id) or Entry(line.item_id)
                if line.withdrawn:
                    changed[line.item_id] = msgspec.structs.replace(before, withdrawn=True)
                    continue
                kept = before.vectors if before.build_id == manifest.build_id else {}
                changed[line.item_id] = msgspec.structs.replace(
                    before,
                    withdrawn=False,
                    put=True,
                    values=before.values | line.values,
                    vectors=kept | line.vectors,
                    build_id=manifest.build_id,
                    after=manifest.made.created,
                )
            self._check_room(journal.with_entries([*changed.values()]))
            return [*changed.values()]

        if lines:
            write_entries(self._records, self._dtype, change)

    def _check(self, line: ItemLine) -> None:
        """Raise InvalidInput for an item that the release could not serve."""
        ids = convert_ids([line.item_id], self._dtype, lambda n: "item_id")
        if self._dtype == "bytes":
            check_utf8(ids.tolist(), "item_id")
        check_values(self.release.overlays.columns, line.values)
        sources = self.release.settings.sources
        indexes = {source.name: source for source in sources if source.form == "vectors"}
        for source, vector in line.vectors.items():
            if source not in indexes:
                raise InvalidInput(
                    f"vectors: {source!r} is not a source of vectors; use {', '.join(indexes) or 'none'}"
                )
            dimension = self.release.manifest.queries[source].dimension
            if len(vector) != dimension or not np.isfinite(vector).all():
                raise InvalidInput(
                    f"vectors[{source!r}]: expected {dimension} finite numbers, got {len(vector)}"
                )
        is_new = self.release.items.rows(ids)[0] == self.release.items.size
        lacking = [name for name in indexes if name not in line.vectors and not self.release.has_tower(name)]
        if is_new and lacking and not line.withdrawn and len(lacking) == len(indexes):
            raise InvalidInput(
                f"vectors: the release has no model of item vectors for {lacking[0]!r}, so the new item "
                f"{line.item_id!r} could not be found; give its vector, or export with added_items above 0 "
                "and a module that makes vectors"
            )

    def _check_room(self, journal: Journal) -> None:
        room = self.release.settings.added_items
        rows = self.release.overlays.rows_of(journal.entries)
        new = int(np.count_nonzero((rows >= self._own) & (rows < np.iinfo(np.int64).max)))
        if new > room:
            raise InvalidInput(
                f"items: this release has room for {room} new items, and with these there would be {new}; "
                "raise added_items of the recipe's serving settings, or export a release that has them"
            )


def _read(number: int, text: bytes | str) -> ItemLine:
    try:
        return msgspec.json.decode(text, type=ItemLine)
    except ValueError as error:
        raise InvalidInput(f"line {number}: {error}") from error


def _numbers(vector: Any, source: str) -> list[float]:
    """Return a vector as a list of floats; raise InvalidInput if it holds anything but numbers."""
    where = f"vectors[{source!r}]"
    numbers = list(sequence(vector, where))
    wrong = [one for one in numbers if isinstance(one, bool | np.bool_) or not isinstance(one, Real)]
    if wrong:
        raise InvalidInput(f"{where}: expected numbers, got {shown(wrong[0])}")
    return [float(one) for one in numbers]
