"""``retrieval``: candidates from the sources; what must not come never enters, nor what a user had."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..ranked import AllowedMask, Mask, Rows, make_mask
from ..release.opened import Release
from ..settings import FALLBACK, UNKNOWN
from ..sources.merged import Candidates, MergedSources
from ..sources.table import open_source
from ..spec import Array, Arrays, StageSpec
from ..stores.memory_mapped import UserRows
from .request_rules import RequestRules
from .sent_ids import SentIds
from .specs import ALLOW_SEEN, CANDIDATES, INCLUDED, RETRIEVAL

Flags = npt.NDArray[np.bool_]

#: What is done for some users: ``give(arrays, mask, listed)``.
_Give = Callable[[Arrays, Mask, Rows], Candidates]


class Limits(NamedTuple):
    """What the users of a batch must not get, and what alone they may.

    Parameters
    ----------
    seen, counts
        Item rows that they had, end to end, and how many belong to each.
    excluded
        ``[B, E]`` rows that the request rules out.
    allowed
        ``[B, I + 1]``: what they may get; None is everything else.
    listed
        ``[B, M]`` rows to be ranked in place of what is found.
    """

    seen: Rows
    counts: Rows
    excluded: Rows
    allowed: Flags | None
    listed: Rows

    def of(self, chosen: Flags) -> Limits:
        """Return those of some users."""
        return Limits(
            self.seen[np.repeat(chosen, self.counts)],
            self.counts[chosen],
            self.excluded[chosen],
            None if self.allowed is None else self.allowed[chosen],
            self.listed[chosen],
        )

    def mask(self, items: int) -> Mask:
        """Return them as a mask over I items."""
        if self.allowed is None:
            mask = make_mask(len(self.counts), items, self.seen, self.counts)
        else:
            mask = AllowedMask(self.allowed, self.seen, self.counts)
        mask.add(self.excluded)
        return mask


class Retrieval:
    """Give each user the N best candidates that are not excluded nor, unless allowed, already had.

    What must not come is taken out before the top-N is cut, and so is all that is not in a request's set of
    what may come: everybody gets N candidates, if there are so many. A request that brings its own candidates
    gets the N best of these. Users of whom nothing is known get the fallback's items, unless the settings say
    ``rank``.

    Parameters
    ----------
    name
        The stage's name.
    release
        The release.
    clock
        What time it is, for rules, where requests do not say it.
    """

    def __init__(self, name: str, release: Release, clock: Callable[[], float] = time) -> None:
        self.spec: StageSpec = release.stages[name]
        settings = release.settings
        self._users, self._items = release.users, release.items
        self._items.lookup  # noqa: B018 - opened now, not in the first request
        self._pad = release.manifest.catalogue.items
        opened = [
            open_source(
                kind, release.artefact(f"source_{kind.name}", "source"), self._pad, settings.engine_threads
            )
            for kind in settings.sources
        ]
        self._sources = MergedSources(settings, opened, self._pad)
        self._bypass = settings.unknown_users == FALLBACK
        self._read = tuple(dict.fromkeys(name for kind in settings.sources for name in kind.reads()))
        text = release.manifest.catalogue.item_id_dtype == "bytes"
        self._included, self._listed = (
            SentIds(name, self._items, settings.max_excluded, text, RETRIEVAL)
            for name in (INCLUDED, CANDIDATES)
        )
        self._rules = RequestRules(release, clock)
        # Rules speak of users as they are now, of the release's own where no rule does.
        self._live = release.store if self._rules.reads_users else release.users

    def check(self, arrays: Arrays) -> None:
        """Refuse long lists, lengths that do not fit, and infinities."""
        for ids in (self._included, self._listed):
            ids.check(arrays)
        self._rules.check(arrays)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Retrieve.

        Parameters
        ----------
        arrays
            What the sources read; ``user_id [B, 1]``, ``status [B, 1]``, ``excluded_row [B, E]``,
            ``allow_seen [B, 1]``, the request's lists of what may come and of candidates, and what rules
            read of it.

        Returns
        -------
        ``retrieved_row``, ``retrieval_score`` and ``source``, each ``[B, N]``.
        """
        # What was appended to the store since is in ``excluded_row``.
        users = self._users.read(arrays["user_id"])
        given = self._listed.given(arrays)
        limits = self._limits(arrays, users, given)
        unknown = (arrays["status"][:, 0] == UNKNOWN) & self._bypass
        found = self._found(arrays, limits, unknown, given)
        return {"retrieved_row": found[1], "retrieval_score": found[0], "source": found[2]}

    def _limits(self, arrays: Arrays, users: UserRows, given: Flags) -> Limits:
        seen, counts = _masked(users, arrays[ALLOW_SEEN][:, 0])
        listed = self._listed.rows(arrays)
        allowed = None
        included = self._included.given(arrays)
        if included.any():
            allowed = self._only(self._included.rows(arrays), included)
        if given.any():
            # Of whoever is answered by the fallback the list is what may come.
            only = self._only(listed, given)
            allowed = only if allowed is None else allowed & only
        live = users if self._live is self._users else self._live.read(arrays["user_id"])
        ruled = self._rules.allowed(arrays, live)
        if ruled is not None:
            if allowed is None:
                allowed = np.ones((len(counts), self._pad + 1), np.bool_)
            allowed[:, : self._pad] &= ruled
        return Limits(seen, counts, arrays["excluded_row"], allowed, listed)

    def _only(self, rows: Rows, given: Flags) -> Flags:
        """Return ``[B, I + 1]``: what may come, of those who gave a set its rows alone."""
        allowed = np.zeros((len(given), self._pad + 1), np.bool_)
        allowed[~given] = True
        allowed[np.arange(len(given))[:, None], rows] = True
        return allowed

    def _found(self, arrays: Arrays, limits: Limits, unknown: Flags, given: Flags) -> Candidates:
        """Answer each kind of users, those of another with masks of their own."""
        kinds: list[tuple[Flags, _Give]] = [
            (unknown, lambda own, mask, listed: self._sources.fallback(own, mask)),
            (~unknown & given, self._sources.ranked),
            (~unknown & ~given, lambda own, mask, listed: self._sources.personal(own, mask)),
        ]
        kinds = [(chosen, give) for chosen, give in kinds if chosen.any()]
        if len(kinds) == 1:
            return kinds[0][1](arrays, limits.mask(self._pad), limits.listed)
        shape = (len(unknown), self._sources.count)
        scores, rows, source = (
            np.empty(shape, np.float32),
            np.empty(shape, np.int64),
            np.empty(shape, np.int32),
        )
        for chosen, give in kinds:
            part = {name: arrays[name][chosen] for name in self._read}
            own = limits.of(chosen)
            scores[chosen], rows[chosen], source[chosen] = give(part, own.mask(self._pad), own.listed)
        return scores, rows, source


def _masked(users: UserRows, allowed: Flags) -> tuple[Rows, Rows]:
    """Return what users had, end to end, and how much each: nothing where that is ``allowed``."""
    if allowed.all():
        return np.empty(0, np.int64), np.zeros(len(allowed), np.int64)
    flat, counts = users.seen()
    if not allowed.any():
        return flat, counts
    return flat[np.repeat(~allowed, counts)], np.where(allowed, 0, counts)
