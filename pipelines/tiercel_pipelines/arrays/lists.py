"""Lists to train or judge a ranker on: what retrieval gave when some positives were held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from .pairs import Array, IntArray, Pairs

FloatArray = npt.NDArray[np.float32]

#: The target of a ranker that learns which items a user picked at all.
IMPLICIT = "interaction"


@dataclass(frozen=True)
class RankingLists:
    """Lists of candidates, one for a user.

    Parameters
    ----------
    users, contexts
        ``[M]`` user rows, and context rows.
    history
        ``[M, L]`` the users' histories without the held-out positives; in 32 bits where they are kept.
    rows, scores, sources
        ``[M, N]`` the candidates, best first, as the stages give them; padding row I. In 32 bits where they
        are kept.
    weights
        ``[M, N]`` float32: above 0 for a held-out positive.
    """

    users: IntArray
    contexts: IntArray
    history: Array
    rows: Array
    scores: FloatArray
    sources: npt.NDArray[np.int32]
    weights: FloatArray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, chosen: IntArray) -> RankingLists:
        """Return some of the lists, in 64 bits."""
        some = RankingLists(*(getattr(self, field.name)[chosen] for field in fields(self)))
        wide = some.history.astype(np.int64, copy=False), some.rows.astype(np.int64, copy=False)
        return replace(some, history=wide[0], rows=wide[1])

    def narrowed(self) -> RankingLists:
        """Return the same lists as they are kept: rows are of a catalogue that 32 bits count."""
        return replace(self, history=self.history.astype(np.int32), rows=self.rows.astype(np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence[RankingLists]) -> RankingLists:
        """Put lists of the same widths together."""
        return cls(*(np.concatenate([getattr(part, name.name) for part in parts]) for name in fields(cls)))


def draw_contexts(held_out: Pairs, dropout: float, rng: np.random.Generator) -> IntArray:
    """Return ``[U]`` the packed row of each user in the context of one of its positives, or in none.

    ``dropout`` is the share of the users without context.
    """
    users = np.arange(held_out.n_users)
    counts = held_out.lengths
    picked = held_out.offsets[:-1] + (rng.random(len(users)) * counts).astype(np.int64)
    shown = (counts > 0) & (rng.random(len(users)) >= dropout)
    return np.where(shown, np.append(held_out.contexts, 0)[np.minimum(picked, len(held_out))], users)


def positive_weights(held_out: Pairs, users: IntArray, rows: IntArray, n_items: int) -> FloatArray:
    """Return the weight of each candidate ``[M, N]`` of some users, 0 for those that were not held out."""
    if not len(held_out):
        return np.zeros(rows.shape, dtype=np.float32)
    keys = held_out.users * (n_items + 1) + held_out.items
    order = np.argsort(keys)
    wanted = users[:, None] * (n_items + 1) + rows
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    found = order[place]
    return np.where(keys[found] == wanted, held_out.weights[found], np.float32(0))
