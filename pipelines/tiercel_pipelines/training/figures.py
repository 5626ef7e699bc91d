"""Offline figures of a training: popularity, retrieval and what a caller gets, on the test part."""

from __future__ import annotations

from typing import Any

import numpy as np

from tiercel_serving.sources.popular import Popular

from ..arrays.pairs import IntArray
from ..offline.in_memory import OfflineOrdering, OfflineRetrieval, blocks, open_source
from ..offline.metrics import Relevance, ranking_metrics
from .trainer import Trained, Trainer

#: Places of the offline figures.
FIGURES_AT = 10


def offline_figures(
    trainer: Trainer, trained: Trained, test_users: IntArray, test_items: IntArray
) -> dict[str, Any]:
    """Return the figures of popularity, retrieval and ranking on the test part.

    All follow the served path: seen items masked before the best N unless they may come again, filter
    rules, the first K ranked, no context; of more users than the recipe measures, a fixed sample.
    ``ranking`` is what a caller gets, with a ranker or without. The test interactions are given as rows
    ``[n]`` of users and items.
    """
    users = np.unique(test_users)
    if not len(users):
        return {}
    most = trainer.recipe.training.measured_users
    if len(users) > most:
        users = np.sort(np.random.default_rng(trainer.recipe.seed).choice(users, most, replace=False))
        measured = np.isin(test_users, users)
        test_users, test_items = test_users[measured], test_items[measured]
    packed, settings, pairs = trainer.packed, trainer.settings, trainer.pairs
    retrieval = OfflineRetrieval(settings, trained.retrieval, packed, pairs)
    ordering = OfflineOrdering(settings, trained.ranking, packed, retrieval.arrays_of)
    popular = open_source(Popular(), None, packed, pairs, settings.candidates)
    found: dict[str, list[IntArray]] = {"popularity": [], "retrieval": [], "ranking": []}
    for block in blocks(users, "figures", trainer.progress):
        tensors, candidates = retrieval.candidates(block)
        kept = ordering.keep(candidates)
        scores, rows = popular.candidates({}, retrieval.users.mask(block), settings.candidates)
        popular_kept = ordering.keep((scores, rows, np.zeros(rows.shape, np.int32)))["kept_row"]
        lists = (popular_kept, kept["kept_row"], ordering.order(tensors, kept))
        for name, rows in zip(found, lists, strict=True):
            found[name].append(rows[:, :FIGURES_AT].copy())
    relevance = Relevance.from_pairs(np.searchsorted(users, test_users), test_items, len(users))
    return {
        name: ranking_metrics(np.concatenate(rows), relevance, FIGURES_AT, packed.n_items).to_json()
        for name, rows in found.items()
    }
