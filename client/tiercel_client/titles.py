"""A cache of item titles."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

from .results import Id

Titles = Mapping[Id, str | None]


class TitleCache:
    """Titles of one release, at most ``size`` of them. Safe to use from several threads.

    They are stored in two dictionaries from which no entry is ever removed, so that readers need no lock.
    When the young dictionary holds half of the size, it replaces the old one, whose entries are dropped.
    Titles that are found in the old dictionary are added to the young one again.
    """

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._kept: tuple[str, dict[Id, str | None], dict[Id, str | None]] = ("", {}, {})
        self._lock = Lock()

    def find(self, build_id: str, ids: Mapping[Id, object]) -> tuple[Titles, list[Id]]:
        """Return the cached titles, perhaps with those of other items, and the ids that are not cached."""
        release, young, old = self._kept
        if release != build_id:
            return {}, list(ids)
        if young.keys() >= ids.keys():  # the most common case
            return young, []
        again = {one: old[one] for one in ids if one not in young and one in old}
        self.remember(build_id, again)
        found = {**young, **again}
        return found, [one for one in ids if one not in found]

    def remember(self, build_id: str, found: Titles) -> None:
        """Add titles, and drop the oldest beyond the size."""
        if not self._half:
            return
        with self._lock:
            release, young, old = self._kept
            if release != build_id:
                young, old = {}, {}
            for item_id, title in found.items():
                if len(young) >= self._half:
                    young, old = {}, young
                young[item_id] = title
            self._kept = build_id, young, old
