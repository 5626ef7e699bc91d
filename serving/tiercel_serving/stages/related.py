"""``related``: items similar to given ones, from the artefacts that also serve users."""

from __future__ import annotations

import numpy as np

from ..errors import InvalidSettings
from ..ranked.masks import make_mask
from ..ranked.order import Rows, Scores
from ..release.opened import Release
from ..sources.table import Relates, open_source
from ..spec import Array, Arrays, StageSpec
from .changed_items import ChangedItems
from .ordering import check_k
from .sent_ids import SentIds
from .specs import EXCLUDED, RELATED, RELATED_TO


class Related:
    """Return the items most similar to given ones; a later source fills what earlier ones leave empty.

    The given items and those that the request excludes are left out. So are items that fail a rule on item
    columns only, since no source holds them. Scores are each source's own, so a later source's items come
    after those of an earlier one.
    """

    def __init__(self, name: str, release: Release) -> None:
        self.spec: StageSpec = release.stages[name]
        settings, self._items = release.settings, release.items
        self._items.lookup  # noqa: B018 - opened now, not in the first request
        self._pad = self._items.size
        kinds = {kind.name: kind for kind in settings.sources}
        self._opened: dict[str, Relates] = {}
        for source in settings.related:
            opened = open_source(
                kinds[source],
                release.artefact(f"source_{source}", "source"),
                self._pad,
                settings.engine_threads,
            )
            if not isinstance(opened, Relates):
                raise InvalidSettings(
                    f"settings.related: the source {source!r} knows no items that are like others; "
                    "name one with vectors or item weights"
                )
            self._opened[source] = opened
        text = release.manifest.catalogue.item_id_dtype == "bytes"
        limit = settings.max_excluded
        self._given = SentIds(RELATED_TO, self._items, limit, text=False, stage=RELATED)
        self._excluded = SentIds(EXCLUDED, self._items, limit, text, RELATED)
        self._k_default, self._k_max = settings.k_default, settings.k_max
        self._changed = ChangedItems(release)
        self.renew()

    def renew(self) -> None:
        """Include added items, and exclude withdrawn ones."""
        self._changed.renew()
        self._sources = [self._changed.grown(name, source) for name, source in self._opened.items()]

    def check(self, arrays: Arrays) -> None:
        """Reject a ``k`` outside of 1 … k_max, too long lists, and lengths that do not fit."""
        check_k(arrays, self._k_max)
        for ids in (self._given, self._excluded):
            ids.check(arrays)

    def widths(self, arrays: Arrays) -> dict[str, int]:
        """Return output → width for one request: its largest k."""
        k = arrays.get("k")
        return dict.fromkeys(("item_id", "score"), self._k_default if k is None else int(k.max()))

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Return the items most similar to those of each row of the batch.

        Returns
        -------
        ``item_id`` and ``score`` ``[B, max k]``, ``count [B, 1]``. A row without a known item gets no items.
        """
        given, k = self._given.rows(arrays), arrays["k"]
        count = int(k.max())
        rows = np.full((len(k), count), self._pad, np.int64)
        scores = np.zeros((len(k), count), np.float32)
        mask = make_mask(len(k), self._pad, np.zeros(0, np.int64), np.zeros(len(k), np.int64))
        mask.add(given)
        mask.add(self._excluded.rows(arrays))
        self._changed.mask(mask)
        for source in self._sources:
            free = rows == self._pad
            if not free[:, -1].any():
                break
            found = source.related(given, mask, count)
            _append(rows, scores, found, self._pad)
            mask.add(rows)
        real = (np.arange(count) < k) & (rows != self._pad)
        rows = np.where(real, rows, self._pad)
        counts = np.count_nonzero(real, axis=1)[:, None].astype(np.int32)
        return {"item_id": self._items.ids(rows), "score": np.where(real, scores, 0), "count": counts}


def _append(rows: Rows, scores: Scores, found: tuple[Scores, Rows], pad: int) -> None:
    """Append the found scores and rows to those that are there, ``[B, k]`` each, real slots first."""
    taken = np.count_nonzero(rows != pad, axis=1)
    wanted = np.minimum(np.count_nonzero(found[1] != pad, axis=1), rows.shape[1] - taken)
    places = np.arange(rows.shape[1])
    to = (places >= taken[:, None]) & (places < (taken + wanted)[:, None])
    of = places < wanted[:, None]
    rows[to], scores[to] = found[1][of], found[0][of]
