"""A ranker in several sizes: one engine for each of a few numbers of candidates; the smallest that fits runs.

K, the number of candidates, is a constant of every compiled graph, and empty slots cost as much as full ones.
If requests often leave most slots empty (they name their candidates, or rules keep few), the recipe's
``kept_buckets`` lists smaller K that get an engine too. These are separate engines and not optimization
profiles of one, because switching the profile of an execution context takes several milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..spec import Array, Arrays
from .table import Engine

#: The tensor that shows which slots are real: the empty ones, at the end, hold the pad row.
KEPT_ROW = "kept_row"


class BucketedEngine:
    """The ranker in its full size and in smaller ones.

    Parameters
    ----------
    full
        The engine for all of the candidates.
    smaller
        K → the engine for the first K candidates.
    candidates
        The inputs with a candidate axis, which is their second.
    pad
        The catalogue row that marks an empty slot.
    """

    def __init__(
        self, full: Engine, smaller: Mapping[int, Engine], candidates: frozenset[str], pad: int
    ) -> None:
        self._full, self._smaller = full, dict(sorted(smaller.items()))
        self._candidates, self._pad = candidates, pad
        self.inputs, self.outputs = (*full.inputs, KEPT_ROW), full.outputs

    def bucket(self, kept_row: Array) -> int | None:
        """Return the smallest K that holds all real candidates of ``kept_row [B, K]``; None is the full K."""
        real = np.flatnonzero((kept_row != self._pad).any(0))
        longest = int(real[-1]) + 1 if len(real) else 0
        return next((k for k in self._smaller if k >= longest), None)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the smallest engine that fits; scores of the slots beyond its K are 0.

        Without ``kept_row`` the empty slots are unknown, and the full engine runs.
        """
        rows = arrays.get(KEPT_ROW)
        k = None if rows is None else self.bucket(rows)
        if rows is None or k is None:
            return self._full.run(arrays)
        engine = self._smaller[k]
        first = {n: arrays[n][:, :k] if n in self._candidates else arrays[n] for n in engine.inputs}
        out = {}
        for name, scores in engine.run(first).items():
            out[name] = np.zeros((len(scores), rows.shape[1], *scores.shape[2:]), scores.dtype)
            out[name][:, :k] = scores
        return out

    def close(self) -> None:
        """Close every engine."""
        for engine in (self._full, *self._smaller.values()):
            engine.close()
