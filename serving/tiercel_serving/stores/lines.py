"""What a store holds of users as people and files see it: values, a history, and lines of JSON."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any

import msgspec

from .bloom import check_series
from .records import NEVER, Record
from .schema import Schema, from_slot


class Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A user, as a file of JSON lines has it; what an export writes, a load reads.

    Parameters
    ----------
    user_id
        The raw id.
    values
        Column → value; null is a value too.
    history
        Raw item ids that are appended, oldest first.
    ttl_s
        After how many seconds all of it expires; what expires at a given time has that below.
    expires_ms, appended_ms, history_expires_ms
        Milliseconds since 1970, of single values and of each item of the history.
    filters
        Bloom filters of what was appended before, in base64.
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
        """The Bloom filters.

        Raises
        ------
        ValueError
            They are none.
        """
        return check_series(b64decode(self.filters, validate=True))


@dataclass(frozen=True)
class LiveUser:
    """What a store holds of one user: values by column, and what was appended, oldest first."""

    values: dict[str, Any]
    history: list[int | str]


def to_line(record: Record, schema: Schema, now_ms: int) -> Line:
    """Return what a record holds and has not expired."""
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
