"""Items that were added, changed or withdrawn since the release was made, as retrieval needs them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ranked.masks import Mask
from ..ranked.order import Rows
from ..release.opened import Release
from ..rules.kept import allowed_items
from ..sources.table import Grows


class ChangedItems:
    """Items that must no longer be recommended, and items that sources must find in addition."""

    def __init__(self, release: Release) -> None:
        self._live, self._rules, self._pad = release.live_items, release.settings.rules, release.items.size
        self._out = np.zeros(0, np.int64)
        self.withdrawn: Rows = self._out

    def renew(self) -> None:
        """Read the current state of the live items."""
        if self._live is None:
            return
        overlay = self._live.overlay
        self.withdrawn = overlay.withdrawn
        passing = np.ones(len(overlay.rows), np.bool_)
        if len(passing):
            passing = allowed_items(self._rules, overlay.columns, len(passing))
        # Items that fail a rule now are masked before the search, like those that failed it at export.
        self._out = np.union1d(overlay.withdrawn, overlay.rows[~passing])

    @property
    def out(self) -> Rows:
        """``[n]`` rows that no user may get."""
        return self._out

    def mask(self, mask: Mask) -> None:
        """Mask those rows for all users."""
        if len(self._out):
            mask.add(np.broadcast_to(self._out, (mask.users, len(self._out))))

    def grown(self, name: str, source: Any) -> Any:
        """Return a source with vectors of items that it lacks added; unchanged if it can't be extended."""
        if self._live is None or not isinstance(source, Grows):
            return source
        rows, vectors = self._live.vectors(name)
        wanted = ~np.isin(rows, self._out)
        wanted[wanted] = ~source.holds(rows[wanted])
        return source.grown(vectors[wanted], rows[wanted]) if wanted.any() else source
