"""Batches in which no request sends any of some optional inputs, as in most."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_

from ..spec import Array, Arrays


class Unsent:
    """Recognise such batches without a look at their inputs.

    A chain gives all batches of one size the same read-only arrays in place of absent inputs
    (:meth:`~tiercel_serving.runtime.chain.Chain.lacking`). So a batch with the very arrays of an earlier one
    sends as little as that one did.

    Parameters
    ----------
    names
        The names of the inputs.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        # Batch size → the arrays; there are few batch sizes.
        self._known: dict[int, tuple[Array | None, ...]] = {}

    def holds(self, arrays: Arrays, users: int) -> bool:
        """Return whether a batch of so many users is known to send none of the inputs."""
        known = self._known.get(users)
        return known is not None and all(map(is_, map(arrays.get, self._names), known))

    def learn(self, arrays: Arrays, users: int) -> None:
        """Remember that a batch sends none of the inputs, if its arrays can't change."""
        given = tuple(map(arrays.get, self._names))
        if not any(array is not None and array.flags.writeable for array in given):
            self._known[users] = given
