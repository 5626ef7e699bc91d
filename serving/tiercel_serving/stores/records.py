"""A user's record: the live values of one user as bytes, in one format for every kind of store.

Little-endian, one part after the other::

    HEAD     magic "TRC1", CRC-32 of everything after it, number C of slots, number H of events, bytes of the
             user id, bytes of the item ids, and whether item ids are text
    C slots  24 bytes each: expires (ms), value, length, state. Slot j is column j of the store's schema;
             a record that is older than a column is shorter. A number, boolean or time is in ``value``;
             text and lists are in the payload, ``length`` bytes at offset ``value``.
    H events 24 bytes each: expires (ms), when it was appended (ms), item: the raw id, or the number of bytes
             of a text id
    user id, item ids one after the other, payload

A record with the magic "TRC2" ends with a series of Bloom filters (``bloom.py``) of items appended before its
events, followed by the series' size in bytes (uint32).

Slots and events have a fixed width, so that a batch of records becomes a few arrays (``record_batch.py``).
Events are in the order in which they were appended, even if clocks differed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate
from struct import Struct
from typing import NamedTuple
from zlib import crc32

import numpy as np

from ..errors import StoreDamaged

MAGIC, MAGIC_OF_FILTERS = b"TRC1", b"TRC2"
HEAD = Struct("<4sIIIIII")
SLOT = np.dtype([("expires", "<i8"), ("value", "<i8"), ("length", "<u4"), ("state", "<u4")])
EVENT = np.dtype([("expires", "<i8"), ("at", "<i8"), ("item", "<i8")])
_SLOT, _EVENT, _INT64 = Struct("<qqII"), Struct("<qqq"), Struct("<q")
#: Offset of the checked bytes: the checksum covers everything after magic and checksum.
CHECKED = 8

#: States of a slot: nothing written, a null, a value in the slot, a value in the payload.
ABSENT, NULL, INLINE, PAYLOAD = 0, 1, 2, 3

#: ``expires`` of values that do not expire.
NEVER = 2**63 - 1

#: Largest number of bytes of a user id that is used as a key directly; longer ids are hashed.
_KEY_MOST = 400


def user_key(user: bytes) -> bytes:
    """Return the key of a user's record; an int64 id is given in decimal."""
    return b"u" + user if len(user) <= _KEY_MOST else b"h" + sha256(user).digest()


def user_keys(users: Sequence[bytes | int]) -> list[bytes]:
    """Return the keys of many users' records, by their raw ids."""
    return [user_key(user) if isinstance(user, bytes) else b"u%d" % user for user in users]


def is_user_key(key: bytes) -> bool:
    """Whether a key is that of a user's record; ``sealed.py`` lists the few others."""
    return key[:1] in (b"u", b"h")


class Slot(NamedTuple):
    """One column's value: when it expires (ms), its state, and its bytes (8 if it is inline)."""

    expires: int
    state: int
    value: bytes


class Event(NamedTuple):
    """One item of a user's history: its raw id, when it was appended and when it expires (ms)."""

    item: int | bytes
    at: int
    expires: int


@dataclass
class Record:
    """A user's record; ``bytes()`` of it is what a store holds.

    Parameters
    ----------
    user
        The user id; an int64 id in decimal.
    slots
        Column number → its slot.
    events
        In the order in which they were appended.
    filters
        A series of Bloom filters of items appended before the events; empty if there is none.
    """

    user: bytes
    slots: dict[int, Slot] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    filters: bytes = b""

    def __bytes__(self) -> bytes:
        slots, payload = self._slots()
        text = any(isinstance(event.item, bytes) for event in self.events)
        items = b"".join(event.item for event in self.events if isinstance(event.item, bytes))
        events = b"".join(
            _EVENT.pack(expires, at, len(item) if isinstance(item, bytes) else item)
            for item, at, expires in self.events
        )
        sizes = (len(slots) // SLOT.itemsize, len(self.events), len(self.user), len(items), int(text))
        body = HEAD.pack(MAGIC, 0, *sizes)[CHECKED:] + slots + events + self.user + items + payload
        if self.filters:
            body += self.filters + len(self.filters).to_bytes(4, "little")
        magic = MAGIC_OF_FILTERS if self.filters else MAGIC
        return magic + crc32(body).to_bytes(4, "little") + body

    def _slots(self) -> tuple[bytes, bytes]:
        parts, payload, offset = [], [], 0
        for number in range(max(self.slots, default=-1) + 1):
            slot = self.slots.get(number)
            if slot is None:
                parts.append(bytes(SLOT.itemsize))
            elif slot.state == PAYLOAD:
                parts.append(_SLOT.pack(slot.expires, offset, len(slot.value), PAYLOAD))
                payload.append(slot.value)
                offset += len(slot.value)
            else:
                (value,) = _INT64.unpack(slot.value or bytes(8))
                parts.append(_SLOT.pack(slot.expires, value, 0, slot.state))
        return b"".join(parts), b"".join(payload)

    @classmethod
    def read(cls, data: bytes, key: bytes) -> Record:
        """Read the record stored under ``key``.

        Raises
        ------
        StoreDamaged
            The bytes differ from those written, or belong to another user.
        """
        if not intact(data, key):
            raise damaged(key)
        _, _, slots, events, user_size, items_size, text = HEAD.unpack_from(data)
        of_events = HEAD.size + slots * SLOT.itemsize
        of_user = of_events + events * EVENT.itemsize
        of_items = of_user + user_size
        of_payload = of_items + items_size
        record = cls(data[of_user:of_items], filters=filters_of(data))
        for number, (expires, value, length, state) in enumerate(
            _SLOT.iter_unpack(data[HEAD.size : of_events])
        ):
            if state == PAYLOAD:
                begin = of_payload + value
                record.slots[number] = Slot(expires, state, data[begin : begin + length])
            elif state != ABSENT:
                record.slots[number] = Slot(expires, state, _INT64.pack(value))
        found = list(_EVENT.iter_unpack(data[of_events:of_user]))
        ends = list(accumulate((item for _, _, item in found), initial=of_items)) if text else []
        record.events = [
            Event(data[ends[n] : ends[n + 1]] if text else item, at, expires)
            for n, (expires, at, item) in enumerate(found)
        ]
        return record


def filters_of(record: bytes) -> bytes:
    """Return the series of Bloom filters of an intact record."""
    if record[:4] == MAGIC:
        return b""
    size = int.from_bytes(record[-4:], "little")
    return record[-4 - size : -4]


def intact(data: bytes, key: bytes) -> bool:
    """Whether bytes are an undamaged record of the user with this key."""
    if len(data) < HEAD.size or data[:4] not in (MAGIC, MAGIC_OF_FILTERS):
        return False
    if int.from_bytes(data[4:CHECKED], "little") != crc32(memoryview(data)[CHECKED:]):
        return False
    # In a damaged file a key may have turned into that of another user.
    _, _, slots, events, size, _, _ = HEAD.unpack_from(data)
    begin = HEAD.size + slots * SLOT.itemsize + events * EVENT.itemsize
    return user_key(data[begin : begin + size]) == key


def damaged(key: bytes) -> StoreDamaged:
    """Return the error for a record that differs from what was written."""
    return StoreDamaged(
        f"store: the record {key!r} is not what was written (its checksum differs); `tiercel store export` "
        "writes what is whole, which `tiercel store load` takes into a new store; or remove this user "
        "(`tiercel store remove`) and write anew"
    )


def latest_of_each(events: Iterable[Event]) -> list[Event]:
    """Return the last event of each item, in order."""
    latest: dict[int | bytes, Event] = {}
    for event in events:
        latest.pop(event.item, None)
        latest[event.item] = event
    return list(latest.values())
