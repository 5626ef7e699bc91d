"""Iterators over batches that know how many are left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import TypeVar

from .pairs import Array

T = TypeVar("T")
S = TypeVar("S")


class Counted(Iterator[T]):
    """An iterator that reports the number of elements left through :func:`operator.length_hint`.

    Parameters
    ----------
    each
        The elements.
    left
        How many there are; None takes the length hint of ``each``, or 0 if it has none.
    """

    def __init__(self, each: Iterable[T], left: int | None = None) -> None:
        self._left = length_hint(each) if left is None else left
        self._each = iter(each)

    def __next__(self) -> T:
        """Return the next element."""
        found = next(self._each)
        self._left = max(0, self._left - 1)
        return found

    def __length_hint__(self) -> int:
        """Return the number of elements left."""
        return self._left

    def through(self, change: Callable[[T], S]) -> Counted[S]:
        """Return an iterator that applies ``change`` to each element when it is reached."""
        return Counted(map(change, self), self._left)


def cut(order: Array, size: int) -> Counted[Array]:
    """Cut an order into pieces of ``size``; the last may be shorter."""
    starts = range(0, len(order), size)
    return Counted((order[start : start + size] for start in starts), len(starts))
