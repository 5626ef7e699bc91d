"""Inputs of a batch to expressions, and intermediate results, which broadcast to users × items."""

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
    """The inputs of the B users of a batch.

    Parameters
    ----------
    users, requests
        Columns of B rows by name; null where unknown.
    sent
        Column of the request → ``[B]``, which users sent it.
    now
        ``[B]`` float64 seconds since 1970-01-01 UTC.
    """

    users: Mapping[str, Column]
    requests: Mapping[str, Column]
    sent: Mapping[str, Flags]
    now: npt.NDArray[np.float64]


class Batch(NamedTuple):
    """The users' inputs, and the items to evaluate: ``[B, n]`` rows, or None for all items."""

    given: Given
    rows: Rows | None

    def of(self, array: Array) -> Array:
        """Return the values of an array ``[I]`` for these items: ``[I]`` or ``[B, n]``."""
        return array if self.rows is None else array.take(self.rows)


class Operand(NamedTuple):
    """A value that broadcasts to ``[B, n]``, where it is not null, and which users did not send it.

    None for ``valid`` means that nothing is null, None for ``absent`` that it was sent for all users.
    """

    values: Any
    valid: Flags | None = None
    absent: Flags | None = None


class Truth(NamedTuple):
    """Where a condition holds, broadcasting to ``[B, n]``, and for which users it is ignored (None: none)."""

    true: Flags
    absent: Flags | None = None
