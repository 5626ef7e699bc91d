"""Items that users had, read through the served store, and which of them may be recommended again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tiercel_serving.ranked.order import Rows
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.settings import ServingSettings
from tiercel_serving.stages.seen_again import SeenAgain
from tiercel_serving.stages.specs import ALLOW_SEEN, NOW
from tiercel_serving.stores.memory_mapped import UserRows, UserTables

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Had:
    """Items that users had, and which of them may be recommended again.

    Parameters
    ----------
    offsets
        ``[U + 1]``; the items of user u are ``rows[offsets[u]:offsets[u + 1]]``.
    rows, times_s
        ``[n]`` catalogue rows, unique within a user, and the time when the user last had each, in seconds
        since 1970. ``times_s`` is None if times are unknown.
    settings
        Serving settings, which determine what may be recommended again.
    now_s
        ``[U]`` request time of each user, in seconds since 1970; None uses the latest of ``times_s``.
    """

    def __init__(
        self,
        offsets: Array,
        rows: Array,
        times_s: Array | None,
        settings: ServingSettings,
        now_s: Floats | None = None,
    ) -> None:
        # The store expects one more user without items, which stands for unknown users.
        arrays = {"history_offsets": np.append(offsets, offsets[-1]), "history_rows": rows}
        if times_s is not None:
            arrays["history_times"] = times_s
            if now_s is None:
                now_s = np.full(len(offsets) - 1, times_s.max(initial=0.0))
        self._tables = UserTables(Artefact.in_memory("users", arrays))
        self._allow_seen, self._now_s = settings.allow_seen, now_s
        self._again = SeenAgain(settings, lambda: np.nan)

    @classmethod
    def of_events(
        cls,
        users: Rows,
        items: Rows,
        times_s: Array | None,
        n_users: int,
        settings: ServingSettings,
        now_s: Floats | None = None,
    ) -> Had:
        """Build from events ``[n]`` in any order; only the latest of a user's events with an item counts."""
        times = np.zeros(len(users)) if times_s is None else times_s
        order = np.lexsort((times, items, users))
        users, items, times = users[order], items[order], times[order]
        last = np.ones(len(users), np.bool_)
        last[:-1] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        offsets = np.append(0, np.cumsum(np.bincount(users[last], minlength=n_users)))
        return cls(offsets, items[last], None if times_s is None else times[last], settings, now_s)

    def of(self, users: Rows) -> UserRows:
        """Return the store's view of the users in rows ``[B]``."""
        return self._tables.at(users)

    def masked(self, users: Rows) -> tuple[Rows, Rows]:
        """Return the item rows that users ``[B]`` may not get again, concatenated, and counts per user."""
        arrays = {ALLOW_SEEN: np.full((len(users), 1), self._allow_seen)}
        if self._now_s is not None:
            arrays[NOW] = self._now_s[users][:, None]
        return self._again.masked(self.of(users), arrays)

    def findable(self, users: Rows, items: Rows, n_items: int) -> npt.NDArray[np.bool_]:
        """Return for (user, item) pairs ``[n]`` whether a server may recommend the item to the user."""
        asked = np.unique(users)
        rows, counts = self.masked(asked)
        masked = np.repeat(asked, counts) * n_items + rows
        found: npt.NDArray[np.bool_] = ~np.isin(users * n_items + items, masked)
        return found


def latest_s(users: Rows, times_s: Array, n_users: int) -> Floats:
    """Return the time of each user's latest event ``[U]``, or of the latest of all if a user has none."""
    latest = np.full(n_users, -np.inf)
    np.maximum.at(latest, users, times_s)
    return np.where(np.isneginf(latest), latest.max(initial=0.0), latest)
