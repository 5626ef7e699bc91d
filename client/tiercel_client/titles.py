"""Titles of items that were asked for before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from threading import Lock

from .results import Id


class TitleCache:
    """The ``size`` titles of one release that were asked for last. Safe to use from several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._build_id = ""
        self._titles: OrderedDict[Id, str | None] = OrderedDict()
        self._lock = Lock()

    def find(self, build_id: str, ids: Iterable[Id]) -> tuple[dict[Id, str | None], list[Id]]:
        """Return the titles that are remembered, and the ids of those that are not."""
        found: dict[Id, str | None] = {}
        missing: list[Id] = []
        with self._lock:
            titles = self._of(build_id)
            for item_id in ids:
                if item_id in titles:
                    titles.move_to_end(item_id)
                    found[item_id] = titles[item_id]
                else:
                    missing.append(item_id)
        return found, missing

    def remember(self, build_id: str, found: Mapping[Id, str | None]) -> None:
        """Remember titles, and forget the oldest beyond the size."""
        with self._lock:
            titles = self._of(build_id)
            for item_id, title in found.items():
                titles[item_id] = title
                titles.move_to_end(item_id)
            while len(titles) > self._size:
                titles.popitem(last=False)

    def _of(self, build_id: str) -> OrderedDict[Id, str | None]:
        """Return the titles of a release; those of another are forgotten."""
        if build_id != self._build_id:
            self._titles.clear()
            self._build_id = build_id
        return self._titles
