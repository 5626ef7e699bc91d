"""The journal of changes to items between releases, under one key of the store.

The whole journal is one value, a :class:`Journal` as JSON with a checksum (``stores/sealed.py``), so that a
write is one atomic change of one record in every kind of store.

Entries keep the order in which items were first put, and are never removed. So all processes that serve a
release give a new item the same catalogue row. A second key holds the number of the latest version, so that
watchers read only a few bytes.
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
    """The changes to one item.

    Parameters
    ----------
    item_id
        The raw id.
    withdrawn
        Whether it must not be recommended.
    put
        Whether it was ever put; if not, it was only withdrawn.
    values
        Raw column → value; None is null.
    vectors
        Source → a given vector, in the vector space of the build ``build_id``.
    build_id, after
        The build of the release for which it was last put, and when that release was made (ISO 8601).
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
        """The id as stored in catalogues: an int, or UTF-8 bytes."""
        return self.item_id.encode() if isinstance(self.item_id, str) else self.item_id


class Journal(msgspec.Struct, frozen=True):
    """All entries, put items in the order in which they were first put; ``version`` counts the writes."""

    item_id: IdDtype
    format: int = JOURNAL_FORMAT
    version: int = 0
    entries: tuple[Entry, ...] = ()

    def __bytes__(self) -> bytes:
        return seal(ITEMS_KEY, msgspec.json.encode(self))

    def with_entries(self, changed: Sequence[Entry]) -> Journal:
        """Return the journal with these entries: each replaces that of its item, or is appended."""
        entries = self.of_item
        for entry in changed:
            before = entries.get(entry.item_id)
            if before is not None and entry.put and not before.put:
                # It gets its row only now, after all others, whose rows must not change.
                del entries[entry.item_id]
            entries[entry.item_id] = entry
        return msgspec.structs.replace(self, version=self.version + 1, entries=tuple(entries.values()))

    @property
    def of_item(self) -> dict[int | str, Entry]:
        """Raw item id → entry."""
        return {entry.item_id: entry for entry in self.entries}


def decode(data: bytes | None, dtype: IdDtype) -> Journal:
    """Read a journal, empty for None. ``dtype`` is that of the release's item ids.

    Raises
    ------
    StoreDamaged, StoreMismatch
        The journal is damaged, written by a newer Tiercel, or has ids of another type.
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
    """Return the stored version number, as bytes; if it differs, so does the journal."""
    return records.read([VERSION_KEY])[0]


def read_journal(records: Records, dtype: IdDtype) -> Journal:
    """Return the journal of a store; see :func:`decode`."""
    return decode(records.read([ITEMS_KEY])[0], dtype)


def write_entries(records: Records, dtype: IdDtype, change: Callable[[Journal], Sequence[Entry]]) -> Journal:
    """Change the journal atomically: ``change`` maps the current journal to new or changed entries.

    Returns
    -------
    Journal
        The journal as written.
    """
    written: list[Journal] = []

    def changed(data: bytes | None) -> bytes:
        journal = decode(data, dtype)
        written.append(journal.with_entries(change(journal)))
        return bytes(written[-1])

    # The version is written second, so that a process that reads it finds the new journal. If this process
    # dies in between, the write was not yet reported, and becomes visible with the next one.
    records.change([(ITEMS_KEY, changed)])
    version = written[-1].version

    def latest(data: bytes | None) -> bytes:
        # A damaged version number is overwritten.
        held = unseal(VERSION_KEY, data or b"") or b""
        later = data if held.isdigit() and int(held) > version else None
        return later or seal(VERSION_KEY, str(version).encode())

    records.change([(VERSION_KEY, latest)])
    return written[-1]
