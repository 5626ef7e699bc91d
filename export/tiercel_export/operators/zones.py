"""A time zone as a table of the instants where its UTC offset changes, found by querying ``zoneinfo``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from tiercel_serving.features.calendar import CYCLE_SECONDS, Zone

from ..errors import WorkflowError

#: No zone's offset changed before the first year. From the second year on, all zones follow yearly rules,
#: which repeat with the calendar.
_FIRST_YEAR, _REGULAR_FROM = 1830, 2100
#: The steps of the search for changes, before and after ``_REGULAR_FROM``. The closest two changes in the
#: IANA database are four days apart, and those of a yearly rule are weeks apart.
_STEP_SECONDS, _REGULAR_STEP_SECONDS = 2 * 86_400, 14 * 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@lru_cache(maxsize=32)
def zone_table(name: str) -> Zone:
    """Return the table of a time zone.

    Parameters
    ----------
    name
        Its name in the IANA database, such as ``Europe/Zurich``.

    Returns
    -------
    The table, from 1830 to 2500, which is one cycle of the calendar (400 years) after 2100.

    Raises
    ------
    WorkflowError
        This machine's database has no such zone.
    """
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError) as error:
        raise WorkflowError(
            f"zone {name!r}: expected a time zone that this machine knows, such as 'Europe/Zurich' "
            f"({type(error).__name__}: {error}); correct the name, or install tzdata"
        ) from error

    def offset(second: int) -> int:
        return _seconds((_EPOCH + timedelta(seconds=second)).astimezone(zone).utcoffset())

    begin, regular = (
        _seconds(datetime(year, 1, 1, tzinfo=timezone.utc) - _EPOCH) for year in (_FIRST_YEAR, _REGULAR_FROM)
    )
    end = regular + CYCLE_SECONDS
    looked_at = [*range(begin, regular, _STEP_SECONDS), *range(regular, end, _REGULAR_STEP_SECONDS), end]
    instants, offsets = [], [offset(begin)]
    for before, after in pairwise(looked_at):
        now = offset(after)
        if now != offsets[-1]:
            instants.append(_change(offset, before, after))
            offsets.append(now)
    # The end is not a change: later times are mapped back into the last cycle.
    instants.append(end)
    offsets.append(offsets[-1])
    return Zone(np.array(instants, np.int64), np.array(offsets, np.int64))


def _change(offset: Callable[[int], int], low: int, high: int) -> int:
    """Return the first second after ``low`` with another offset than ``low``, by bisection."""
    of_low = offset(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if offset(middle) == of_low else (low, middle)
    return high


def _seconds(difference: timedelta | None) -> int:
    return 0 if difference is None else difference.days * 86_400 + difference.seconds
