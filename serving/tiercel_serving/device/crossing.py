"""The tensors of one batch on the host and on a device; each is copied once, when a stage first needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from ..spec import Array, Arrays


class Copies(Protocol):
    """Copies between the host and a device; implemented by :class:`~.place_torch.Place`."""

    def put(self, array: Array) -> Any:
        """Return the array as a tensor on the device."""
        ...

    def put_all(self, arrays: Arrays) -> Mapping[str, Any]:
        """Return the arrays as tensors on the device; each name is put once per batch."""
        ...

    def take(self, tensor: Any) -> Array:
        """Return a tensor as an array."""
        ...


class Crossing:
    """Named tensors of one batch, on the host, on the device, or both.

    Parameters
    ----------
    place
        Copies them.
    arrays
        The inputs, on the host.
    """

    def __init__(self, place: Copies, arrays: Arrays) -> None:
        self._place = place
        self._host: dict[str, Array] = dict(arrays)
        self._there: dict[str, Any] = {}

    def give(self, names: Iterable[str], there: frozenset[str]) -> dict[str, Any]:
        """Return the tensors that a stage reads, those in ``there`` on the device, all others on the host."""
        wanted = list(names)
        new = {name: self._host[name] for name in wanted if name in there and name not in self._there}
        if new:
            self._there.update(self._place.put_all(new))
        return {name: self._there[name] if name in there else self.host(name) for name in wanted}

    def add(self, made: Mapping[str, Any]) -> None:
        """Add the outputs of a stage; those that are not NumPy arrays are on the device."""
        for name, value in made.items():
            (self._host if isinstance(value, np.ndarray) else self._there)[name] = value

    def on_host(self, name: str) -> bool:
        """Return whether a tensor is on the host already."""
        return name in self._host

    def host(self, name: str) -> Array:
        """Return a tensor on the host."""
        if name not in self._host:
            self._host[name] = self._place.take(self._there[name])
        return self._host[name]
