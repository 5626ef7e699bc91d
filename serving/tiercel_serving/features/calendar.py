"""The steps on times: parts of a date, and differences.

A time is a whole number of ticks since 1970-01-01T00:00 UTC, in seconds, milliseconds, microseconds or
nanoseconds. Dates follow the proleptic Gregorian calendar in every year, and weeks ISO 8601. A time zone is a
table of the instants at which its offset from UTC changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..spec import Array
from .registers import Columns, Elementwise, Register, Registers, where_all_valid

Whole = npt.NDArray[np.int64]

#: Unit → its ticks per second.
PER_SECOND: Mapping[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
#: Unit of at least a second → its length in seconds.
SECONDS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600, "D": 86_400, "W": 7 * 86_400}
#: The period of the calendar, 400 years in seconds: 146,097 days, which are 20,871 weeks.
CYCLE_SECONDS = 146_097 * 86_400

_DAY = 86_400


class Zone(NamedTuple):
    """A time zone's offsets from UTC.

    Parameters
    ----------
    instants
        ``[T]`` int64, ascending: the times in seconds since 1970 at which the offset changes.
    offsets
        ``[T + 1]`` int64 seconds: the offset before the first change, then the one after each.
    """

    instants: Whole
    offsets: Whole

    def local(self, seconds: Whole) -> Whole:
        """Return the local time at ``seconds`` since 1970 UTC, as seconds since 1970-01-01T00:00 local time.

        The table covers one whole period of the calendar after its last irregular change. A later time has
        the offset of the time a whole number of periods earlier.
        """
        within = seconds
        if len(self.instants) and (late := seconds > self.instants[-1]).any():
            cycles = -((self.instants[-1] - seconds) // CYCLE_SECONDS)
            within = np.where(late, seconds - cycles * CYCLE_SECONDS, seconds)
        local: Whole = seconds + self.offsets[self.instants.searchsorted(within, "right")]
        return local


class Moment:
    """Local times and their calendar fields, each computed on access.

    Parameters
    ----------
    ticks
        int64 of any shape.
    unit
        A key of :data:`PER_SECOND`.
    zone
        The time zone; None is UTC.
    """

    def __init__(self, ticks: Whole, unit: str, zone: Zone | None) -> None:
        seconds = ticks if unit == "s" else ticks // PER_SECOND[unit]
        self.seconds = seconds if zone is None else zone.local(seconds)
        self.days = self.seconds // _DAY

    @property
    def second_of_day(self) -> Whole:
        """From 0 to 86,399."""
        return self.seconds - self.days * _DAY

    @property
    def _dates(self) -> Any:
        return self.days.astype("datetime64[D]")

    @property
    def month_number(self) -> Whole:
        """Months since January 1970."""
        return _whole(self._dates.astype("datetime64[M]"))

    @property
    def month(self) -> Whole:
        """From 1 to 12."""
        return self.month_number % 12 + 1

    @property
    def year(self) -> Whole:
        """In the proleptic Gregorian calendar, which has a year 0."""
        return self.month_number // 12 + 1970

    @property
    def day(self) -> Whole:
        """From 1 to 31."""
        return self.days - first_day_of_month(self.month_number) + 1

    @property
    def day_of_year(self) -> Whole:
        """From 1 to 366."""
        return self.days - first_day_of_year(self.year) + 1

    @property
    def weekday(self) -> Whole:
        """0 is Monday: 1970-01-01 was a Thursday."""
        return (self.days + 3) % 7

    @property
    def week(self) -> Whole:
        """ISO 8601 week, from 1 to 53: week 1 has the year's first Thursday."""
        thursday = self.days - self.weekday + 3
        year = _whole(thursday.astype("datetime64[D]").astype("datetime64[Y]")) + 1970
        return (thursday - first_day_of_year(year)) // 7 + 1

    @property
    def days_in_month(self) -> Whole:
        """From 28 to 31."""
        month = self.month_number
        return first_day_of_month(month + 1) - first_day_of_month(month)

    @property
    def is_leap_year(self) -> Array:
        """Whether February has 29 days."""
        year = self.year
        leap: Array = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
        return leap


def _whole(times: Array) -> Whole:
    whole: Whole = times.astype(np.int64)
    return whole


def first_day_of_month(month_number: Whole) -> Whole:
    """Return the first day of months (counted since January 1970), in days since 1970."""
    return _whole(month_number.astype("datetime64[M]").astype("datetime64[D]"))


def first_day_of_year(year: Whole) -> Whole:
    """Return January 1 of years, in days since 1970."""
    return _whole((year - 1970).astype("datetime64[Y]").astype("datetime64[D]"))


#: Name of a part of a time → how it is computed. Where pandas has the part, the name is pandas'.
PARTS: Mapping[str, Callable[[Moment], Array]] = {
    "year": lambda at: at.year,
    "quarter": lambda at: (at.month + 2) // 3,
    "month": lambda at: at.month,
    "week": lambda at: at.week,
    "day": lambda at: at.day,
    "weekday": lambda at: at.weekday,
    "dayofyear": lambda at: at.day_of_year,
    "hour": lambda at: at.second_of_day // 3600,
    "minute": lambda at: at.second_of_day // 60 % 60,
    "second": lambda at: at.second_of_day % 60,
    "days_in_month": lambda at: at.days_in_month,
    "is_weekend": lambda at: at.weekday >= 5,
    "is_month_start": lambda at: at.day == 1,
    "is_month_end": lambda at: at.day == at.days_in_month,
    "is_quarter_start": lambda at: (at.day == 1) & (at.month % 3 == 1),
    "is_quarter_end": lambda at: (at.day == at.days_in_month) & (at.month % 3 == 0),
    "is_year_start": lambda at: at.day_of_year == 1,
    "is_year_end": lambda at: (at.month == 12) & (at.day == 31),
    "is_leap_year": lambda at: at.is_leap_year,
}


def date_part(part: str, ticks: Whole, unit: str, zone: Zone | None) -> Array:
    """Return a part of times.

    Parameters
    ----------
    part
        A key of :data:`PARTS`.
    ticks, unit, zone
        As for :class:`Moment`.

    Returns
    -------
    int64, or boolean where the part's name begins with ``is_``; the shape of ``ticks``.
    """
    return PARTS[part](Moment(ticks, unit, zone))


def time_difference(later: Whole, earlier: Whole, units: tuple[str, str], unit: str) -> Whole:
    """Return ``later - earlier`` in whole units, rounded down.

    Parameters
    ----------
    later, earlier
        int64 ticks.
    units
        The unit of each: keys of :data:`PER_SECOND`.
    unit
        The unit of the result: a key of :data:`PER_SECOND` or :data:`SECONDS`.

    Returns
    -------
    int64, which wraps on overflow as in NumPy.
    """
    wanted = PER_SECOND.get(unit, 1)
    finest = max(*(PER_SECOND[own] for own in units), wanted)
    ticks = later * (finest // PER_SECOND[units[0]]) - earlier * (finest // PER_SECOND[units[1]])
    return ticks // (finest // wanted * SECONDS.get(unit, 1))


def ticks_of(x: Array, valid: Array | None) -> tuple[Whole, Array | None]:
    """Return numbers as int64 ticks, rounded down, and which are valid; one beyond int64 is null."""
    if x.dtype.kind != "f":
        return x, valid
    within = (x >= -(2.0**63)) & (x < 2.0**63)
    return np.floor(np.where(within, x, 0)).astype(np.int64), None if within.all() else within


class DatePart(Elementwise):
    """A part of a time: null for a null, or 0 if the part is a boolean such as ``is_weekend``."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._part: str = step["part"]
        self._unit: str = step["unit"]
        self._zone = Zone(arrays["instants"], arrays["offsets"]) if "offsets" in arrays else None

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compute the part as int64, with 0 and 1 for a boolean."""
        ticks, valid = ticks_of(x, valid)
        part = date_part(self._part, ticks, self._unit, self._zone)
        if part.dtype != np.bool_:
            return part, valid
        return (part if valid is None else part & valid).astype(np.int64), None


class TimeDifference:
    """The difference of two times in whole units; null if either is null."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._sources: list[tuple[int, int]] = [(register, row) for register, row in step["in"]]
        first, second = step["units"]
        self._units: tuple[str, str] = (first, second)
        self._unit: str = step["unit"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Subtract: ``[1, n]`` int64, or ``[1, m]`` of the m events of all rows."""
        (later, real), (earlier, also) = (
            ticks_of(register.x[row], None if register.valid is None else register.valid[row])
            for register, row in ((registers[number], row) for number, row in self._sources)
        )
        ticks = time_difference(later, earlier, self._units, self._unit)
        valid = where_all_valid(real, also)
        offsets = registers[self._sources[0][0]].offsets
        return Register(ticks.reshape(1, -1), None if valid is None else valid.reshape(1, -1), offsets)
