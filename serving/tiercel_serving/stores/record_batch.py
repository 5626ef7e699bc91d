"""The records of a batch as arrays: fixed-width parts are read without Python code per value or event.

Text and lists are the exception: they are cut out of each record one by one, as Python objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..lookups.strings import Strings
from ..ranked.order import Rows
from ..spec import DTYPES, Array
from .records import EVENT, HEAD, MAGIC_OF_FILTERS, NULL, SLOT, Record, filters_of

Flags = npt.NDArray[np.bool_]

#: The record of a user without one.
EMPTY = bytes(Record(b""))


class RecordBatch:
    """The records of some users.

    Parameters
    ----------
    records
        ``B`` intact records; :data:`EMPTY` for users without one.
    now
        Milliseconds since 1970; values and events that have expired by then are ignored.
    """

    def __init__(self, records: Sequence[bytes], now: int) -> None:
        self._records = records
        heads = [HEAD.unpack_from(record) for record in records]
        #: Index of a user in the batch → a series of Bloom filters of items appended before the events.
        self.filters = {
            place: filters_of(records[place])
            for place, head in enumerate(heads)
            if head[0] == MAGIC_OF_FILTERS
        }
        #: Largest number of columns of a record.
        self.width = max(head[2] for head in heads)
        size = self.width * SLOT.itemsize
        ends = [HEAD.size + head[2] * SLOT.itemsize for head in heads]
        fixed = b"".join(
            record[HEAD.size : end].ljust(size, b"\0") for record, end in zip(records, ends, strict=True)
        )
        slots = np.frombuffer(fixed, SLOT).reshape(len(records), self.width)
        #: ``[C, B]`` each, so that a column's values are contiguous.
        self._value, self._length, self._state = (
            np.ascontiguousarray(slots[name].T) for name in ("value", "length", "state")
        )
        self._there: Flags = (self._state != 0) & (now < slots["expires"].T)
        self._real: Flags = self._there & (self._state > NULL)
        # For all columns at once: one by one, they would cost more than reading the values.
        self._some, self._every, self._all_real = (
            one.tolist() for one in (self._there.any(axis=1), self._there.all(axis=1), self._real.all(axis=1))
        )
        event_ends = [end + head[3] * EVENT.itemsize for head, end in zip(heads, ends, strict=True)]
        events = b"".join(record[a:b] for record, a, b in zip(records, ends, event_ends, strict=True))
        self._events = np.frombuffer(events, EVENT)
        self._event_counts = np.array([head[3] for head in heads], np.int64)
        self._alive: Flags = self._events["expires"] > now
        self._text = any(head[6] for head in heads)
        self._item_begins = [end + head[4] for head, end in zip(heads, event_ends, strict=True)]
        self._payloads = [begin + head[5] for head, begin in zip(heads, self._item_begins, strict=True)]

    @cached_property
    def has_values(self) -> Flags:
        """``[B]``: which users have a value."""
        has: Flags = self._there.any(axis=0)
        return has

    @cached_property
    def has_events(self) -> Flags:
        """``[B]``: which users have an event."""
        return self.counts > 0

    @cached_property
    def counts(self) -> Rows:
        """``[B]``: number of events of each user."""
        owners = np.repeat(np.arange(len(self._records)), self._event_counts)
        return np.bincount(owners[self._alive], minlength=len(self._records))

    def items(self) -> Array | Strings:
        """Return the raw item ids of all events, end to end."""
        if not self._text:
            return np.ascontiguousarray(self._events["item"])[self._alive]
        places = zip(self._records, self._item_begins, self._payloads, strict=True)
        blob = b"".join(record[begin:end] for record, begin, end in places)
        offsets = np.concatenate([[0], np.cumsum(self._events["item"])])
        whole = Strings(np.frombuffer(blob, np.uint8), offsets)
        return whole if self._alive.all() else whole.take(np.flatnonzero(self._alive))

    def times_ms(self) -> Rows:
        """Return when each event was appended, in ms since 1970, in the order of :meth:`items`."""
        times: Rows = np.ascontiguousarray(self._events["at"])[self._alive]
        return times

    def there(self, number: int) -> Flags | None:
        """Return ``[B]``: which users have a value, or a null, in a column; None if no user has."""
        if number >= self.width or not self._some[number]:
            return None
        flags: Flags = self._there[number]
        return flags

    def everywhere(self, number: int) -> bool:
        """Whether every user of the batch has a value, or a null, in a column."""
        return number < self.width and bool(self._every[number])

    def column(self, number: int, dtype: str, is_list: bool) -> Column:
        """Return a column; null and absent values are both null in it."""
        real = self._real[number]
        if is_list or dtype == "bytes":
            return self._of_payload(number, dtype, is_list, real)
        value = self._value[number]
        kind = DTYPES[dtype]
        if kind.kind == "f":
            numbers = value.view(np.float64)
            if not self._all_real[number]:
                numbers = np.where(real, numbers, np.nan)
            return Column(numbers.astype(kind, copy=False))
        return Column(value.astype(kind, copy=False), None if self._all_real[number] else real)

    def _of_payload(self, number: int, dtype: str, is_list: bool, real: Flags) -> Column:
        parts = self._parts(number, real)
        if not is_list:
            values = np.empty(len(parts), np.object_)
            values[:] = parts
            return Column(values, real)
        if dtype == "bytes":
            lists = [read_texts(part) for part in parts]
            lengths = np.array([len(one) for one in lists], np.int64)
            flat = np.empty(int(lengths.sum()), np.object_)
            flat[:] = [text for one in lists for text in one]
        else:
            kind = DTYPES[dtype]
            flat = np.frombuffer(b"".join(parts), kind)
            lengths = np.where(real, self._length[number], 0).astype(np.int64) // kind.itemsize
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Column(flat, None, offsets, real)

    def _parts(self, number: int, real: Flags) -> list[bytes]:
        begins = np.where(real, self._value[number] + self._payloads, 0)
        ends = begins + np.where(real, self._length[number], 0)
        places = zip(self._records, begins.tolist(), ends.tolist(), strict=True)
        return [record[begin:end] for record, begin, end in places]


def write_texts(texts: Sequence[bytes]) -> bytes:
    """Return a list of texts as bytes: their number, the length of each (uint32 each), and the texts."""
    return np.array([len(texts), *map(len, texts)], "<u4").tobytes() + b"".join(texts)


def read_texts(data: bytes) -> list[bytes]:
    """Return the texts that :func:`write_texts` wrote; an empty list for no bytes."""
    if not data:
        return []
    count = int.from_bytes(data[:4], "little")
    lengths = np.frombuffer(data, "<u4", count, 4).tolist()
    ends = list(accumulate(lengths, initial=4 + 4 * count))
    return [data[begin:end] for begin, end in pairwise(ends)]
