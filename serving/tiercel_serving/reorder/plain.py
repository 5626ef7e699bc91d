"""Helpers of the steps' plain references: greedy choice of items, and scores for the resulting order.

This module imports nothing of the served forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

#: Gains closer than this count as tied: different arithmetic may order them either way.
NEAR = 1e-4

_NOTHING = float("-inf")


def line_of(scores: Sequence[float], candidates: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the candidates by (score descending, row ascending)."""
    return sorted(range(len(scores)), key=lambda at: (-scores[at], candidates[at]["row"]))


def relevance(scores: Sequence[float]) -> list[float]:
    """Return scores scaled to 0 … 1 between the lowest and highest finite one; -inf stays."""
    finite = [score for score in scores if abs(score) != float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scaled = []
    for score in scores:
        if score == _NOTHING:
            scaled.append(_NOTHING)
        elif score == float("inf") or high == low:
            scaled.append(1.0)
        else:
            scaled.append((score - low) / (high - low))
    return scaled


def choose_all(
    line: Sequence[int],
    gain_after: Callable[[list[int]], Callable[[int], float]],
    scores: Sequence[float],
    candidates: Sequence[Mapping[str, Any]],
    user: Mapping[str, Any],
) -> list[int]:
    """Choose candidates one by one, by the largest gain; ties go to the first in line.

    Parameters
    ----------
    line
        All candidates, in order.
    gain_after
        Maps the candidates chosen so far to a function that returns another candidate's gain, -inf if it
        can't be chosen now. It is called once per place, each time with one more chosen candidate, so it may
        keep state.
    scores, candidates, user
        The arguments of the reference. If ``user`` has ``served`` (rows as served, best first), candidates
        whose gains nearly tie are chosen in that order.

    Returns
    -------
    The chosen candidates in order; then all others, in line order.
    """
    served = {row: place for place, row in enumerate(user.get("served", ()))}
    chosen: list[int] = []
    left = [at for at in line if scores[at] != _NOTHING]
    while left:
        gain = gain_after(chosen)
        gains = {at: gain(at) for at in left}
        best = max(gains.values())
        if best == _NOTHING:
            break
        near = [at for at in left if gains[at] >= best - (NEAR if served else 0.0)]
        place = {at: served.get(candidates[at]["row"], len(served)) for at in near}
        pick = min(near, key=lambda at: place[at])
        chosen.append(pick)
        left.remove(pick)
    return chosen + [at for at in line if at not in chosen]


def scores_in_order(order: Sequence[int], scores: Sequence[float]) -> list[float]:
    """Return each candidate's new score: place j gets the j-th best score, made strictly falling."""
    new = [_NOTHING] * len(scores)
    before = np.float32(np.inf)
    for place, (at, score) in enumerate(zip(order, sorted(scores, reverse=True), strict=True)):
        now = np.float32(score)
        if place and now >= before and now != _NOTHING:
            now = np.nextafter(before, np.float32(_NOTHING))
        now = now if score == _NOTHING else max(now, np.finfo(np.float32).min)
        new[at] = float(now)
        before = now
    return new
