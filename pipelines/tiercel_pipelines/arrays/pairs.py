"""Interactions as arrays, sorted by user and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """Interactions, sorted by user, then time. No user has an item twice.

    Parameters
    ----------
    users, items
        ``[n]`` user rows and catalogue rows; like the contexts, int32 where that suffices.
    contexts
        ``[n]`` row of the packed user tensors that holds the user with the interaction's context;
        equal to ``users`` where a recipe has no context.
    weights
        ``[n]`` float32, above 0 for a positive of the ranker.
    offsets
        ``[U + 1]``: the interactions of user u are ``offsets[u]:offsets[u + 1]``.
    times
        ``[n]`` float64 seconds; None if interactions have no time.
    numbers
        Columns of the interactions that models learn from, such as ratings: name → ``[n]`` float64.
    targets
        ``[n, T]`` float32: the values of a ranker's target columns, NaN for null; None if it learns only the
        weights.
    """

    users: Array
    items: Array
    contexts: Array
    weights: npt.NDArray[np.float32]
    offsets: IntArray
    times: Array | None = None
    numbers: Mapping[str, Array] = field(default_factory=dict)
    targets: npt.NDArray[np.float32] | None = None

    @classmethod
    def build(
        cls,
        users: Array,
        items: Array,
        contexts: Array,
        weights: Array,
        n_users: int,
        times: Array | None = None,
        numbers: Mapping[str, Array] | None = None,
        targets: npt.NDArray[np.float32] | None = None,
    ) -> Pairs:
        """Build from arrays that are already sorted by user and time."""
        offsets = np.zeros(n_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=n_users), out=offsets[1:])
        rows = narrow(users), narrow(items), narrow(contexts)
        return cls(
            *rows, weights.astype(np.float32, copy=False), offsets, times, dict(numbers or {}), targets
        )

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_users(self) -> int:
        """U, the number of users."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """``[U]``: how many interactions each user has."""
        return np.diff(self.offsets)

    def select(self, chosen: BoolArray) -> Pairs:
        """Return the chosen interactions, in the same order, over the same users."""
        return Pairs.build(
            self.users[chosen],
            self.items[chosen],
            self.contexts[chosen],
            self.weights[chosen],
            self.n_users,
            None if self.times is None else self.times[chosen],
            {name: numbers[chosen] for name, numbers in self.numbers.items()},
            None if self.targets is None else self.targets[chosen],
        )

    def latest(self, users: IntArray, width: int) -> tuple[IntArray, BoolArray]:
        """Return the positions ``[B, width]`` of each user's latest interactions, oldest first, left aligned.

        The second array ``[B, width]`` is False where a user has fewer.
        """
        counts = np.minimum(self.offsets[users + 1] - self.offsets[users], width)
        start = self.offsets[users + 1] - counts
        places = np.arange(width)
        real = places < counts[:, None]
        return np.where(real, start[:, None] + places, 0), real

    def seen(self, users: IntArray) -> tuple[IntArray, IntArray]:
        """Return all pairs of the given users as (index into ``users``, catalogue row)."""
        owner, places = self.places(users)
        return owner, self.items[places].astype(np.int64)

    def places(self, users: IntArray) -> tuple[IntArray, IntArray]:
        """Return all pairs of the given users as (index into ``users``, position)."""
        counts = self.offsets[users + 1] - self.offsets[users]
        owner = np.repeat(np.arange(len(users)), counts)
        first = np.repeat(self.offsets[users] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        return owner, first + np.arange(len(owner))


def narrow(array: Array) -> Array:
    """Return int64 values as int32 if all of them fit; any other array stays as it is."""
    if array.dtype != np.int64 or (len(array) and max(-int(array.min()), int(array.max())) > 2**31 - 1):
        return array
    return array.astype(np.int32)


def left_align(rows: IntArray, keep: BoolArray, length: int, pad: int) -> IntArray:
    """Keep some elements of each row ``[B, W]``, move them to the left in order, and pad with ``pad``.

    The result is ``[B, length]`` int64. If a row keeps more elements than ``length``, the last ones stay.
    """
    from_end = np.cumsum(keep[:, ::-1], axis=1)[:, ::-1]
    keep = keep & (from_end <= length)
    result = np.full((len(rows), length), pad, dtype=np.int64)
    owner, _ = np.nonzero(keep)
    place = (np.cumsum(keep, axis=1) - 1)[keep]
    result[owner, place] = rows[keep]
    return result


def assign_folds(pairs: Pairs, folds: int, rng: np.random.Generator) -> IntArray:
    """Deal each user's interactions at random and evenly into folds; ``[n]`` in 0 … folds - 1."""
    order = np.lexsort((rng.random(len(pairs)), pairs.users))
    rank = np.empty(len(pairs), dtype=np.int64)
    rank[order] = np.arange(len(pairs)) - pairs.offsets[pairs.users]
    # A random first fold for each user, so that users with few interactions do not all fill fold 0.
    return (rank + rng.integers(folds, size=pairs.n_users)[pairs.users]) % folds
