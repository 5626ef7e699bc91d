"""The sources of a recommender merged on a device: :mod:`.merged`, in torch.

Nothing synchronises with the device. So steps that :mod:`.merged` takes only if a user lacks items are always
taken here.
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
    """A source whose candidates are tensors; its inputs may be on the host or on the device."""

    def candidates(self, arrays: Mapping[str, Any], mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
        """Return each user's ``count`` best allowed items, as :meth:`~.table.Source.candidates` does."""
        ...


class TensorScorer(TensorSource, Protocol):
    """A source that can score any item."""

    def score(self, arrays: Mapping[str, Any], rows: Tensor) -> Tensor:
        """Return the scores ``[B, M]`` of items ``[B, M]``; -inf for the pad row."""
        ...


@runtime_checkable
class Capturable(Protocol):
    """A source that says whether all of its work is on the device, so that a graph may capture it."""

    capturable: bool


class HostSource:
    """A source without a device form: its inputs are copied to the host, its results to the device."""

    def __init__(self, source: Source, reads: Sequence[str], place: Copies) -> None:
        self._source, self._reads, self._place = source, tuple(reads), place

    def candidates(self, arrays: Mapping[str, Any], mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
        """Ask the source on the host."""
        scores, rows = self._source.candidates(self._host(arrays), mask.host(self._place), count)
        return self._place.put(scores), self._place.put(rows)

    def score(self, arrays: Mapping[str, Any], rows: Tensor) -> Tensor:
        """Score the items on the host."""
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
        The places of the sources that make up the common scale, each a :class:`TensorScorer`, with their
        weights; empty if no source scores.
    items
        I.
    device
        Device on which tensors are created.
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
        #: The place of the source whose own scores are the common scale, if there is one.
        self._scale = self._terms[0][0] if [weight for _, weight in self._terms] == [1.0] else None
        # A source that is asked for all N and leaves slots empty has no more.
        alone = [place for place, quota in self._shares if quota == self.count and place != self._fallback]
        self._fillers = [place for place in settings.fillers if place not in alone]
        codes = [place + 1 for place, quota in self._shares for _ in range(quota)]
        codes += [place + 1 for place in self._fillers for _ in range(self.count)]
        self._codes = torch.tensor(codes, dtype=torch.int32, device=device)

    def personal(self, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        """Return the candidates of users about whom something is known; they are added to the mask."""
        parts: list[tuple[Tensor, Tensor]] = []
        for place, quota in self._shares:
            if parts:
                mask.add(parts[-1][1])
            parts.append(self._scaled(place, arrays, *self._sources[place].candidates(arrays, mask, quota)))
        for place in self._fillers:
            before = _beside([rows for _, rows in parts])
            mask.add(parts[-1][1])
            scores, rows = self._sources[place].candidates(arrays, mask, self.count)
            # Each fills the slots that the earlier sources left empty.
            found = (before != self._pad).sum(dim=1, keepdim=True)
            wanted = numbers(self.count, rows.device) < self.count - found
            rows = torch.where(wanted, rows, self._pad)
            if place == self._scale or not self._terms:
                scores = torch.where(wanted, scores, _LOWEST)
            parts.append(self._scaled(place, arrays, scores, rows))
        scores, rows = (_beside(list(side)) for side in zip(*parts, strict=True))
        return self._blank(*self._merged(scores, rows))

    def fallback(self, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        """Return the fallback's candidates, with its own scores, for users about whom nothing is known."""
        scores, rows = self._sources[self._fallback].candidates(arrays, mask, self.count)
        return self._blank(scores, rows, self._code(self._fallback, rows))

    def ranked(self, arrays: Mapping[str, Any], mask: TensorMask, rows: Tensor) -> Candidates:
        """Return the N best allowed items among those ``[B, M]`` that a request names, without duplicates."""
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
        """Return the scores ``[B, M]`` of any items on the common scale, which must exist."""
        scorers = cast("Sequence[TensorScorer]", self._sources)
        if self._scale is not None:
            return scorers[self._scale].score(arrays, rows)
        total = torch.zeros(rows.shape, dtype=torch.float32, device=self._device)
        for place, weight in self._terms:
            total = total + weight * scorers[place].score(arrays, rows)
        return total

    def _merged(self, scores: Tensor, rows: Tensor) -> Candidates:
        """Return the first N candidates of all sources, given side by side in ``[B, M]``."""
        keys, source = sort_keys(scores, rows), self._codes.expand(rows.shape)
        if self._terms:
            best, found, codes = arranged(keys, self.count, scores, rows, source)
            return best, found, codes
        # Without a common scale, candidates are ordered by source; empty slots come last.
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

    ``rows`` and ``scores`` are ``[A + 1]``; the last place holds the pad row and -inf. ``in_order`` says
    whether they are sorted by (score descending, row ascending): scores that were rounded may not be.
    """
    size = len(rows) - 1
    # No user has more than mask.most masked items, so these places hold ``count`` allowed ones.
    looked = size if mask.allowed is not None else min(size, count + mask.most)
    listed = rows[:looked].expand(mask.users, looked)
    # Missing items point at the last place, even where only part of the list was looked at.
    found = first_of(mask.allows(listed), count, size)
    best, items = scores[found], rows[found]
    if not in_order:
        best, items = arranged(sort_keys(best, items), count, best, items)
    return best, items


def _beside(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
