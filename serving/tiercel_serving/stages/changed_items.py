"""What retrieval must know of items that were put, changed or withdrawn since the release was made."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ranked.masks import Mask
from ..ranked.order import Rows
from ..release.opened import Release
from ..rules.kept import allowed_items
from ..sources.table import Grows


class ChangedItems:
    """Which items must not come any more, and which come besides those that the sources hold."""

    def __init__(self, release: Release) -> None:
        self._live, self._rules, self._pad = release.live_items, release.settings.rules, release.items.size
        self._out = np.zeros(0, np.int64)
        self.withdrawn: Rows = self._out

    def renew(self) -> None:
        """Take what counts now."""
        if self._live is None:
            return
        overlay = self._live.overlay
        self.withdrawn = overlay.withdrawn
        passing = np.ones(len(overlay.rows), np.bool_)
        if len(passing):
            passing = allowed_items(self._rules, overlay.columns, len(passing))
        # What fails a rule by now is masked before the search, as all that failed it at the export.
        self._out = np.union1d(overlay.withdrawn, overlay.rows[~passing])

    @property
    def out(self) -> Rows:
        """``[n]`` rows that must come to nobody."""
        return self._out

    def mask(self, mask: Mask) -> None:
        """Mask what must not come."""
        if len(self._out):
            mask.add(np.broadcast_to(self._out, (mask.users, len(self._out))))

    def grown(self, name: str, source: Any) -> Any:
        """Return a source with the vectors of the items that it does not hold, if it has vectors at all."""
        if self._live is None or not isinstance(source, Grows):
            return source
        rows, vectors = self._live.vectors(name)
        wanted = ~np.isin(rows, self._out)
        wanted[wanted] = ~source.holds(rows[wanted])
        return source.grown(vectors[wanted], rows[wanted]) if wanted.any() else source
