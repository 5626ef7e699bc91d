"""When items that a user had count as seen: always, never (``allow_seen``), or for the latest n days.

Training and offline figures ask here too, at the time of the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..flags import every, some
from ..ranked.order import Rows
from ..reorder.per_request import PerRequest, batch_amount
from ..settings import ServingSettings
from ..spec import Arrays
from ..stores.memory_mapped import UserRows
from .specs import ALLOW_SEEN, NOW

_DAY_S = 86_400.0


class MayCome(NamedTuple):
    """What of the histories of a batch may come again.

    Parameters
    ----------
    everything
        ``[B]``: for whom all of it.
    until_s
        ``[B]`` float64: what was had at that time or before, in seconds since 1970; None is nothing.
    """

    everything: npt.NDArray[np.bool_]
    until_s: npt.NDArray[np.float64] | None


class SeenAgain:
    """What the recipe and requests say of items that users had.

    Parameters
    ----------
    settings
        The recipe's.
    clock
        Seconds since 1970-01-01 UTC, for requests that do not say what time it is.
    """

    def __init__(self, settings: ServingSettings, clock: Callable[[], float]) -> None:
        self._days, self._clock = settings.seen_again_days, clock

    @property
    def asks_times(self) -> bool:
        """Whether it matters when an item was had."""
        return self._days is not None

    def check(self, arrays: Arrays) -> None:
        """Refuse a number of days beyond the recipe's limits."""
        if isinstance(self._days, PerRequest):
            self._days.check(arrays)

    def may_come(self, arrays: Arrays) -> MayCome:
        """Return what holds for the users of a batch.

        An item that lies exactly n days back may come; one that the clock puts into the future may not.
        """
        everything = arrays[ALLOW_SEEN][:, 0]
        if self._days is None:
            return MayCome(everything, None)
        now = arrays[NOW][:, 0]
        now = np.where(np.isnan(now), self._clock(), now)
        days = np.broadcast_to(batch_amount(self._days, arrays)[:, 0], now.shape)
        # Without a number, neither of the recipe nor of the request, nothing comes again.
        until_s = np.where(np.isnan(days), -np.inf, now - days * _DAY_S)
        return MayCome(everything | (days == 0), until_s)

    def masked(self, users: UserRows, arrays: Arrays) -> tuple[Rows, Rows]:
        """Return what users ``[B]`` had and may not get again, end to end, and how much each."""
        allowed, until_s = self.may_come(arrays)
        if every(allowed):
            return np.empty(0, np.int64), np.zeros(len(allowed), np.int64)
        flat, counts = users.seen()
        if until_s is not None:
            masked = (users.seen_s() > np.repeat(until_s, counts)) & np.repeat(~allowed, counts)
            owners = np.repeat(np.arange(len(counts)), counts)
            return flat[masked], np.bincount(owners[masked], minlength=len(counts))
        if not some(allowed):
            return flat, counts
        return flat[np.repeat(~allowed, counts)], np.where(allowed, 0, counts)


def days_again(settings: ServingSettings) -> float | None:
    """Return after how many days what users had comes again if their requests say nothing; None is never."""
    days = settings.seen_again_days
    return days.default if isinstance(days, PerRequest) else days


def given_again(settings: ServingSettings) -> bool:
    """Return whether anything that users had comes to them again if their requests say nothing."""
    return settings.allow_seen or days_again(settings) is not None
