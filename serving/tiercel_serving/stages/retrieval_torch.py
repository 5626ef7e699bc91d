"""``retrieval`` on a device: masks are prepared on the host; search and merging run on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..device.masks_torch import TensorMask, filled_up
from ..device.place_torch import Place
from ..flags import Flags
from ..release.opened import Release
from ..sources.captured_torch import CapturedSources
from ..sources.merged_torch import Capturable, HostSource, MergedTensorSources, TensorSource
from ..sources.table import SOURCES
from ..spec import Array, Arrays
from .retrieval import Limits, Retrieval

#: Finds the candidates of some users: ``give(arrays, limits)``.
_Give = Callable[[Mapping[str, Any], Limits], tuple[Tensor, Tensor, Tensor]]


class TensorRetrieval(Retrieval):
    """Return each user's N best candidates, found on a device; see :class:`~.retrieval.Retrieval`.

    Requests' lists, seen items and rules on requests are evaluated on the host; the resulting mask is copied
    to the device once. A source without a device form runs on the host, and so do explanations of items.
    """

    def __init__(self, name: str, release: Release, place: Place, clock: Callable[[], float] = time) -> None:
        super().__init__(name, release, clock)
        self._place = place
        opened: list[TensorSource] = []
        read: set[str] = set()
        for kind, source in zip(release.settings.sources, self._opened, strict=True):
            row = SOURCES.name_of(kind)
            form = SOURCES.form(row)
            if form is None:
                opened.append(HostSource(source, kind.reads(), place))
            else:
                artefact = release.artefact(f"source_{kind.name}", "source")
                opened.append(form(kind, artefact, self._pad, place))
                read.update(kind.reads())
        terms = self._sources.terms
        merged = MergedTensorSources(release.settings, opened, terms, self._pad, place.device)
        self._merged: MergedTensorSources | CapturedSources = merged
        if place.capture is not None and all(
            isinstance(one, Capturable) and one.capturable for one in opened
        ):
            self._merged = CapturedSources(merged, sorted(read), place.capture)
        self.tensors = frozenset(read)

    def _found(self, arrays: Arrays, limits: Limits, unknown: Flags | None, given: Flags | None) -> Any:
        """Find the candidates of each group of users (unknown, with a list, others), with its own mask."""
        if given is None and unknown is None:
            return self._merged.personal(arrays, self._mask("personal", limits))
        none = np.zeros(len(limits.counts), np.bool_)
        unknown, given = none if unknown is None else unknown, none if given is None else given
        kinds: list[tuple[Flags, _Give]] = [
            (unknown, lambda own, less: self._merged.fallback(own, self._mask("fallback", less))),
            (~unknown & given, self._named),
            (~unknown & ~given, lambda own, less: self._merged.personal(own, self._mask("personal", less))),
        ]
        kinds = [(chosen, give) for chosen, give in kinds if chosen.any()]
        if len(kinds) == 1:
            return kinds[0][1](arrays, limits)
        found = None
        for chosen, give in kinds:
            # The groups are known on the host, so nothing waits for the device.
            places = self._place.put(np.flatnonzero(chosen))
            part = {name: _some(arrays[name], chosen, places) for name in self._read}
            own = give(part, limits.of(chosen))
            found = found or tuple(one.new_empty((len(unknown), self._merged.count)) for one in own)
            for whole, one in zip(found, own, strict=True):
                whole.index_copy_(0, places, one)
        return found

    def _named(self, arrays: Mapping[str, Any], limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
        assert limits.listed is not None
        return self._merged.ranked(arrays, self._mask("named", limits), self._place.put(limits.listed))

    def _mask(self, kind: str, limits: Limits) -> TensorMask:
        """Return the limits of a group of users as a mask on the device.

        This takes one copy, or two with an allowed set. Each group has its own buffer, since one batch may
        have several groups.
        """
        users, pad, own = len(limits.counts), self._pad, [limits.excluded]
        if limits.changed is not None and len(limits.changed.out):
            own.append(np.broadcast_to(limits.changed.out, (users, len(limits.changed.out))))
        cells = [limits.seen, *(rows.reshape(-1) for rows in own), np.full(users, pad)]
        if users > 1:
            base = np.arange(users) * (pad + 1)
            cells[0] = limits.seen + np.repeat(base, limits.counts)
            cells[1:-1] = [(rows + base[:, None]).reshape(-1) for rows in own]
            cells[-1] += base
        most = int(limits.counts.max(initial=0)) + sum(rows.shape[1] for rows in own)
        allowed = None if limits.allowed is None else self._place.put(limits.allowed)
        there = self._place.put_all({kind: filled_up(np.concatenate(cells))})[kind]
        return TensorMask(users, pad, there, most, allowed, lambda: limits.mask(pad))

    def _explained(
        self, arrays: Arrays, limits: Limits, found: Any, unknown: Flags | None
    ) -> dict[str, Array]:
        if self._asked.sent(arrays):
            take = self._place.take
            arrays = {
                name: array if isinstance(array, np.ndarray) else take(array)
                for name, array in arrays.items()
            }
            found = tuple(take(one) for one in found)
        return super()._explained(arrays, limits, found, unknown)


def _some(array: Any, chosen: Flags, places: Tensor) -> Any:
    """Return the rows of some users, on the host or the device, wherever the array is."""
    return array[places] if isinstance(array, torch.Tensor) else array[chosen]
