"""User tensors for training: histories without the targets and a random share of the other items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays.inputs import Side
from ..arrays.packed import Packed
from ..arrays.pairs import Array, IntArray, Pairs, left_align
from ..tasks.table import RetrievalBatch
from .layers import NULL_ID, UNKNOWN_ID


@dataclass(frozen=True)
class TrainingViews:
    """Makes the user tensors of training batches.

    Parameters
    ----------
    pairs, packed, side
        The interactions to train on, the packed tensors, and the user's columns.
    history_dropout
        Mean share of a history that is left out; the share itself is drawn anew for each row, so
        that short and long histories both occur.
    id_dropout
        Share of category ids on the user's side that become null or unknown.
    """

    pairs: Pairs
    packed: Packed
    side: Side
    history_dropout: float
    id_dropout: float

    def users(self, batch: RetrievalBatch, rng: np.random.Generator) -> dict[str, Array]:
        """Return the user tensors of a batch."""
        history = self._history(batch.users, batch.targets, rng)
        return drop_ids(self.packed.user_tensors(batch.contexts, history), self.side, self.id_dropout, rng)

    def _history(self, users: IntArray, targets: IntArray, rng: np.random.Generator) -> IntArray:
        """Return the users' latest items [B, L] without the targets, some left out at random."""
        length, pad = self.packed.history_length, self.packed.n_items
        # With T targets taken out, the latest L of the rest lie among the latest L + T.
        width = min(length + targets.shape[1], max(1, int(self.pairs.lengths[users].max(initial=0))))
        positions, keep = self.pairs.latest(users, width)
        start = self.pairs.offsets[users + 1] - keep.sum(axis=1)
        place = targets - start[:, None]
        owner, column = np.nonzero((targets >= 0) & (place >= 0))
        keep[owner, place[owner, column]] = False
        share = rng.random((len(users), 1)) * 2 * self.history_dropout
        keep &= rng.random(keep.shape) >= share
        return left_align(self.pairs.items[positions], keep, length, pad)


def drop_history(history: IntArray, share: float, pad: int, rng: np.random.Generator) -> IntArray:
    """Leave out some of each history ``[B, L]``: a share drawn anew for each row, ``share`` on average."""
    if share <= 0:
        return history
    limit = rng.random((len(history), 1)) * 2 * share
    keep = (history != pad) & (rng.random(history.shape) >= limit)
    return left_align(history, keep, history.shape[1], pad)


def drop_ids(
    tensors: dict[str, Array], side: Side, share: float, rng: np.random.Generator
) -> dict[str, Array]:
    """Make a share of the category ids null or unknown, so that their embeddings are learned too.

    Without this a user who is not in the training data would get embeddings that were never trained.
    Buckets have no such ids and stay unchanged.
    """
    name = f"{side.part}_cat"
    if share <= 0 or name not in tensors:
        return tensors
    ids = tensors[name].copy()
    vocabulary = np.array([column.vocabulary and column.cardinality > UNKNOWN_ID for column in side.cat])
    dropped = (rng.random(ids.shape) < share) & vocabulary
    ids[dropped] = rng.choice([NULL_ID, UNKNOWN_ID], size=int(dropped.sum()))
    return {**tensors, name: ids}


def drop_item_ids(
    tensors: dict[str, Array], place: int, share: float, rng: np.random.Generator
) -> dict[str, Array]:
    """Make the ids of a share of the items unknown: column ``place`` of ``item_cat [C, c]``."""
    if share <= 0:
        return tensors
    ids = tensors["item_cat"].copy()
    ids[rng.random(len(ids)) < share, place] = UNKNOWN_ID
    return {**tensors, "item_cat": ids}
