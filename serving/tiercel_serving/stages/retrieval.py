"""``retrieval``: candidates from the sources, without excluded and seen items."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import NamedTuple

import numpy as np

from ..flags import Flags, all_equal, any_equal, some
from ..ranked.masks import AllowedMask, Mask, make_mask
from ..ranked.order import Rows
from ..release.opened import Release
from ..settings import FALLBACK, UNKNOWN
from ..sources.merged import Candidates, MergedSources
from ..sources.table import open_source
from ..spec import Array, Arrays, StageSpec
from ..stores.memory_mapped import UserRows
from .changed_items import ChangedItems
from .explain_items import EXCLUDED, FOUND, HAD, NOT_ASKED, WITHDRAWN, ExplainItems
from .request_rules import RequestRules
from .seen_again import SeenAgain
from .sent_ids import SentIds
from .specs import ALLOW_SEEN, CANDIDATES, EXPLAINED, INCLUDED, RETRIEVAL
from .specs import EXCLUDED as EXCLUDED_IDS
from .unsent import Unsent

#: Largest number of items that one request may ask explanations for.
MOST_EXPLAINED = 100

#: The output tensors of explanations.
_EXPLAINED = ("explain_reason", "explain_place", "explain_score", "explain_detail")

#: Finds the candidates of some users: ``give(arrays, mask, listed)``.
_Give = Callable[[Arrays, Mask, Rows | None], Candidates]


class Limits(NamedTuple):
    """Which items the users of a batch must not get, and which are allowed.

    Parameters
    ----------
    seen, counts
        Item rows that the users have seen, end to end, and each user's number ``[B]``.
    excluded
        ``[B, E]`` rows to exclude: those that the request excludes, and those appended to the store.
    allowed
        ``[B, I + 1]``: the only items that may be recommended; None allows all others.
    listed
        ``[B, M]`` rows to rank instead of searching; None if no request sent any.
    asked
        ``[B, I + 1]``: what ``allowed`` is without rules, from the requests' lists; None is everything.
    changed
        Items that no user may get any more; None if there are none.
    """

    seen: Rows
    counts: Rows
    excluded: Rows
    allowed: Flags | None
    listed: Rows | None
    asked: Flags | None = None
    changed: ChangedItems | None = None

    def of(self, chosen: Flags) -> Limits:
        """Return the limits of some users; ``asked`` is dropped."""
        return Limits(
            self.seen[np.repeat(chosen, self.counts)],
            self.counts[chosen],
            self.excluded[chosen],
            None if self.allowed is None else self.allowed[chosen],
            None if self.listed is None else self.listed[chosen],
            changed=self.changed,
        )

    def mask(self, items: int) -> Mask:
        """Return the limits as a mask over I items."""
        if self.allowed is None:
            mask = make_mask(len(self.counts), items, self.seen, self.counts)
        else:
            mask = AllowedMask(self.allowed, self.seen, self.counts)
        if not all_equal(self.excluded, items):
            mask.add(self.excluded)
        if self.changed is not None:
            self.changed.mask(mask)
        return mask


class Retrieval:
    """Return each user's N best candidates, without excluded items and, unless allowed, seen ones.

    Items are masked before the top-N is taken, including all items outside of a request's set of allowed
    ones. So every user gets N candidates, if there are that many. A request that sends its own candidates
    gets the N best of these. Users about whom nothing is known get the fallback's items, unless the settings
    say ``rank``.

    Parameters
    ----------
    name
        The stage's name.
    release
        The release.
    clock
        Returns the seconds since 1970-01-01 UTC, for requests that do not send the time.
    """

    def __init__(self, name: str, release: Release, clock: Callable[[], float] = time) -> None:
        self.spec: StageSpec = release.stages[name]
        settings = release.settings
        self._users, self._items = release.users, release.items
        self._items.lookup  # noqa: B018 - opened now, not in the first request
        self._pad, self._settings = self._items.size, settings
        self._opened = [
            open_source(
                kind, release.artefact(f"source_{kind.name}", "source"), self._pad, settings.engine_threads
            )
            for kind in settings.sources
        ]
        self._bypass = settings.unknown_users == FALLBACK
        self._read = tuple(dict.fromkeys(name for kind in settings.sources for name in kind.reads()))
        text = release.manifest.catalogue.item_id_dtype == "bytes"
        self._sent_out, self._included, self._listed = (
            SentIds(name, self._items, settings.max_excluded, text, RETRIEVAL)
            for name in (EXCLUDED_IDS, INCLUDED, CANDIDATES)
        )
        self._asked = SentIds(EXPLAINED, self._items, MOST_EXPLAINED, text=False, stage=RETRIEVAL)
        ids = (self._included, self._listed, self._asked)
        self._unsent = Unsent((*(name for one in ids for name in one.tensor_names()), ALLOW_SEEN))
        # Batch size → the outputs if no explanation is asked for; there are few batch sizes.
        self._unasked: dict[int, dict[str, Array]] = {}
        self._seen_again = SeenAgain(settings, clock)
        if self._seen_again.asks_times:
            self._users.history_times  # noqa: B018 - likewise
        self._release, self._clock, self._changed = release, clock, ChangedItems(release)
        self.renew()

    def renew(self) -> None:
        """Include added items, exclude withdrawn ones, and evaluate the rules for the current items."""
        self._changed.renew()
        named = zip(self._settings.sources, self._opened, strict=True)
        sources = [self._changed.grown(kind.name, source) for kind, source in named]
        self._sources = MergedSources(self._settings, sources, self._pad, self._release.source_failures)
        self._rules = RequestRules(self._release, self._clock)
        # Whether what users have seen is all that limits the candidates of a batch that sends nothing.
        self._unlimited = not self._rules.opened and not self._seen_again.asks_times
        self._explain = ExplainItems(self._release, self._rules)

    def check(self, arrays: Arrays) -> None:
        """Reject too long lists, lengths that do not fit, infinities, and days beyond the recipe's limits."""
        for ids in (self._included, self._listed, self._asked):
            ids.check(arrays)
        self._rules.check(arrays)
        self._seen_again.check(arrays)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Retrieve the candidates of a batch.

        Parameters
        ----------
        arrays
            The tensors that the sources read; ``user_id [B, 1]``, ``status [B, 1]``, ``excluded_row [B, E]``,
            ``allow_seen [B, 1]``, the request's lists of allowed items, of candidates and of items to
            explain, and the tensors that rules read.

        Returns
        -------
        ``retrieved_row``, ``retrieval_score`` and ``source``, each ``[B, N]``; ``explain_reason``,
        ``explain_place``, ``explain_score`` and ``explain_detail``, each ``[B, M]`` for M items to explain.
        """
        # Items appended to the store since the export are in ``excluded_row``.
        users = self._users.read(arrays["user_id"])
        count = len(users.rows)
        unsent = self._unsent.holds(arrays, count)
        if unsent and self._unlimited:
            given = None
            limits = Limits(*users.seen(), arrays["excluded_row"], None, None, None, self._changed)
        else:
            given = self._listed.given(arrays) if self._listed.sent(arrays) else None
            limits = self._limits(arrays, users, given)
        unknown = self._unknown(arrays)
        found = self._found(arrays, limits, unknown, given)
        retrieved: dict[str, Array] = {
            "retrieved_row": found[1],
            "retrieval_score": found[0],
            "source": found[2],
        }
        if unsent:
            return {**retrieved, **self._unexplained(count)}
        if limits.asked is None and not self._asked.sent(arrays) and not some(arrays[ALLOW_SEEN]):
            self._unsent.learn(arrays, count)
        return {**retrieved, **self._explained(arrays, limits, found, unknown)}

    def _unknown(self, arrays: Arrays) -> Flags | None:
        """Return ``[B]``: which users get the fallback's items; None if none does."""
        if not self._bypass or not any_equal(arrays["status"], UNKNOWN):
            return None
        unknown: Flags = arrays["status"][:, 0] == UNKNOWN
        return unknown

    def _ranked(self, arrays: Arrays, mask: Mask, listed: Rows | None) -> Candidates:
        assert listed is not None
        return self._sources.ranked(arrays, mask, listed)

    def widths(self, arrays: Arrays) -> dict[str, int]:
        """Return output → width of one request's explanations: the number of items it asks for."""
        ids = arrays.get(EXPLAINED)
        return dict.fromkeys(_EXPLAINED, 1 if ids is None else max(ids.shape[1], 1))

    def _explained(
        self, arrays: Arrays, limits: Limits, found: Candidates, unknown: Flags | None
    ) -> dict[str, Array]:
        """Return explanations of the items that requests ask for."""
        if not self._asked.sent(arrays):
            return self._unexplained(len(found[0]))
        rows = self._asked.rows(arrays)
        unknown = np.zeros(len(rows), np.bool_) if unknown is None else unknown
        given = self._rules.given(arrays)
        # ``excluded_row`` holds the request's exclusions, and also items seen since the release was made.
        had = limits._replace(allowed=None, changed=None).mask(self._pad)
        ruled_out = make_mask(len(unknown), self._pad, limits.seen[:0], np.zeros_like(limits.counts))
        ruled_out.add(self._sent_out.rows(arrays))
        places = found[1][:, None] == rows[..., None]
        masks = {
            FOUND: places.any(axis=2),
            WITHDRAWN: np.isin(rows, self._changed.withdrawn),
            EXCLUDED: ~ruled_out.allows(rows),
            HAD: ~had.allows(rows),
        }
        if limits.asked is not None:
            masks[NOT_ASKED] = ~np.take_along_axis(limits.asked, rows, axis=1)
        reasons = self._explain.reasons(rows, masks, given)
        real = rows < self._pad
        scores = self._sources.scores(arrays, rows)
        place = places.argmax(axis=2) + 1
        if scores is None:
            scores = np.full(rows.shape, np.nan, np.float32)
            place = np.where(masks[FOUND], place, 0)
        else:
            deep = self._explain.places(self._sources, arrays, limits.mask(self._pad), rows, scores)
            place = np.where(masks[FOUND], place, np.where(np.isneginf(scores) | ~real, 0, deep))
        own = np.take_along_axis(found[0], np.maximum(place - 1, 0).clip(max=found[0].shape[1] - 1), axis=1)
        scores = np.where(masks[FOUND], own, np.where(np.isneginf(scores), np.float32(np.nan), scores))
        # Users who get the fallback's items are not searched for, so they have no common scale.
        unscaled = unknown[:, None] & ~masks[FOUND]
        place, scores = np.where(unscaled, 0, place), np.where(unscaled, np.float32(np.nan), scores)
        detail = self._explain.details(reasons, rows, given)
        return dict(zip(_EXPLAINED, (reasons, place, scores.astype(np.float32), detail), strict=True))

    def _unexplained(self, users: int) -> dict[str, Array]:
        """Return the outputs if no explanation is asked for."""
        if users not in self._unasked:
            specs = [tensor for tensor in self.spec.outputs if tensor.name in _EXPLAINED]
            blank = {one.name: np.full((users, 1), one.pad, one.numpy_dtype) for one in specs}
            self._unasked[users] = blank
        return self._unasked[users]

    def _limits(self, arrays: Arrays, users: UserRows, given: Flags | None) -> Limits:
        seen, counts = self._seen_again.masked(users, arrays)
        listed, allowed = None, None
        if self._included.sent(arrays):
            allowed = self._only(self._included.rows(arrays), self._included.given(arrays))
        if given is not None:
            listed = self._listed.rows(arrays)
            # For users who get the fallback's items, the list is their set of allowed items.
            only = self._only(listed, given)
            allowed = only if allowed is None else allowed & only
        ruled, asked = self._rules.allowed(arrays), allowed
        if ruled is not None:
            allowed = np.ones((len(counts), self._pad + 1), np.bool_) if asked is None else asked.copy()
            allowed[:, : self._pad] &= ruled
        return Limits(seen, counts, arrays["excluded_row"], allowed, listed, asked, self._changed)

    def _only(self, rows: Rows, given: Flags) -> Flags:
        """Return ``[B, I + 1]``: for users who sent a set, which items are in it; True for all others."""
        allowed = np.zeros((len(given), self._pad + 1), np.bool_)
        allowed[~given] = True
        allowed[np.arange(len(given))[:, None], rows] = True
        return allowed

    def _found(
        self, arrays: Arrays, limits: Limits, unknown: Flags | None, given: Flags | None
    ) -> Candidates:
        """Find the candidates of each group of users (unknown, with a list, others), with its own mask."""
        if given is None and unknown is None:
            return self._sources.personal(arrays, limits.mask(self._pad))
        none = np.zeros(len(limits.counts), np.bool_)
        unknown, given = none if unknown is None else unknown, none if given is None else given
        kinds: list[tuple[Flags, _Give]] = [
            (unknown, lambda own, mask, listed: self._sources.fallback(own, mask)),
            (~unknown & given, self._ranked),
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
