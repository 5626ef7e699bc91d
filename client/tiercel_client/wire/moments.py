"""Convert dates and times to integer counts since 1970-01-01 UTC, without intermediate floats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np

from ..errors import InvalidInput
from ..values import Array, Place, shown

#: Unit → its nanoseconds.
NANOSECONDS: Mapping[str, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}

_DAY_NS = 86_400 * 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: ISO 8601: a date, optionally with a time of day, a fraction and an offset.
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?(Z|z|[+-]\d\d:?\d\d)?)?",
    re.ASCII,
)


def ticks(values: Sequence[Any] | Array, unit: str, place: Place) -> Sequence[Any] | Array:
    """Return the values with dates and times replaced by counts of ``unit``; other values are unchanged.

    Parameters
    ----------
    values
        ``datetime`` (in UTC, if it has no time zone), ``date`` (its midnight in UTC), ``numpy.datetime64``,
        pandas' ``Timestamp`` or ISO 8601 text. Anything else is checked later, as a number.
    unit
        ``s``, ``ms``, ``us`` or ``ns``; finer fractions are rounded down.
    place
        Names a value in messages.

    Raises
    ------
    InvalidInput
        Text is not a date or time, or a time does not fit int64 in this unit.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind not in "MOSU":
        return values
    return [_ticks(value, unit, place(position)) for position, value in enumerate(values)]


def _ticks(value: Any, unit: str, where: str) -> Any:
    if isinstance(value, np.datetime64):
        nanoseconds = _of_numpy(value)
    elif isinstance(value, datetime):
        nanoseconds = _of_datetime(value)
    elif isinstance(value, date):
        nanoseconds = (value - _EPOCH.date()).days * _DAY_NS
    elif isinstance(value, str):
        nanoseconds = _of_text(value, where)
    else:
        return value
    if nanoseconds is None:
        return None
    whole = nanoseconds // NANOSECONDS[unit]
    if not -(2**63) <= whole < 2**63:
        raise InvalidInput(
            f"{where}: expected a time that 64 bits hold as {unit} since 1970, got {shown(value)}"
        )
    return whole


def _of_numpy(value: np.datetime64) -> int | None:
    if np.isnat(value):
        return None
    unit, count = np.datetime_data(value.dtype)
    if unit in ("Y", "M", "W", "D"):
        return int(value.astype("datetime64[D]").astype(np.int64)) * _DAY_NS
    seconds = {"h": 3600, "m": 60}.get(unit)
    size = seconds * NANOSECONDS["s"] if seconds else NANOSECONDS.get(unit)
    number = int(value.astype(np.int64)) * count
    return number * size if size else int(value.astype("datetime64[ns]").astype(np.int64))


def _of_datetime(value: datetime) -> int | None:
    if value != value:  # pandas' NaT
        return None
    moment = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
    passed = moment - _EPOCH
    seconds = passed.days * 86_400 + passed.seconds
    # pandas' Timestamp also has nanoseconds.
    finer = passed.microseconds * 1000 + int(getattr(value, "nanosecond", 0))
    return seconds * 10**9 + finer


def _of_text(text: str, where: str) -> int:
    match = _ISO.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError("it is no date of the form 2026-01-31 or 2026-01-31T12:00:00Z")
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
        moment = datetime(year, month, day, hour, minute, second, tzinfo=_zone(match[8]))
    except ValueError as error:
        raise InvalidInput(
            f"{where}: expected a date, a time or a whole number, got {shown(text)}: {error}"
        ) from None
    passed = moment - _EPOCH
    return (passed.days * 86_400 + passed.seconds) * 10**9 + int((match[7] or "").ljust(9, "0"))


def _zone(offset: str | None) -> timezone:
    if offset is None or offset in "Zz":
        return timezone.utc
    hours, minutes = int(offset[1:3]), int(offset[-2:])
    return timezone((-1 if offset[0] == "-" else 1) * timedelta(hours=hours, minutes=minutes))
