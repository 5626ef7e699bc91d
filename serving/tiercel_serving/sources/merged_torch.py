"""The sources of a recommender as one, on a device: :mod:`.merged`, in torch.

Nothing waits for the device, so that what :mod:`.merged` does only where somebody lacks items is always done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..device.crossing import Copies
from ..device.masks_torch import TensorMask
from ..device.order_torch import arranged, ascending, first_of, numbers, repeated, sort_keys
from ..settings import NO_SOURCE, ServingSettings
from .table import Scorer, Source

#: Scores, rows and source codes, each ``[B, N]``; empty slots are last and hold 0, the pad row I and 0.
Candidates = tuple[Tensor, Tensor, Tensor]

_LOWEST = float("-inf")


class TensorSource(Protocol):
    """A source whose candidates are tensors; what it reads may lie on either side."""

    def candidates(self, arrays: Mapping[str, Any], mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
        """Return each user's ``count`` best allowed items, as :meth:`~.table.Source.candidates` does."""
        ...


class TensorScorer(TensorSource, Protocol):
    """One that scores any item."""

    def score(self, arrays: Mapping[str, Any], rows: Tensor) -> Tensor:
        """Return the scores ``[B, M]`` of items ``[B, M]``; -inf for the pad row."""
        ...


@runtime_checkable
class Capturable(Protocol):
    """A source that can say that all of its work is on the device: it may be captured as a graph."""

    capturable: bool


class HostSource:
    """A source without a form on a device: what it reads goes to the host, what it finds comes back."""

    def __init__(self, source: Source, reads: Sequence[str], place: Copies) -> None:
        self._source, self._reads, self._place = source, tuple(reads), place

    def candidates(self, arrays: Mapping[str, Any], mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
        """Ask the source on the host."""
        scores, rows = self._source.candidates(self._host(arrays), mask.host(self._place), count)
        return self._place.put(scores), self._place.put(rows)

    def score(self, arrays: Mapping[str, Any], rows: Tensor) -> Tensor:
        """Have the source score on the host."""
        assert isinstance(self._source, Scorer)
        found: Tensor = self._place.put(self._source.score(self._host(arrays), self._place.take(rows)))
        return found

    def _host(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: arrays[name] for name in self._reads}
        return {
            name: array if isinstance(array, np.ndarray) else self._place.take(array)
            for name, array in given.items()
        }


class MergedTensorSources:
    """Give each user the N best candidates that the mask allows; see :class:`~.merged.MergedSources`.

    Parameters
    ----------
    settings
        Sources, quotas and N.
    sources
        The opened sources, in the settings' order.
    terms
        The places of the sources that give the scale, :class:`TensorScorer` each, with their weights; none
        if no source scores.
    items
        I.
    device
        Where tensors are made.
    """

    def __init__(
        self,
        settings: ServingSettings,
        sources: Sequence[TensorSource],
        terms: Sequence[tuple[int, float]],
        items: int,
        device: torch.device,
    ) -> None:
        self._sources, self.count, self._pad = tuple(sources), settings.candidates, items
        self._shares = [(place, quota) for place, quota in enumerate(settings.quotas()) if quota > 0]
        self._fallback, self._terms, self._device = settings.fallback, tuple(terms), device
        #: The place of a source whose own scores are on the scale.
        self._scale = self._terms[0][0] if [weight for _, weight in self._terms] == [1.0] else None
        # A source that was asked for all and leaves something empty has no more.
        alone = [place for place, quota in self._shares if quota == self.count and place != self._fallback]
        self._fillers = [place for place in settings.fillers if place not in alone]
        codes = [place + 1 for place, quota in self._shares for _ in range(quota)]
        codes += [place + 1 for place in self._fillers for _ in range(self.count)]
        self._codes = torch.tensor(codes, dtype=torch.int32, device=device)

    def personal(self, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        """Return the candidates of users of whom something is known; the mask is added to."""
        parts: list[tuple[Tensor, Tensor]] = []
        for place, quota in self._shares:
            if parts:
                mask.add(parts[-1][1])
            parts.append(self._scaled(place, arrays, *self._sources[place].candidates(arrays, mask, quota)))
        for place in self._fillers:
            before = _beside([rows for _, rows in parts])
            mask.add(parts[-1][1])
            scores, rows = self._sources[place].candidates(arrays, mask, self.count)
            # Each gives as many as those before left of the N.
            found = (before != self._pad).sum(dim=1, keepdim=True)
            wanted = numbers(self.count, rows.device) < self.count - found
            rows = torch.where(wanted, rows, self._pad)
            if place == self._scale or not self._terms:
                scores = torch.where(wanted, scores, _LOWEST)
            parts.append(self._scaled(place, arrays, scores, rows))
        scores, rows = (_beside(list(side)) for side in zip(*parts, strict=True))
        return self._blank(*self._merged(scores, rows))

    def fallback(self, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        """Return the fallback's candidates, with its own scores, for users of whom nothing is known."""
        scores, rows = self._sources[self._fallback].candidates(arrays, mask, self.count)
        return self._blank(scores, rows, self._code(self._fallback, rows))

    def ranked(self, arrays: Mapping[str, Any], mask: TensorMask, rows: Tensor) -> Candidates:
        """Return the N best of the items ``[B, M]`` that a request names, of each once, that may come."""
        rows = rows.masked_fill(~mask.allows(rows), self._pad)
        rows = rows.masked_fill(repeated(rows), self._pad)
        missing = self.count - rows.shape[1]
        if missing > 0:
            rows = torch.cat([rows, rows.new_full((len(rows), missing), self._pad)], dim=1)
        if not self._terms:
            scores = (1 - (rows != self._pad).cumsum(dim=1)).float()
        else:
            scores = self._score(arrays, rows)
        scores = scores.masked_fill(rows == self._pad, _LOWEST)
        scores, rows = arranged(sort_keys(scores, rows), self.count, scores, rows)
        place = self._terms[0][0] if self._terms else self._shares[0][0]
        return self._blank(scores.masked_fill(torch.isneginf(scores), 0), rows, self._code(place, rows))

    def _scaled(
        self, place: int, arrays: Mapping[str, Any], scores: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        if place == self._scale or not self._terms:
            return scores, rows
        return self._score(arrays, rows), rows

    def _score(self, arrays: Mapping[str, Any], rows: Tensor) -> Tensor:
        """Return the scores ``[B, M]`` of any items on the common scale, which there is."""
        scorers = cast("Sequence[TensorScorer]", self._sources)
        if self._scale is not None:
            return scorers[self._scale].score(arrays, rows)
        total = torch.zeros(rows.shape, dtype=torch.float32, device=self._device)
        for place, weight in self._terms:
            total = total + weight * scorers[place].score(arrays, rows)
        return total

    def _merged(self, scores: Tensor, rows: Tensor) -> Candidates:
        """Return the first N of all parts, which lie side by side."""
        keys, source = sort_keys(scores, rows), self._codes.expand(rows.shape)
        if self._terms:
            best, found, codes = arranged(keys, self.count, scores, rows, source)
            return best, found, codes
        # Without a scale sources follow one another, and empty slots come last.
        order = ascending(keys)
        place = torch.where(rows == self._pad, len(self._sources) + 1, source)
        order = order.gather(1, ascending(place.gather(1, order).long()))[:, : self.count]
        return scores.gather(1, order), rows.gather(1, order), source.gather(1, order)

    def _code(self, place: int, rows: Tensor) -> Tensor:
        return torch.full(rows.shape, place + 1, dtype=torch.int32, device=self._device)

    def _blank(self, scores: Tensor, rows: Tensor, source: Tensor) -> Candidates:
        empty = rows == self._pad
        return scores.masked_fill(empty, 0), rows, source.masked_fill(empty, NO_SOURCE)


def first_listed(
    rows: Tensor, scores: Tensor, in_order: bool, mask: TensorMask, count: int
) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` of a list that the mask allows, as :meth:`TensorSource.candidates` does.

    ``rows`` and ``scores`` are ``[A + 1]``, the last place holds the pad row and -inf. ``in_order`` says that
    they are by (score descending, row ascending), of which scores that were rounded may know nothing.
    """
    size = len(rows) - 1
    # Of so many places no user has more masked than the mask has of anybody.
    looked = size if mask.allowed is not None else min(size, count + mask.most)
    listed = rows[:looked].expand(mask.users, looked)
    # Where there are no more, the last place, also if not so many were looked at.
    found = first_of(mask.allows(listed), count, size)
    best, items = scores[found], rows[found]
    if not in_order:
        best, items = arranged(sort_keys(best, items), count, best, items)
    return best, items


def _beside(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
