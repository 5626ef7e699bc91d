"""Lists to train or judge a ranker on: retrieval's candidates when some positives were held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .pairs import Array, BoolArray, IntArray, Pairs

FloatArray = npt.NDArray[np.float32]

#: The target of a ranker that learns only which items a user picked.
IMPLICIT = "interaction"


@dataclass(frozen=True)
class RankingLists:
    """Lists of candidates, one per user.

    Parameters
    ----------
    users, contexts
        ``[M]`` user rows, and context rows (see :class:`~.packed.Packed`).
    history
        ``[M, L]`` item rows of the users' histories without the held-out positives; int32 in stored lists.
    rows, scores, sources
        ``[M, N]`` the candidates, best first, as the stages return them, padded with row I; rows are int32 in
        stored lists.
    weights
        ``[M, N]`` float32: above 0 for a held-out positive.
    targets
        ``[M, N, T]`` float32: the values of the targets' columns for a held-out positive, NaN for null; 0 for
        other candidates. None if only the weights are learned.
    """

    users: IntArray
    contexts: IntArray
    history: Array
    rows: Array
    scores: FloatArray
    sources: npt.NDArray[np.int32]
    weights: FloatArray
    targets: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def mass(self) -> float:
        """Number of lists with a positive, over which a loss averages."""
        return float((self.weights > 0).any(axis=1).sum())

    def take(self, chosen: IntArray | slice) -> RankingLists:
        """Return some of the lists, with int64 rows."""
        own = {field.name: getattr(self, field.name) for field in fields(RankingLists)}
        taken: Any = {name: array[chosen] for name, array in own.items() if array is not None}
        some = replace(self, **taken)
        wide = some.history.astype(np.int64, copy=False), some.rows.astype(np.int64, copy=False)
        return replace(some, history=wide[0], rows=wide[1])

    def narrowed(self) -> RankingLists:
        """Return the lists as they are stored, with int32 rows, which suffice for any catalogue."""
        return replace(self, history=self.history.astype(np.int32), rows=self.rows.astype(np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence[RankingLists]) -> RankingLists:
        """Concatenate lists of the same widths."""
        each = ([getattr(part, field.name) for part in parts] for field in fields(cls))
        joined: Any = (None if arrays[0] is None else np.concatenate(arrays) for arrays in each)
        return cls(*joined)


def draw_contexts(held_out: Pairs, dropout: float, rng: np.random.Generator) -> IntArray:
    """Return ``[U]`` context rows: each user in the context of one of its positives, or without context.

    ``dropout`` is the share of the users without context.
    """
    users = np.arange(held_out.n_users)
    counts = held_out.lengths
    picked = held_out.offsets[:-1] + (rng.random(len(users)) * counts).astype(np.int64)
    shown = (counts > 0) & (rng.random(len(users)) >= dropout)
    return np.where(shown, np.append(held_out.contexts, 0)[np.minimum(picked, len(held_out))], users)


def positive_weights(held_out: Pairs, users: IntArray, rows: IntArray, n_items: int) -> FloatArray:
    """Return the weight of each candidate ``[M, N]`` of some users, 0 for candidates not held out."""
    if not len(held_out):
        return np.zeros(rows.shape, dtype=np.float32)
    place, held = _places(held_out, users, rows, n_items)
    return np.where(held, held_out.weights[place], np.float32(0))


def positive_targets(held_out: Pairs, users: IntArray, rows: IntArray, n_items: int) -> FloatArray | None:
    """Return the target values of each candidate, ``[M, N, T]``; None without targets."""
    targets = held_out.targets
    if targets is None:
        return None
    if not len(held_out):
        return np.zeros((*rows.shape, targets.shape[1]), dtype=np.float32)
    place, held = _places(held_out, users, rows, n_items)
    return np.where(held[..., None], targets[place], np.float32(0))


def _places(held_out: Pairs, users: IntArray, rows: IntArray, n_items: int) -> tuple[IntArray, BoolArray]:
    """Return the position of each candidate in ``held_out``, and whether it is there, ``[M, N]`` each."""
    owner, positions = held_out.places(users)
    if not len(positions):
        return np.zeros(rows.shape, np.int64), np.zeros(rows.shape, np.bool_)
    keys = owner * (n_items + 1) + held_out.items[positions]
    order = np.argsort(keys)
    wanted = np.arange(len(users))[:, None] * (n_items + 1) + rows
    found = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return positions[found], keys[found] == wanted
