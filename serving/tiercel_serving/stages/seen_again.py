"""When items that a user has seen are masked: always, never (``allow_seen``), or for the latest n days.

Training and offline figures use this module too, with the time of the test.
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
    """Which seen items the users of a batch may get again.

    Parameters
    ----------
    everything
        ``[B]``: which users may get all of them.
    until_s
        ``[B]`` float64, seconds since 1970: users may get items seen at that time or before; None is no item.
    """

    everything: npt.NDArray[np.bool_]
    until_s: npt.NDArray[np.float64] | None


class SeenAgain:
    """Decide which seen items may be recommended again, from the recipe and the requests.

    Parameters
    ----------
    settings
        The serving settings.
    clock
        Returns the seconds since 1970-01-01 UTC, for requests that do not send the time.
    """

    def __init__(self, settings: ServingSettings, clock: Callable[[], float]) -> None:
        self._days, self._clock = settings.seen_again_days, clock

    @property
    def asks_times(self) -> bool:
        """Whether the times at which items were seen are needed."""
        return self._days is not None

    def check(self, arrays: Arrays) -> None:
        """Reject a number of days beyond the recipe's limits."""
        if isinstance(self._days, PerRequest):
            self._days.check(arrays)

    def may_come(self, arrays: Arrays) -> MayCome:
        """Return which seen items the users of a batch may get again.

        An item seen exactly n days ago may be recommended; one with a time in the future may not.
        """
        everything = arrays[ALLOW_SEEN][:, 0]
        if self._days is None:
            return MayCome(everything, None)
        now = arrays[NOW][:, 0]
        now = np.where(np.isnan(now), self._clock(), now)
        days = np.broadcast_to(batch_amount(self._days, arrays)[:, 0], now.shape)
        # Without a number from recipe or request, nothing may be recommended again.
        until_s = np.where(np.isnan(days), -np.inf, now - days * _DAY_S)
        return MayCome(everything | (days == 0), until_s)

    def masked(self, users: UserRows, arrays: Arrays) -> tuple[Rows, Rows]:
        """Return the seen rows that users ``[B]`` may not get again, end to end, and each user's number."""
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
    """Return the days after which seen items may be recommended again by default; None is never."""
    days = settings.seen_again_days
    return days.default if isinstance(days, PerRequest) else days


def given_again(settings: ServingSettings) -> bool:
    """Return whether any seen items may be recommended again by default."""
    return settings.allow_seen or days_again(settings) is not None
