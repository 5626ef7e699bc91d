"""Offline figures of a training on the test part: popularity, retrieval, and what a caller gets."""

from __future__ import annotations

from typing import Any

import numpy as np

from tiercel_serving.sources.popular import Popular

from ..arrays.pairs import Array, IntArray
from ..offline.had import latest_s
from ..offline.in_memory import OfflineOrdering, OfflineRetrieval, blocks, open_source
from ..offline.metrics import Relevance, ranking_metrics
from .trainer import Trained, Trainer

#: Length of the lists that the offline figures measure.
FIGURES_AT = 10


def offline_figures(
    trainer: Trainer,
    trained: Trained,
    test_users: IntArray,
    test_items: IntArray,
    test_times_s: Array | None = None,
) -> dict[str, Any]:
    """Return the figures of popularity, retrieval and ranking on the test part; empty without test users.

    All follow the served path without context: seen items are masked before the top N unless they may be
    recommended again, rules filter, and the first K are ranked. At most ``measured_users`` of the recipe, a
    fixed sample, are measured. ``ranking`` is what a caller gets, with or without a ranker. A user's request
    has the time of the user's latest test interaction; items that may not be recommended again by then do not
    count.

    Parameters
    ----------
    test_users, test_items, test_times_s
        The test interactions ``[n]``: user rows, item rows, and times in seconds, None if there are none.
    """
    packed, settings, pairs = trainer.packed, trained.settings, trainer.pairs
    users = np.unique(test_users)
    most = trainer.recipe.training.measured_users
    if len(users) > most:
        users = np.sort(np.random.default_rng(trainer.recipe.seed).choice(users, most, replace=False))
        measured = np.isin(test_users, users)
        test_users, test_items = test_users[measured], test_items[measured]
        test_times_s = None if test_times_s is None else test_times_s[measured]
    now_s = None if test_times_s is None else latest_s(test_users, test_times_s, packed.n_users)
    retrieval = OfflineRetrieval(settings, trained.retrieval, packed, pairs, now_s)
    found = retrieval.users.had.findable(test_users, test_items, packed.n_items)
    test_users, test_items = test_users[found], test_items[found]
    users = np.unique(test_users)
    if not len(users):
        return {}
    ordering = OfflineOrdering(settings, trained.ranking, packed, retrieval.arrays_of)
    popular = open_source(Popular(), None, packed, pairs, FIGURES_AT, settings.rules)
    lists: dict[str, list[IntArray]] = {"popularity": [], "retrieval": [], "ranking": []}
    for block in blocks(users, "figures", trainer.progress):
        tensors, candidates = retrieval.candidates(block)
        kept = ordering.keep(candidates)
        most_had = popular.candidates({}, retrieval.users.mask(block), FIGURES_AT)[1]
        of_block = (most_had, kept["kept_row"], ordering.order(tensors, kept))
        for name, rows in zip(lists, of_block, strict=True):
            lists[name].append(rows[:, :FIGURES_AT].copy())
    relevance = Relevance.from_pairs(np.searchsorted(users, test_users), test_items, len(users))
    return {
        name: ranking_metrics(np.concatenate(rows), relevance, FIGURES_AT, packed.n_items).to_json()
        for name, rows in lists.items()
    }
