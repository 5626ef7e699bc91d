"""The sources of a recommender merged: quotas, one scale of scores, no duplicates, no masked items."""

from __future__ import annotations

import itertools
from collections.abc import MutableMapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from ..flags import any_equal
from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores, order_by_score, pick, repeated, sort_by_score
from ..settings import NO_SOURCE, ServingSettings
from ..spec import Arrays
from .table import Scorer, Source

#: Scores, rows and source codes, each ``[B, N]``; empty slots are last and hold 0, the pad row I and 0.
Candidates = tuple[Scores, Rows, npt.NDArray[np.int32]]


class MergedSources:
    """Give each user the N best candidates that the mask allows.

    Each source, in order, gives up to its quota of items that no earlier source gave. Slots that stay empty
    are filled by the other sources in the same order, beyond their quotas, and by the fallback last.
    All candidates are sorted, ties by row, by scores on one common scale. That is the weighted sum of the
    sources that the settings' ``blend`` names, or else the first source that can score any item. If no source
    can, each keeps its own scores, and the candidates of one source follow those of another.

    Parameters
    ----------
    settings
        Sources, quotas and N.
    sources
        The opened sources, in the settings' order.
    items
        I.
    failures
        Source name → number of users for whom it failed, counted here; the other sources fill its slots. With
        None, an error of a source is raised.

    Attributes
    ----------
    count : int
        N.
    terms : tuple of (int, float)
        The places of the sources that make up the common scale, each with its weight; empty if none scores.
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
        #: The place of the source whose own scores are the common scale, if there is one.
        self._scale = self.terms[0][0] if [weight for _, weight in self.terms] == [1.0] else None
        # If one source fills every slot, with scores that need no rescaling, there is nothing to merge.
        own = not self.terms or self._scale == self._shares[0][0]
        self._alone = self._shares[0][1] == self.count and own
        # That source's code for every slot of the largest batch so far; read-only.
        self._codes_alone = np.empty((0, self.count), np.int32)

    def personal(self, arrays: Arrays, mask: Mask) -> Candidates:
        """Return the candidates of users about whom something is known.

        Parameters
        ----------
        arrays
            The tensors that the sources read, ``[B, …]``.
        mask
            Items that each user must not get; candidates of earlier sources are added to it.
        """
        asked = _Asked(self._sources, arrays, mask, self._pad, self._names, self._failures)
        for place, share in self._shares:
            scores, rows = asked.of(place, share)
            if self._alone and not any_equal(rows[:, -1], self._pad):
                return scores, rows, self._codes_of(len(rows))
        self._fill(asked)
        parts = [self._scaled(asked, place, *part) for place, part in asked.parts]
        codes = np.repeat([place + 1 for place, _ in asked.parts], [part[1].shape[1] for part in parts])
        lacking = self.count - len(codes)
        if lacking > 0:  # no source had more
            shape = (mask.users, lacking)
            parts.append((np.full(shape, np.float32(-np.inf)), np.full(shape, self._pad)))
            codes = np.append(codes, np.full(lacking, NO_SOURCE))
        scores = np.concatenate([part[0] for part in parts], axis=1)
        rows = np.concatenate([part[1] for part in parts], axis=1)
        source = np.broadcast_to(codes.astype(np.int32), rows.shape)
        order = self._order(asked, scores, rows, source)[:, : self.count]
        return self._blank(pick(scores, order), pick(rows, order), codes.astype(np.int32)[order])

    def _codes_of(self, users: int) -> npt.NDArray[np.int32]:
        """Return ``[B, N]`` filled with the code of the one source that fills every slot."""
        codes = self._codes_alone
        if len(codes) < users:
            code = self._shares[0][0] + 1
            codes = self._codes_alone = np.full((users, self.count), code, np.int32)
        return codes[:users]

    def fallback(self, arrays: Arrays, mask: Mask) -> Candidates:
        """Return the fallback's candidates, with its own scores, for users about whom nothing is known."""
        scores, rows = self._sources[self._fallback].candidates(arrays, mask, self.count)
        return self._blank(scores, rows, np.full(rows.shape, self._fallback + 1, np.int32))

    def ranked(self, arrays: Arrays, mask: Mask, rows: Rows) -> Candidates:
        """Return the N best allowed items of those ``[B, M]`` that a request names, without duplicates.

        They are scored on the common scale and carry the code of the scale's first source, so a ranker sees
        them as if that source had found them. Without a scale they keep their order and carry the code of the
        first source with a quota. Items that can't be scored come last with score 0: an index, for instance,
        has no vector of an item that fails a rule.
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
        """Return ``[T, B, M]``, the unweighted scores of any items from each source of the scale."""
        return np.stack([cast("Scorer", self._sources[place]).score(arrays, rows) for place, _ in self.terms])

    def _score(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return the scores ``[B, M]`` of any items on the common scale, which must exist."""
        if self._scale is not None:
            return cast("Scorer", self._sources[self._scale]).score(arrays, rows)
        total = np.zeros(rows.shape, np.float32)
        for place, weight in self.terms:
            total += np.float32(weight) * cast("Scorer", self._sources[place]).score(arrays, rows)
        return total

    def _scales(self, asked: _Asked) -> bool:
        """Whether there is a common scale, and none of its sources failed."""
        return bool(self.terms) and not any(place in asked.failed for place, _ in self.terms)

    def _fill(self, asked: _Asked) -> None:
        """Fill slots that are still empty from the sources that have more, the fallback last."""
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
        """Set score and source of empty slots to 0; a user's empty slots are the last ones."""
        if rows[:, -1].max() == self._pad:
            empty = rows == self._pad
            scores = np.where(empty, np.float32(0), scores)
            source = np.where(empty, np.int32(NO_SOURCE), source)
        return scores, rows, source


class _Asked:
    """The candidates that the sources have given so far to the users of a mask; each item once."""

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
        #: The places of sources that failed.
        self.failed: set[int] = set()
        self._masked = 0

    def of(self, place: int, count: int) -> tuple[Scores, Rows]:
        """Ask a source for ``count`` items that no earlier one gave."""
        for _, (_, rows) in self.parts[self._masked :]:
            self._mask.add(rows)
        self._masked = len(self.parts)
        try:
            found = self._sources[place].candidates(self.arrays, self._mask, count)
        except Exception:
            # If the last working source fails, the batch fails: an empty answer would hide the error.
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
        """Whether a source may have more for some of these users: it filled its quota, or was not asked."""
        given = [rows[wanting, -1] for at, (_, rows) in self.parts if at == place]
        return place not in self.failed and all((rows != self._pad).any() for rows in given)
