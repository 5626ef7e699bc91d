"""Since when what a user had counts: always, never (``allow_seen``), or for the latest n days."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..reorder.per_request import PerRequest, batch_amount
from ..settings import ServingSettings
from ..spec import Arrays
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
