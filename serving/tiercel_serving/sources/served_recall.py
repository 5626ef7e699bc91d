"""The recall of an index as served, through the masked search, for several cases of masking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ranked.masks import Mask, make_mask
from ..ranked.order import Rows
from ..spec import Array
from .scan import Search, Space

#: Number of each query's best items that the case ``best hidden`` masks.
HIDDEN = 500


def served_recall(
    search: Search,
    space: Space,
    queries: Array,
    seen: Sequence[Rows],
    count: int,
    heavy: tuple[Array, Sequence[Rows]] | None = None,
) -> dict[str, float]:
    """Measure the served recall: the share of the best allowed items that the masked search finds.

    Parameters
    ----------
    search, space
        The search under test, and the vectors it searches.
    queries
        ``[Q, D]`` float32.
    seen
        For each query, the catalogue rows that its user has seen.
    count
        N.
    heavy
        Queries and seen rows of users who have seen many items.

    Returns
    -------
    Case → recall, by what is masked: ``plain`` (nothing), ``seen`` (each user's seen items), ``best hidden``
    (those, and the :data:`HIDDEN` best items), ``much seen`` (the seen items of the ``heavy`` users).
    """
    nobody = mask_of(space, [[]] * len(queries))
    hidden = space.scan(queries, nobody, range(len(queries)), min(HIDDEN, len(space)))[1]
    cases: dict[str, tuple[Array, Sequence[Any]]] = {
        "plain": (queries, [[]] * len(queries)),
        "seen": (queries, seen),
        "best hidden": (
            queries,
            [np.union1d(a, b[b < space.items]) for a, b in zip(seen, hidden, strict=True)],
        ),
    }
    if heavy is not None and len(heavy[0]):
        cases["much seen"] = heavy
    return {name: _recall_of(search, space, asked, masked, count) for name, (asked, masked) in cases.items()}


def _recall_of(search: Search, space: Space, queries: Array, masked: Sequence[Any], count: int) -> float:
    shares = []
    for begin in range(0, len(queries), 64):
        part = masked[begin : begin + 64]
        mask = mask_of(space, part)
        asked = queries[begin : begin + 64]
        scores, _ = search.nearest(asked, mask, count)
        best, _ = space.scan(asked, mask, range(len(asked)), count)
        for found, exact in zip(scores, best, strict=True):
            real = exact > -np.inf
            cut = exact[real][-1:]
            if len(cut):
                reached = found[: int(real.sum())] >= cut[0] - 1e-6 - 1e-5 * abs(cut[0])
                shares.append(float(np.mean(reached)))
    return float(np.mean(shares)) if shares else 1.0


def mask_of(space: Space, masked: Sequence[Any]) -> Mask:
    """Return a mask of the catalogue rows that users must not get, one list per user."""
    counts = np.array([len(rows) for rows in masked], np.int64)
    flat = (
        np.concatenate([np.asarray(rows, np.int64) for rows in masked])
        if counts.sum()
        else np.zeros(0, np.int64)
    )
    return make_mask(len(masked), space.items, flat, counts)
