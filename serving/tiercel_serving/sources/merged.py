"""The sources of a recommender as one: quotas, one scale of scores, no item twice, nothing masked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from ..ranked import Mask, Rows, Scores, order_by_score, pick, repeated, sort_by_score
from ..settings import NO_SOURCE, ServingSettings
from ..spec import Arrays
from .table import Scorer, Source

#: Scores, rows and source codes, each ``[B, N]``; empty slots are last and hold 0, the pad row I and 0.
Candidates = tuple[Scores, Rows, npt.NDArray[np.int32]]


class MergedSources:
    """Give each user the N best candidates that the mask allows.

    Each source in order gives its share of items that no earlier one gave; the fallback fills what they
    leave empty. The first source that can score any item is the scale, or the weighted sum of those that the
    settings' ``blend`` names: by its scores all candidates are sorted, ties by row. Without such a source
    each keeps its own scores, and sources follow one another.

    Parameters
    ----------
    settings
        Sources, quotas and N.
    sources
        The opened sources, in the settings' order.
    items
        I.

    Attributes
    ----------
    count : int
        N.
    """

    def __init__(self, settings: ServingSettings, sources: Sequence[Source], items: int) -> None:
        self._sources, self.count, self._pad = tuple(sources), settings.candidates, items
        self._shares = [(place, quota) for place, quota in enumerate(settings.quotas()) if quota > 0]
        self._fallback = settings.fallback
        #: The places of the sources that give the scale, each with its weight; none if nothing scores.
        self._terms = settings.blend_places()
        if not self._terms:
            scorers = (i for i, source in enumerate(self._sources) if isinstance(source, Scorer))
            self._terms = tuple((place, 1.0) for place in itertools.islice(scorers, 1))
        #: The place of a source whose own scores are on the scale.
        self._scale = self._terms[0][0] if [weight for _, weight in self._terms] == [1.0] else None
        # One source that fills every slot on its own scale has nothing to be merged with.
        own = not self._terms or self._scale == self._shares[0][0]
        self._alone = self._shares[0][1] == self.count and own

    def personal(self, arrays: Arrays, mask: Mask) -> Candidates:
        """Return the candidates of users of whom something is known.

        Parameters
        ----------
        arrays
            What the sources read, ``[B, …]``.
        mask
            What each user must not get; it is added to.
        """
        if self._alone:
            place = self._shares[0][0]
            scores, rows = self._sources[place].candidates(arrays, mask, self.count)
            if rows[:, -1].max() != self._pad:
                return scores, rows, np.full(rows.shape, place + 1, np.int32)
            parts, codes = [(scores, rows)], [place + 1] * self.count
        else:
            parts, codes = self._from_each(arrays, mask)
        parts, codes = self._filled(arrays, mask, parts, codes)
        scores = np.concatenate([part[0] for part in parts], axis=1)
        rows = np.concatenate([part[1] for part in parts], axis=1)
        source = np.broadcast_to(np.array(codes, np.int32), rows.shape)
        order = self._order(scores, rows, source)[:, : self.count]
        return self._blank(pick(scores, order), pick(rows, order), np.array(codes, np.int32)[order])

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
        if not self._terms:
            scores = (1 - np.cumsum(rows != self._pad, axis=1)).astype(np.float32)
        else:
            scores = self._score(arrays, rows)
        scores = np.where(rows == self._pad, np.float32(-np.inf), scores)
        scores, rows = sort_by_score(scores, rows)
        scores, rows = scores[:, : self.count], rows[:, : self.count]
        code = 1 + (self._terms[0][0] if self._terms else self._shares[0][0])
        scores = np.where(np.isneginf(scores), np.float32(0), scores)
        return self._blank(scores, rows, np.full(rows.shape, code, np.int32))

    def scores(self, arrays: Arrays, rows: Rows) -> Scores | None:
        """Return the scores ``[B, M]`` of any items on the common scale; None if there is none."""
        return self._score(arrays, rows) if self._terms else None

    def _score(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return the scores ``[B, M]`` of any items on the common scale, which there is."""
        if self._scale is not None:
            return cast("Scorer", self._sources[self._scale]).score(arrays, rows)
        total = np.zeros(rows.shape, np.float32)
        for place, weight in self._terms:
            total += np.float32(weight) * cast("Scorer", self._sources[place]).score(arrays, rows)
        return total

    def _from_each(self, arrays: Arrays, mask: Mask) -> tuple[list[tuple[Scores, Rows]], list[int]]:
        parts: list[tuple[Scores, Rows]] = []
        codes: list[int] = []
        for place, quota in self._shares:
            if parts:
                mask.add(parts[-1][1])
            parts.append(self._scaled(place, arrays, *self._sources[place].candidates(arrays, mask, quota)))
            codes += [place + 1] * quota
        return parts, codes

    def _scaled(self, place: int, arrays: Arrays, scores: Scores, rows: Rows) -> tuple[Scores, Rows]:
        """Return a source's candidates with their scores on the common scale."""
        if not self._terms or place == self._scale:
            return scores, rows
        return self._score(arrays, rows), rows

    def _filled(
        self, arrays: Arrays, mask: Mask, parts: list[tuple[Scores, Rows]], codes: list[int]
    ) -> tuple[list[tuple[Scores, Rows]], list[int]]:
        """Fill what the shares left empty from the fallback."""
        found = sum(np.count_nonzero(rows != self._pad, axis=1) for _, rows in parts)
        missing = self.count - found
        most = int(missing.max())
        if most > 0:
            mask.add(parts[-1][1])
            scores, rows = self._sources[self._fallback].candidates(arrays, mask, most)
            unwanted = np.arange(most) >= missing[:, None]
            rows = np.where(unwanted, self._pad, rows)
            scores = np.where(unwanted, np.float32(-np.inf), scores)
            parts.append(self._scaled(self._fallback, arrays, scores, rows))
            codes = codes + [self._fallback + 1] * most
        return parts, codes

    def _order(self, scores: Scores, rows: Rows, source: npt.NDArray[np.int32]) -> Rows:
        if self._terms:
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
