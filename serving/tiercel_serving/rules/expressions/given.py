"""What is known of a batch, and what is made of it: values and truths that broadcast to users × items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...columns import Column
from ...ranked.order import Rows
from ...spec import Array
from .postings import Flags


class Given(NamedTuple):
    """What is known of the B users of a batch.

    Parameters
    ----------
    users, requests
        Columns of B rows by name; null where nothing is known.
    sent
        Column of the request → ``[B]`` who sent it.
    now
        ``[B]`` float64 seconds since 1970-01-01 UTC.
    """

    users: Mapping[str, Column]
    requests: Mapping[str, Column]
    sent: Mapping[str, Flags]
    now: npt.NDArray[np.float64]


class Batch(NamedTuple):
    """Users, and the items of whom something is asked: ``[B, n]`` rows, or None for all of them."""

    given: Given
    rows: Rows | None

    def of(self, array: Array) -> Array:
        """Return what an array ``[I]`` says of the items: ``[I]`` or ``[B, n]``."""
        return array if self.rows is None else array.take(self.rows)


class Operand(NamedTuple):
    """A value that broadcasts to ``[B, n]``; what is real, and for whom it was not sent (None is nobody)."""

    values: Any
    valid: Flags | None = None
    absent: Flags | None = None


class Truth(NamedTuple):
    """Where a condition holds, broadcasting to ``[B, n]``, and for whom it asks nothing (None is nobody)."""

    true: Flags
    absent: Flags | None = None
