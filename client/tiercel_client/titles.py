"""Titles of items that were asked for before."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

from .results import Id

Titles = Mapping[Id, str | None]


class TitleCache:
    """Titles of one release, ``size`` of them at most. Safe to use from several threads.

    They lie in two dictionaries which nothing is ever taken from, so that whoever reads one needs no lock.
    When the young one is as large as half of the size, it becomes the old one, and what that held is
    forgotten; what is found in the old one is young again.
    """

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._kept: tuple[str, dict[Id, str | None], dict[Id, str | None]] = ("", {}, {})
        self._lock = Lock()

    def find(self, build_id: str, ids: Mapping[Id, object]) -> tuple[Titles, list[Id]]:
        """Return the titles that are remembered, others perhaps among them; and which of the ids are not."""
        release, young, old = self._kept
        if release != build_id:
            return {}, list(ids)
        if young.keys() >= ids.keys():  # what most answers are
            return young, []
        again = {one: old[one] for one in ids if one not in young and one in old}
        self.remember(build_id, again)
        found = {**young, **again}
        return found, [one for one in ids if one not in found]

    def remember(self, build_id: str, found: Titles) -> None:
        """Remember titles, and forget the oldest beyond the size."""
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
