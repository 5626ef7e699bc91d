"""The measure of early stopping: nDCG@10, as served, on held-out interactions of a fixed sample of users."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np

from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.table import SourceKind
from tiercel_serving.stages.specs import query_stage

from ..arrays.lists import RankingLists
from ..arrays.packed import Packed
from ..arrays.pairs import Array, IntArray, Pairs
from ..families.table import FittedRanking, FittedRetrieval
from ..offline.in_memory import KnownUsers, OfflineOrdering, blocks, open_source, queries_of
from ..offline.metrics import Relevance, ranking_metrics

#: Length of the lists that early stopping measures.
JUDGED_AT = 10


def sampled_users(held_out: Pairs, seed: int, most: int) -> IntArray:
    """Return the ascending rows of users with held-out interactions: all, or a sample fixed by ``seed``."""
    users = np.flatnonzero(held_out.lengths > 0)
    if len(users) > most:
        users = np.sort(np.random.default_rng(seed).choice(users, most, replace=False))
    return users


@dataclass(frozen=True)
class RetrievalJudge:
    """Judges a retrieval model by what its source finds among all unseen items.

    The source knows ``seen`` and should find ``held_out``; only ``users`` are measured.
    """

    source: SourceKind
    packed: Packed
    seen: Pairs
    held_out: Pairs
    users: IntArray

    @cached_property
    def _known(self) -> KnownUsers:
        return KnownUsers(self.packed, self.seen)

    def __call__(self, model: FittedRetrieval) -> float:
        """Return nDCG@10."""
        source = open_source(self.source, model, self.packed, self.seen, JUDGED_AT)
        known, found = self._known, []
        for block in blocks(self.users):
            tensors = known.tensors(block)
            query = queries_of(model, self.source.name, tensors)
            arrays = tensors if query is None else {**tensors, query_stage(self.source.name): query}
            found.append(source.candidates(arrays, known.mask(block), JUDGED_AT)[1])
        return ndcg(np.concatenate(found), self.users, self.held_out, self.packed.n_items)


@dataclass(frozen=True)
class RankingJudge:
    """Judges a ranker by its order of each list's first K candidates, without context.

    ``lists`` are retrieval's candidates, among which ``held_out`` should come first.
    """

    settings: ServingSettings
    packed: Packed
    lists: RankingLists
    held_out: Pairs

    def __call__(self, ranker: FittedRanking) -> float:
        """Return nDCG@10."""
        # Steps that are not the ranker's own (diversity, caps) say nothing about how well it ranks.
        own = tuple(step for step in self.settings.reorder if step.of_ranker)
        ordering = OfflineOrdering(msgspec.structs.replace(self.settings, reorder=own), ranker, self.packed)
        kept, found = self.settings.kept, []
        for block in blocks(np.arange(len(self.lists))):
            lists = self.lists.take(block)
            users = self.packed.user_tensors(lists.users, lists.history)
            first: dict[str, Array] = {
                "kept_row": lists.rows[:, :kept],
                "kept_score": lists.scores[:, :kept],
                "kept_source": lists.sources[:, :kept],
            }
            found.append(ordering.order(users, first))
        return ndcg(np.concatenate(found), self.lists.users, self.held_out, self.packed.n_items)


def ndcg(rows: IntArray, users: IntArray, held_out: Pairs, n_items: int) -> float:
    """Return nDCG@10 of item ``rows [M, K]``, padded with row I, for ascending ``users [M]``."""
    place = np.full(held_out.n_users, -1)
    place[users] = np.arange(len(users))
    judged = place[held_out.users]
    relevance = Relevance.from_pairs(judged[judged >= 0], held_out.items[judged >= 0], len(users))
    return ranking_metrics(rows, relevance, JUDGED_AT, n_items).ndcg
