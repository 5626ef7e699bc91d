"""The sources of a recommender combined: quotas, one scale of scores, no item twice, no masked items."""

from __future__ import annotations

import itertools
from collections.abc import MutableMapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from ..flags import every
from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores, order_by_score, pick, repeated, sort_by_score
from ..settings import NO_SOURCE, ServingSettings
from ..spec import Arrays
from .table import Scorer, Source

#: Scores, rows and source codes, each ``[B, N]``; empty slots are last and hold 0, the pad row I and 0.
Candidates = tuple[Scores, Rows, npt.NDArray[np.int32]]


class MergedSources:
    """Give each user the N best candidates that the mask allows.

    Each source in order gives its share of items that no earlier one gave; what one leaves empty the others
    fill in that order, beyond their shares, and the fallback last. The first source that can score any item
    is the scale, or the weighted sum of those that the settings' ``blend`` names: by its scores all
    candidates are sorted, ties by row. Without such a source each keeps its own scores, and sources follow
    one another.

    Parameters
    ----------
    settings
        Sources, quotas and N.
    sources
        The opened sources, in the settings' order.
    items
        I.
    failures
        Source → users that it failed, counted here: the others fill its share. None lets a failure pass.

    Attributes
    ----------
    count : int
        N.
    terms : tuple of (int, float)
        The places of the sources that give the scale, each with its weight; none if nothing scores.
    """

    def __init__(
        self,
        settings: ServingSettings,
        sources: Sequence[Source],
        items: int,
        failures: MutableMapping[str, int] | None = None,
    ) -> None:
        self._sources, self.count, self._pad = tuple(sources), settings.candidates, items
        self._names, self._failures = [kind.name for kind in settings.sources], failures
        self._shares = [(place, quota) for place, quota in enumerate(settings.quotas()) if quota > 0]
        self._fallback, self._fillers = settings.fallback, settings.fillers
        self.terms = settings.blend_places()
        if not self.terms:
            scorers = (i for i, source in enumerate(self._sources) if isinstance(source, Scorer))
            self.terms = tuple((place, 1.0) for place in itertools.islice(scorers, 1))
        #: The place of a source whose own scores are on the scale.
        self._scale = self.terms[0][0] if [weight for _, weight in self.terms] == [1.0] else None
        # One source that fills every slot on its own scale has nothing to be merged with.
        own = not self.terms or self._scale == self._shares[0][0]
        self._alone = self._shares[0][1] == self.count and own
        # Its code for every slot of the largest batch so far; nobody writes to it.
        self._codes_alone = np.empty((0, self.count), np.int32)

    def personal(self, arrays: Arrays, mask: Mask) -> Candidates:
        """Return the candidates of users of whom something is known.

        Parameters
        ----------
        arrays
            What the sources read, ``[B, …]``.
        mask
            What each user must not get; it is added to.
        """
        asked = _Asked(self._sources, arrays, mask, self._pad, self._names, self._failures)
        for place, share in self._shares:
            scores, rows = asked.of(place, share)
            if self._alone and every(rows[:, -1] != self._pad):
                return scores, rows, self._codes_of(len(rows))
        self._fill(asked)
        parts = [self._scaled(asked, place, *part) for place, part in asked.parts]
        codes = np.repeat([place + 1 for place, _ in asked.parts], [part[1].shape[1] for part in parts])
        lacking = self.count - len(codes)
        if lacking > 0:  # nobody had more
            shape = (mask.users, lacking)
            parts.append((np.full(shape, np.float32(-np.inf)), np.full(shape, self._pad)))
            codes = np.append(codes, np.full(lacking, NO_SOURCE))
        scores = np.concatenate([part[0] for part in parts], axis=1)
        rows = np.concatenate([part[1] for part in parts], axis=1)
        source = np.broadcast_to(codes.astype(np.int32), rows.shape)
        order = self._order(asked, scores, rows, source)[:, : self.count]
        return self._blank(pick(scores, order), pick(rows, order), codes.astype(np.int32)[order])

    def _codes_of(self, users: int) -> npt.NDArray[np.int32]:
        """Return ``[B, N]`` of the code of the one source that fills every slot."""
        codes = self._codes_alone
        if len(codes) < users:
            code = self._shares[0][0] + 1
            codes = self._codes_alone = np.full((users, self.count), code, np.int32)
        return codes[:users]

    def fallback(self, arrays: Arrays, mask: Mask) -> Candidates:
        """Return the fallback's candidates, with its own scores, for users of whom nothing is known."""
        scores, rows = self._sources[self._fallback].candidates(arrays, mask, self.count)
        return self._blank(scores, rows, np.full(rows.shape, self._fallback + 1, np.int32))

    def ranked(self, arrays: Arrays, mask: Mask, rows: Rows) -> Candidates:
        """Return the N best of the items ``[B, M]`` that a request names, of each once, that the mask allows.

        They are on the common scale, and have the code of the source that gives it: to a ranker they are as
        if it had found them. Without a scale they keep their order, and have the first source's code. What
        can't be scored, since it passes no rule, is last; its score is 0.
        """
        rows = np.where(mask.allows(rows), rows, self._pad)
        rows[repeated(rows)] = self._pad
        if rows.shape[1] < self.count:
            rows = np.pad(rows, ((0, 0), (0, self.count - rows.shape[1])), constant_values=self._pad)
        if not self.terms:
            scores = (1 - np.cumsum(rows != self._pad, axis=1)).astype(np.float32)
        else:
            scores = self._score(arrays, rows)
        scores = np.where(rows == self._pad, np.float32(-np.inf), scores)
        scores, rows = sort_by_score(scores, rows)
        scores, rows = scores[:, : self.count], rows[:, : self.count]
        code = 1 + (self.terms[0][0] if self.terms else self._shares[0][0])
        scores = np.where(np.isneginf(scores), np.float32(0), scores)
        return self._blank(scores, rows, np.full(rows.shape, code, np.int32))

    def scores(self, arrays: Arrays, rows: Rows) -> Scores | None:
        """Return the scores ``[B, M]`` of any items on the common scale; None if there is none."""
        return self._score(arrays, rows) if self.terms else None

    def term_scores(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return what each source of the scale gives any items, without its weight: ``[T, B, M]``."""
        return np.stack([cast("Scorer", self._sources[place]).score(arrays, rows) for place, _ in self.terms])

    def _score(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return the scores ``[B, M]`` of any items on the common scale, which there is."""
        if self._scale is not None:
            return cast("Scorer", self._sources[self._scale]).score(arrays, rows)
        total = np.zeros(rows.shape, np.float32)
        for place, weight in self.terms:
            total += np.float32(weight) * cast("Scorer", self._sources[place]).score(arrays, rows)
        return total

    def _scales(self, asked: _Asked) -> bool:
        """Whether there is a common scale, and none of the sources that give it broke."""
        return bool(self.terms) and not any(place in asked.failed for place, _ in self.terms)

    def _fill(self, asked: _Asked) -> None:
        """Fill what the shares left empty, from the sources that have more and the fallback last."""
        for place in self._fillers:
            missing = self.count - asked.found()
            most = int(missing.max())
            if most <= 0:
                return
            if asked.has_more(place, missing > 0):
                scores, rows = asked.of(place, most)
                unwanted = np.arange(most) >= missing[:, None]
                rows = np.where(unwanted, self._pad, rows)
                asked.parts[-1] = (place, (np.where(unwanted, np.float32(-np.inf), scores), rows))

    def _scaled(self, asked: _Asked, place: int, scores: Scores, rows: Rows) -> tuple[Scores, Rows]:
        """Return a source's candidates with their scores on the common scale."""
        if place == self._scale or not self._scales(asked):
            return scores, rows
        return self._score(asked.arrays, rows), rows

    def _order(self, asked: _Asked, scores: Scores, rows: Rows, source: npt.NDArray[np.int32]) -> Rows:
        if self._scales(asked):
            return order_by_score(scores, rows)
        place = np.where(rows == self._pad, len(self._sources) + 1, source)
        order: Rows = np.lexsort((rows, -scores, place), axis=1)
        return order

    def _blank(self, scores: Scores, rows: Rows, source: npt.NDArray[np.int32]) -> Candidates:
        """Blank the scores and sources of empty slots, which are the last of a user."""
        if rows[:, -1].max() == self._pad:
            empty = rows == self._pad
            scores = np.where(empty, np.float32(0), scores)
            source = np.where(empty, np.int32(NO_SOURCE), source)
        return scores, rows, source


class _Asked:
    """What the sources gave to the users of a mask, one after the other; each item once."""

    def __init__(
        self,
        sources: Sequence[Source],
        arrays: Arrays,
        mask: Mask,
        pad: int,
        names: Sequence[str],
        failures: MutableMapping[str, int] | None,
    ) -> None:
        self._sources, self.arrays, self._mask, self._pad = sources, arrays, mask, pad
        self._names, self._failures = names, failures
        #: Place of a source, and scores and rows ``[B, n]`` that it gave.
        self.parts: list[tuple[int, tuple[Scores, Rows]]] = []
        #: The places of sources that broke.
        self.failed: set[int] = set()
        self._masked = 0

    def of(self, place: int, count: int) -> tuple[Scores, Rows]:
        """Ask a source for so many items that no other gave."""
        for _, (_, rows) in self.parts[self._masked :]:
            self._mask.add(rows)
        self._masked = len(self.parts)
        try:
            found = self._sources[place].candidates(self.arrays, self._mask, count)
        except Exception:
            # The last that could give anything breaks the request: an empty answer would hide it.
            if self._failures is None or len(self.failed) == len(self._sources) - 1:
                raise
            self.failed.add(place)
            self._failures[self._names[place]] += self._mask.users
            shape = (self._mask.users, count)
            found = np.full(shape, np.float32(-np.inf)), np.full(shape, self._pad)
        self.parts.append((place, found))
        return found

    def found(self) -> Rows:
        """Return ``[B]`` how many items each user got so far."""
        counts: Rows = np.sum([np.count_nonzero(rows != self._pad, axis=1) for _, (_, rows) in self.parts], 0)
        return counts

    def has_more(self, place: int, wanting: npt.NDArray[np.bool_]) -> bool:
        """Whether a source may have more for one of some users: it filled its share, or was not asked."""
        given = [rows[wanting, -1] for at, (_, rows) in self.parts if at == place]
        return place not in self.failed and all((rows != self._pad).any() for rows in given)
