"""A user's live values outside of the store: as Python values, and as JSON lines of a file."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any

import msgspec

from .bloom import check_series
from .records import NEVER, Record
from .schema import Schema, from_slot


class Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One user in a file of JSON lines, as exports write it and loads read it.

    Parameters
    ----------
    user_id
        The raw id.
    values
        Column → value, which may be null.
    history
        Raw item ids to append, oldest first.
    ttl_s
        Seconds until everything expires that has no time of its own below.
    expires_ms, appended_ms, history_expires_ms
        Milliseconds since 1970: when each value expires, by column, and when each item of the history was
        appended and expires.
    filters
        Bloom filters of items appended before the history, in base64.
    """

    user_id: int | str
    values: dict[str, Any] = {}
    history: list[int | str] = []
    ttl_s: float | None = None
    expires_ms: dict[str, int] = {}
    appended_ms: list[int] = []
    history_expires_ms: list[int] = []
    filters: str = ""

    @property
    def series(self) -> bytes:
        """The Bloom filters, decoded.

        Raises
        ------
        ValueError
            ``filters`` is not base64, or not a series of filters.
        """
        return check_series(b64decode(self.filters, validate=True))


@dataclass(frozen=True)
class LiveUser:
    """One user's live values: values by column, and appended items, oldest first."""

    values: dict[str, Any]
    history: list[int | str]


def to_line(record: Record, schema: Schema, now_ms: int) -> Line:
    """Return the contents of a record that have not expired."""
    slots = [
        (schema.columns[number], slot)
        for number, slot in sorted(record.slots.items())
        if slot.expires > now_ms and number < len(schema.columns)
    ]
    events = [event for event in record.events if event.expires > now_ms]
    until = [event.expires for event in events]
    return Line(
        user_id=record.user.decode() if schema.user_id == "bytes" else int(record.user),
        values={column.name: from_slot(column, slot) for column, slot in slots},
        history=[item.decode() if isinstance(item, bytes) else item for item, _, _ in events],
        expires_ms={column.name: slot.expires for column, slot in slots if slot.expires != NEVER},
        appended_ms=[event.at for event in events],
        history_expires_ms=until if any(one != NEVER for one in until) else [],
        filters=b64encode(record.filters).decode(),
    )
