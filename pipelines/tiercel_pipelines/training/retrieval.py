"""Candidates as the served stages would give them, by exact search: for training and for offline figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from tiercel_serving.settings import Rule, ServingSettings, Source

from ..families.layers import PackedModule
from .pairs import Array, BoolArray, IntArray, Packed, Pairs, history_rows

FloatArray = npt.NDArray[np.float32]
Candidates = tuple[IntArray, FloatArray, npt.NDArray[np.int32]]

#: Rows that go through a model at once.
CHUNK = 1024

_COMPARE: Mapping[str, Callable[[pd.Series, Any], Any]] = {
    "==": lambda column, value: column == value,
    "!=": lambda column, value: column != value,
    "<": lambda column, value: column < value,
    "<=": lambda column, value: column <= value,
    ">": lambda column, value: column > value,
    ">=": lambda column, value: column >= value,
    "in": lambda column, value: column.isin(list(value)),
    "not in": lambda column, value: ~column.isin(list(value)),
}


def allowed_items(items: pd.DataFrame, rules: tuple[Rule, ...]) -> BoolArray:
    """Return which items pass every filter rule, ``[I]``; a null passes none."""
    allowed = np.ones(len(items), dtype=np.bool_)
    for rule in rules:
        column = items[rule.column]
        passed = _COMPARE[rule.operator](column, rule.value) & column.notna()
        allowed &= passed.to_numpy(dtype=np.bool_)
    return allowed


def popular_items(pairs: Pairs, n_items: int) -> IntArray:
    """Return all catalogue rows, most interactions first, ties by row."""
    counts = np.bincount(pairs.items, minlength=n_items)
    return np.argsort(-counts, kind="stable")


def run_module(module: PackedModule, tensors: Mapping[str, Array]) -> FloatArray:
    """Run a module on NumPy tensors, in chunks of rows, without gradients and in evaluation mode."""
    training = module.training
    module.eval()
    arrays = {name: tensors[name] for name in module.input_names}
    length = len(next(iter(arrays.values())))
    parts = []
    with torch.inference_mode():
        for start in range(0, length, CHUNK):
            chunk = {name: torch.from_numpy(array[start : start + CHUNK]) for name, array in arrays.items()}
            parts.append(module(**chunk).numpy())
    module.train(training)
    return np.concatenate(parts)


def item_vectors(item_tower: PackedModule, packed: Packed) -> FloatArray:
    """Return the vectors of all items ``[I, D]``, without the padding row."""
    return run_module(item_tower, {name: array[:-1] for name, array in packed.item.items()})


def queries(user_tower: PackedModule, packed: Packed, pairs: Pairs) -> FloatArray:
    """Return every user's query ``[U, D]`` from the histories in ``pairs``, without context."""
    users = np.arange(packed.n_users)
    history = history_rows(pairs, users, packed.history_length, packed.n_items)
    return run_module(user_tower, packed.user_tensors(users, history))


def retrieve(
    query: FloatArray, vectors: FloatArray, pairs: Pairs, popular: IntArray, settings: ServingSettings
) -> Candidates:
    """Return the candidates of every user, as the retrieval stage defines them.

    Each source in order gives its best ``quota`` items that the user has not seen and no earlier
    source gave; popular items fill what is left; all are sorted by (score, row).

    Parameters
    ----------
    query
        ``[U, D]``.
    vectors
        ``[I, D]``.
    pairs
        What each user has seen.
    popular
        ``[I]`` rows, most popular first.
    settings
        Number of candidates and sources.

    Returns
    -------
    tuple
        ``rows [U, N]`` int64 (padding row I), ``scores [U, N]`` float32 (0 there), ``sources [U, N]``
        int32 (0 there).
    """
    parts = []
    for start in range(0, len(query), CHUNK):
        users = np.arange(start, min(start + CHUNK, len(query)))
        parts.append(_retrieve_chunk(query[users] @ vectors.T, users, pairs, popular, settings))
    rows, scores, sources = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, scores, sources


def _retrieve_chunk(
    scores: FloatArray, users: IntArray, pairs: Pairs, popular: IntArray, settings: ServingSettings
) -> Candidates:
    n_items = scores.shape[1]
    free = np.ones(scores.shape, dtype=np.bool_)
    free[pairs.seen(users)] = False
    taken = np.zeros(scores.shape, dtype=np.int32)
    popularity = np.empty(n_items, dtype=np.float32)
    popularity[popular] = -np.arange(n_items)
    fixed = sum(source.quota for source in settings.sources if source.quota is not None)
    by_kind = {"index": scores, "popular": np.broadcast_to(popularity, scores.shape)}
    fill = next(code for code, source in enumerate(settings.sources, 1) if source.kind == "popular")
    steps = [*enumerate(settings.sources, 1), (fill, Source("fill", "popular", settings.candidates))]
    for code, source in steps:
        quota = settings.candidates - fixed if source.quota is None else source.quota
        room = np.minimum(quota, settings.candidates - (taken > 0).sum(axis=1))
        taken[_best(by_kind[source.kind], free & (taken == 0), room)] = code
    width = settings.candidates
    order = np.argsort(np.where(taken > 0, -scores, np.inf), axis=1, kind="stable")[:, :width]
    sources = np.take_along_axis(taken, order, axis=1)
    real = sources > 0
    found = np.take_along_axis(scores, order, axis=1)
    padding = ((0, 0), (0, width - order.shape[1]))
    return (
        np.pad(np.where(real, order, n_items), padding, constant_values=n_items),
        np.pad(np.where(real, found, np.float32(0)), padding),
        np.pad(sources, padding),
    )


def _best(scores: FloatArray, free: BoolArray, room: IntArray) -> BoolArray:
    """Mark each row's best free items, ``room [U]`` of them; ties go to the lower row."""
    marked = np.zeros(scores.shape, dtype=np.bool_)
    most = int(room.max(initial=0))
    if most <= 0:
        return marked
    order = np.argsort(np.where(free, -scores, np.inf), axis=1, kind="stable")[:, :most]
    chosen = (np.arange(order.shape[1]) < room[:, None]) & np.take_along_axis(free, order, axis=1)
    np.put_along_axis(marked, order, chosen, axis=1)
    return marked


def keep(candidates: Candidates, allowed: BoolArray, kept: int) -> Candidates:
    """Keep the first ``kept`` candidates whose item is allowed, as the filtering stage does."""
    rows, scores, sources = candidates
    n_items = len(allowed)
    passed = np.append(allowed, False)[rows]
    order = np.argsort(~passed, axis=1, kind="stable")[:, :kept]
    real = np.take_along_axis(passed, order, axis=1)
    return (
        np.where(real, np.take_along_axis(rows, order, axis=1), n_items),
        np.where(real, np.take_along_axis(scores, order, axis=1), np.float32(0)),
        np.where(real, np.take_along_axis(sources, order, axis=1), np.int32(0)),
    )


def rank(
    ranker: PackedModule, packed: Packed, contexts: IntArray, history: IntArray, candidates: Candidates
) -> FloatArray:
    """Return the ranker's first score of each candidate, ``[M, K]``; padding gets minus infinity."""
    rows, scores, sources = candidates
    parts = []
    for start in range(0, len(rows), 256):
        part = slice(start, start + 256)
        tensors = packed.user_tensors(contexts[part], history[part])
        tensors.update({name: array[rows[part]] for name, array in packed.item.items()})
        tensors.update(kept_score=scores[part], kept_source=sources[part])
        parts.append(run_module(ranker, tensors)[:, :, 0])
    return np.where(rows == packed.n_items, np.float32(-np.inf), np.concatenate(parts))


def reorder(rows: IntArray, scores: FloatArray) -> IntArray:
    """Sort each row's candidates by (score descending, row ascending)."""
    return np.take_along_axis(rows, np.lexsort((rows, -scores), axis=1), axis=1)
