"""Exact search under filters, which are applied before the search, so that no allowed item is lost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.features.timing import Timed, interleave
from benchmarks.stages.report import FilterTimes, Size
from tiercel_serving.ranked.masks import AllowedMask, Mask, make_mask
from tiercel_serving.sources.index_build import build_index
from tiercel_serving.sources.scan import Search, Space
from tiercel_serving.spec import Array

#: Shares of the items that pass; None is no filter.
SHARES: tuple[float | None, ...] = (None, 0.5, 0.01, 0.001, 0.0005)

_NOBODY_HAD = np.zeros(0, np.int64)


def measure_filters(size: Size) -> dict[str, FilterTimes]:
    """Measure the search for ``size.found`` items under each filter, at each batch size."""
    rng = np.random.default_rng(0)
    items, count = size.searched, size.found
    vectors = rng.normal(size=(items, size.dimension)).astype(np.float32)
    queries = rng.normal(size=(max(size.users), size.dimension)).astype(np.float32)
    built = build_index(vectors, queries, factory="Flat", parameters=None, candidates=count, min_recall=0.99)
    search = built.search(Space(vectors, None, items))
    sides: dict[str, list[Callable[[], object]]] = {}
    exact: dict[str, bool] = {}
    for share in SHARES:
        name = "none" if share is None else f"{share:g}"
        exact[name] = True
        for users in size.users:
            query, allowed = queries[:users], _allowed(rng, users, items, share)
            find = partial(_find, search, items, query, allowed, count)
            sides[f"{name} {users}"] = [find]
            exact[name] &= _is_exact(find(), query, vectors, allowed, count)
    timed: dict[str, Timed] = interleave(sides, rounds=size.rounds, seconds=size.seconds)
    return {
        name: FilterTimes({users: timed[f"{name} {users}"].us / users for users in size.users}, right)
        for name, right in exact.items()
    }


def _allowed(rng: np.random.Generator, users: int, items: int, share: float | None) -> Array | None:
    """Return a mask ``[B, I + 1]`` of random allowed items, different for each user; None is no filter."""
    if share is None:
        return None
    allowed = np.zeros((users, items + 1), np.bool_)
    for user in range(users):
        allowed[user, rng.permutation(items)[: max(1, round(share * items))]] = True
    return allowed


def _find(search: Search, items: int, query: Array, allowed: Array | None, count: int) -> Array:
    none = np.zeros(len(query), np.int64)
    mask: Mask
    if allowed is None:
        mask = make_mask(len(query), items, _NOBODY_HAD, none)
    else:
        mask = AllowedMask(allowed, _NOBODY_HAD, none)
    return search.nearest(query, mask, count)[1]


def _is_exact(found: Array, query: Array, vectors: Array, allowed: Array | None, count: int) -> bool:
    """Whether the best allowed items, or all of them if there are fewer, were found; near ties may swap."""
    for user, rows in enumerate(found):
        scores = vectors @ query[user]
        if allowed is not None:
            scores[~allowed[user, :-1]] = -np.inf
        best = np.sort(scores)[::-1][:count]
        best = best[np.isfinite(best)]
        real = rows[rows < len(vectors)]
        if len(real) != len(best) or not np.allclose(scores[real], best, rtol=1e-5, atol=1e-5):
            return False
    return True
