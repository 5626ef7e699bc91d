"""The journal: what became of items since releases were made, under one key of the store.

All of it is one value, JSON of a :class:`Journal`, so that a write is one atomic change of one record, in
every kind of store, behind a checksum (``stores/sealed.py``).

Entries keep the order in which they were first put, and none is ever taken away: of two processes that serve
one release, both give a new item the same catalogue row. A number under a second key says which version is
the latest, so that who watches reads a few bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..errors import StoreDamaged, StoreMismatch
from ..release.manifest import IdDtype
from ..stores.sealed import ITEMS_KEY, VERSION_KEY, seal, unseal
from ..stores.table import Records

JOURNAL_FORMAT = 1


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was written of one item.

    Parameters
    ----------
    item_id
        The raw id.
    withdrawn
        Whether it must not come.
    put
        Whether it was ever put; else it was only withdrawn.
    values
        Raw column → value; None is null.
    vectors
        Source → a vector that was given, in the space of the build ``build_id``.
    build_id, after
        The build of the release that it was last put for, and when that was made (ISO 8601).
    """

    item_id: int | str
    withdrawn: bool = False
    put: bool = False
    values: dict[str, Any] = {}
    vectors: dict[str, list[float]] = {}
    build_id: str = ""
    after: str = ""

    @property
    def key(self) -> int | bytes:
        """The id as catalogues hold it."""
        return self.item_id.encode() if isinstance(self.item_id, str) else self.item_id


class Journal(msgspec.Struct, frozen=True):
    """All entries, in the order in which items were first written; ``version`` counts the writes."""

    item_id: IdDtype
    format: int = JOURNAL_FORMAT
    version: int = 0
    entries: tuple[Entry, ...] = ()

    def __bytes__(self) -> bytes:
        return seal(ITEMS_KEY, msgspec.json.encode(self))

    def with_entries(self, changed: Sequence[Entry]) -> Journal:
        """Return the journal with these entries in the place of those of their items, or behind all."""
        entries = self.of_item
        for entry in changed:
            before = entries.get(entry.item_id)
            if before is not None and entry.put and not before.put:
                # Its row is given now: those of others must not change.
                del entries[entry.item_id]
            entries[entry.item_id] = entry
        return msgspec.structs.replace(self, version=self.version + 1, entries=tuple(entries.values()))

    @property
    def of_item(self) -> dict[int | str, Entry]:
        """Item id → entry."""
        return {entry.item_id: entry for entry in self.entries}


def decode(data: bytes | None, dtype: IdDtype) -> Journal:
    """Read a journal; of nothing, an empty one. ``dtype`` is that of the release's item ids.

    Raises
    ------
    StoreDamaged, StoreMismatch
        It is not what was written, of a later Tiercel, or of ids of another type.
    """
    if data is None:
        return Journal(dtype)
    value = unseal(ITEMS_KEY, data)
    if value is None:
        raise StoreDamaged(
            "store: what it holds of items is not what was written (its checksum differs), so withdrawn "
            "items could come; put the items anew into another store, and move this one away"
        )
    try:
        journal = msgspec.json.decode(value, type=Journal)
    except ValueError as error:
        raise StoreDamaged(f"store: what it holds of items is not readable ({error})") from error
    if journal.format > JOURNAL_FORMAT:
        raise StoreMismatch(
            f"store: its items have format {journal.format}, but this Tiercel reads format {JOURNAL_FORMAT}; "
            "upgrade Tiercel"
        )
    if journal.item_id != dtype:
        raise StoreMismatch(
            f"store: holds items by {journal.item_id} ids, but the release has {dtype}; choose another store"
        )
    return journal


def read_version(records: Records) -> bytes | None:
    """Return what says which version is the latest: another value is another journal."""
    return records.read([VERSION_KEY])[0]


def read_journal(records: Records, dtype: IdDtype) -> Journal:
    """Return the journal of a store."""
    return decode(records.read([ITEMS_KEY])[0], dtype)


def write_entries(records: Records, dtype: IdDtype, change: Callable[[Journal], Sequence[Entry]]) -> Journal:
    """Change the journal atomically: ``change`` gives the entries that are new, of the journal as it is.

    Returns
    -------
    Journal
        As it was written.
    """
    written: list[Journal] = []

    def changed(data: bytes | None) -> bytes:
        journal = decode(data, dtype)
        written.append(journal.with_entries(change(journal)))
        return bytes(written[-1])

    # The version comes second: who sees it finds the journal. If this process dies in between, nobody was
    # told of the write, and the next one shows it.
    records.change([(ITEMS_KEY, changed)])
    version = written[-1].version

    def latest(data: bytes | None) -> bytes:
        # What is not as it was written says nothing of what is the latest.
        held = unseal(VERSION_KEY, data or b"") or b""
        later = data if held.isdigit() and int(held) > version else None
        return later or seal(VERSION_KEY, str(version).encode())

    records.change([(VERSION_KEY, latest)])
    return written[-1]
