"""Batches one after another, of which it is known how many are to come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import TypeVar

from .pairs import Array

T = TypeVar("T")
S = TypeVar("S")


class Counted(Iterator[T]):
    """An iterator that knows how many are left, for whom asks by :func:`operator.length_hint`.

    Parameters
    ----------
    each
        What comes.
    left
        How many; else what ``each`` says of itself, or 0 where it doesn't.
    """

    def __init__(self, each: Iterable[T], left: int | None = None) -> None:
        self._left = length_hint(each) if left is None else left
        self._each = iter(each)

    def __next__(self) -> T:
        """Return the next one."""
        found = next(self._each)
        self._left = max(0, self._left - 1)
        return found

    def __length_hint__(self) -> int:
        """Return how many are left."""
        return self._left

    def through(self, change: Callable[[T], S]) -> Counted[S]:
        """Return what ``change`` makes of each, when its turn comes."""
        return Counted(map(change, self), self._left)


def cut(order: Array, size: int) -> Counted[Array]:
    """Cut an order into pieces of ``size``; the last may be shorter."""
    starts = range(0, len(order), size)
    return Counted((order[start : start + size] for start in starts), len(starts))
