"""``retrieval``: candidates from the sources; excluded items never enter, nor what a user already had."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..ranked import Mask, Rows, make_mask
from ..release.opened import Release
from ..settings import FALLBACK, UNKNOWN
from ..sources.merged import MergedSources
from ..sources.table import open_source
from ..spec import Array, Arrays, StageSpec
from ..stores.memory_mapped import UserRows
from .specs import ALLOW_SEEN


class Retrieval:
    """Give each user the N best candidates that are not excluded nor, unless allowed, already had.

    Masked items are taken out before the top-N is cut. Users of whom nothing is known get the fallback's
    items, unless the settings say ``rank``.

    Parameters
    ----------
    name
        The stage's name.
    release
        The release.
    """

    def __init__(self, name: str, release: Release) -> None:
        self.spec: StageSpec = release.stages[name]
        settings = release.settings
        self._users, self._pad = release.users, release.manifest.catalogue.items
        opened = [
            open_source(
                kind, release.artefact(f"source_{kind.name}", "source"), self._pad, settings.engine_threads
            )
            for kind in settings.sources
        ]
        self._sources = MergedSources(settings, opened, self._pad)
        self._count = settings.candidates
        self._bypass = settings.unknown_users == FALLBACK
        self._read = tuple(dict.fromkeys(name for kind in settings.sources for name in kind.reads()))

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Retrieve.

        Parameters
        ----------
        arrays
            What the sources read; ``user_id [B, 1]``, ``status [B, 1]``, ``excluded_row [B, E]`` and
            ``allow_seen [B, 1]``.

        Returns
        -------
        ``retrieved_row``, ``retrieval_score`` and ``source``, each ``[B, N]``.
        """
        # What was appended to the store since is in ``excluded_row``: one stage alone reads live values.
        users = self._users.read(arrays["user_id"])
        seen = _masked(users, arrays[ALLOW_SEEN][:, 0])
        mask = make_mask(len(users.known), self._pad, *seen)
        mask.add(arrays["excluded_row"])
        unknown = arrays["status"][:, 0] == UNKNOWN
        if not (self._bypass and unknown.any()):
            scores, rows, source = self._sources.personal(arrays, mask)
        elif unknown.all():
            scores, rows, source = self._sources.fallback(arrays, mask)
        else:
            scores, rows, source = self._mixed(arrays, seen, unknown)
        return {"retrieved_row": rows, "retrieval_score": scores, "source": source}

    def _mixed(self, arrays: Arrays, seen: tuple[Rows, Rows], unknown: Array) -> tuple[Array, Array, Array]:
        """Answer a batch with both kinds of users, each with its own mask."""
        rows = np.empty((len(unknown), self._count), np.int64)
        scores, source = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.int32)
        for chosen, give in ((~unknown, self._sources.personal), (unknown, self._sources.fallback)):
            part = {name: arrays[name][chosen] for name in self._read}
            found = give(part, self._mask_of(arrays, seen, chosen))
            scores[chosen], rows[chosen], source[chosen] = found
        return scores, rows, source

    def _mask_of(self, arrays: Arrays, seen: tuple[Rows, Rows], chosen: npt.NDArray[np.bool_]) -> Mask:
        flat, counts = seen
        mask = make_mask(
            int(np.count_nonzero(chosen)), self._pad, flat[np.repeat(chosen, counts)], counts[chosen]
        )
        mask.add(arrays["excluded_row"][chosen])
        return mask


def _masked(users: UserRows, allowed: npt.NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Return what users had, end to end, and how much each: nothing where that is ``allowed``."""
    if allowed.all():
        return np.empty(0, np.int64), np.zeros(len(allowed), np.int64)
    flat, counts = users.seen()
    if not allowed.any():
        return flat, counts
    return flat[np.repeat(~allowed, counts)], np.where(allowed, 0, counts)
