"""Operators on times: parts of a date, and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tiercel_serving.features.calendar import (
    PARTS,
    PER_SECOND,
    SECONDS,
    Whole,
    date_part,
    ticks_of,
    time_difference,
)
from tiercel_serving.features.registers import where_all_valid

from ..errors import WorkflowError
from .base import OwnOperator, Valid, made, numbers, one_of, wrong_column
from .zones import zone_table

#: Names of the units of differences, as in pandas and NumPy.
UNITS = (*PER_SECOND, *(unit for unit in SECONDS if unit not in PER_SECOND))


class DatePart(OwnOperator):
    """Parts of a time.

    ``["timestamp"] >> DatePart("hour", "is_weekend", unit="s")`` makes ``timestamp_hour`` and
    ``timestamp_is_weekend``.

    Parameters
    ----------
    *parts
        ``year``, ``quarter``, ``month``, ``week`` (ISO 8601), ``day``, ``weekday`` (0 is Monday),
        ``dayofyear``, ``hour``, ``minute``, ``second``, ``days_in_month``, which are int64;
        ``is_weekend``, ``is_month_start``, ``is_month_end``, ``is_quarter_start``, ``is_quarter_end``,
        ``is_year_start``, ``is_year_end``, ``is_leap_year``, which are booleans.
    unit
        The unit in which a numeric column counts since 1970-01-01 UTC: ``s``, ``ms``, ``us`` or ``ns``.
        Fractions are rounded down. A datetime column has its own unit.
    zone
        IANA name of the time zone in which the parts are computed, such as ``"Europe/Zurich"``; None is UTC.
        The table of its UTC offsets is read from this machine's database when the operator is created.

    Notes
    -----
    The parts of a null are null, or False for the booleans, as in pandas' ``.dt``. Years are those of the
    proleptic Gregorian calendar, including years before 1678 and after 2262.

    Raises
    ------
    WorkflowError
        A part, unit or zone is unknown; or, at fit, a column is text, or numbers without a unit.
    """

    def __init__(self, *parts: str, unit: str | None = None, zone: str | None = None) -> None:
        super().__init__()
        if not parts:
            raise WorkflowError(f"DatePart: name at least one part: {', '.join(PARTS)}")
        self.parts = tuple(one_of(part, PARTS, "DatePart") for part in parts)
        self.unit = unit if unit is None else one_of(unit, PER_SECOND, "DatePart: unit")
        self.zone = zone
        self.zone_table = None if zone is None else zone_table(zone)

    @property
    def suffixes(self) -> tuple[str, ...]:  # type: ignore[override]
        """``_<part>`` for each part."""
        return tuple(f"_{part}" for part in self.parts)

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Take a part."""
        ticks, valid, unit = times(series, self.unit, self)
        part = date_part(suffix[1:], ticks, unit, self.zone_table)
        if part.dtype == np.bool_:
            return made(part if valid is None else part & valid, None, series)
        return made(part, valid, series)


class TimeDifference(OwnOperator):
    """The difference of a time and an earlier one in another column, in whole units, rounded down.

    Parameters
    ----------
    column
        The earlier time: the name of a raw column, or a node of one column.
    unit
        ``W`` (weeks), ``D``, ``h``, ``m`` (minutes), ``s``, ``ms``, ``us`` or ``ns``. ``D`` is ``.dt.days``.
    of, column_of
        The unit in which numeric columns count since 1970 (``s``, ``ms``, ``us`` or ``ns``), and that of
        ``column`` if it differs. Datetime columns have their own unit.

    Notes
    -----
    The difference is int64; null if either time is null.

    Raises
    ------
    WorkflowError
        A unit is unknown; or, at fit, a column is text, or numbers without a unit.
    """

    def __init__(
        self, column: Any, unit: str = "D", *, of: str | None = None, column_of: str | None = None
    ) -> None:
        super().__init__()
        self.column = column
        self.unit = one_of(unit, UNITS, "TimeDifference: unit")
        self.of = of if of is None else one_of(of, PER_SECOND, "TimeDifference: of")
        self.column_of = (
            self.of if column_of is None else one_of(column_of, PER_SECOND, "TimeDifference: column_of")
        )

    @property
    def operand(self) -> Any:
        """The earlier time."""
        return self.column

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Subtract."""
        later, real, unit = times(series, self.of, self)
        earlier, also, other_unit = times(other, self.column_of, self)
        difference = time_difference(later, earlier, (unit, other_unit), self.unit)
        return made(difference, where_all_valid(real, also), series)


def times(series: Any, unit: str | None, operator: Any) -> tuple[Whole, Valid, str]:
    """Return a column of times as int64 counts since 1970, which are valid (None if all), and their unit."""
    dtype = series.dtype
    if isinstance(dtype, pd.DatetimeTZDtype):
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    if getattr(series.dtype, "kind", "O") == "M":
        values = series.to_numpy()
        null = np.isnat(values)
        return values.astype(np.int64), ~null if null.any() else None, np.datetime_data(values.dtype)[0]
    x, valid = numbers(series, operator)
    if unit is None:
        remedy = 'say the unit, which is "s" in a recipe: dates are whole seconds there'
        expected, came = "dates and times, or a unit for numbers", f"{dtype} and no unit"
        raise wrong_column(operator, series, expected, came, remedy)
    ticks, held = ticks_of(x, valid)
    return ticks, where_all_valid(valid, held), unit
