"""Placing of items one by one: candidates sorted by score, greedy picks, and scores for the new order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..native.order import line_up, put_in_place
from ..ranked.order import Rows, Scores, order_by_score, pick, strictly_falling
from ..spec import Arrays

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

_NOTHING = np.float32(-np.inf)


def places_to_fill(arrays: Arrays, width: int) -> int:
    """Return how many places a step must fill: all K, or fewer if ``k [B, 1]`` shows fewer."""
    k = arrays.get("k")
    return width if k is None else min(int(k.max()), width)


@dataclass
class Line:
    """Each user's candidates in order of (score descending, row ascending).

    Attributes
    ----------
    order
        ``[B, K]``, the index of each among the kept candidates.
    scores, rows
        ``[B, K]`` in that order.
    real
        ``[B, K]``: which have a score. They come first.
    """

    order: Rows
    scores: Scores
    rows: Rows

    @classmethod
    def of(cls, scores: Scores, arrays: Arrays) -> Line:
        """Sort each user's candidates; a score of -0.0 becomes 0.0."""
        kept = arrays["kept_row"]
        found = line_up(scores, kept)
        if found is not None:
            return cls(*found)
        order = order_by_score(scores, kept)
        return cls(order, pick(scores, order) + np.float32(0), pick(kept, order))

    @property
    def real(self) -> Flags:
        """``[B, K]``: which have a score. They come first."""
        flags: Flags = self.scores > _NOTHING
        return flags

    def relevance(self) -> Floats:
        """Return scores ``[B, K]`` scaled to 0 … 1 between each user's lowest and highest finite ones.

        If all finite scores of a user are equal, they become 1. +inf becomes 1, and -inf stays.
        """
        # In float64, so that differences of float32 scores can't overflow.
        scores = self.scores.astype(np.float64)
        first, last = scores[:, :1], scores[:, -1:]
        if first.max() < np.inf and last.min() > -np.inf:
            span = first - last
            if span.min() > 0:
                return ((scores - last) / span).astype(np.float32)
        real = self.real
        with np.errstate(invalid="ignore"):
            if real.all() and scores[:, 0].max() < np.inf:
                low, high = scores[:, -1:], scores[:, :1]
            else:
                finite = np.isfinite(scores)
                low = np.where(finite, scores, np.inf).min(axis=1, keepdims=True)
                high = np.where(finite, scores, -np.inf).max(axis=1, keepdims=True)
            varied = high > low
            scaled = (scores - np.where(varied, low, 0)) / np.where(varied, high - low, 1)
        if not varied.all():
            scaled[~varied[:, 0]] = 1
        np.minimum(scaled, 1, out=scaled)
        if not real.all():
            scaled[~real] = _NOTHING
        relevance: Floats = scaled.astype(np.float32)
        return relevance

    def placed(self, picks: Rows) -> Scores:
        """Return new scores ``[B, K]`` of the kept: picked items first, in their order, then all others.

        Scores belong to places: the item at place j gets the j-th best score. Scores are made strictly
        falling, so that sorting by them reproduces this order.

        Parameters
        ----------
        picks
            ``[B, S]`` places in this line; K where nothing was picked.
        """
        found = put_in_place(self.scores, self.order, picks)
        if found is not None:
            return found
        users, width = self.scores.shape
        falling, at = strictly_falling(self.scores), np.arange(users)[:, None]
        if picks.max() < width:  # every user has the same number of others
            left = np.ones((users, width), np.bool_)
            left[at, picks] = False
            others = left.reshape(-1).nonzero()[0].reshape(users, -1) - at * width
            return unsorted(falling, pick(self.order, np.concatenate([picks, others], axis=1)))
        # One extra place, for missing picks.
        place = np.full((users, width + 1), -1)
        place[at, picks] = np.arange(picks.shape[1])
        place = place[:, :width]
        others = place < 0
        behind = (width - np.count_nonzero(others, axis=1))[:, None]
        place = np.where(others, np.cumsum(others, axis=1) - 1 + behind, place)
        return unsorted(pick(falling, place), self.order)


def fill(gains: Floats, places: int, choose: Callable[[Rows], None]) -> Rows:
    """Give each place to the candidate with the largest gain; ties go to the first in line.

    Parameters
    ----------
    gains
        ``[B, K]`` gains for the first place, in the order of the line; -inf if a candidate can't be placed.
        Modified in place.
    places
        S, how many places to fill.
    choose
        Called after each place but the last, with ``[B]`` flat indexes into ``[B, K]`` of the chosen; updates
        ``gains`` for the next place. The gains of the chosen are -inf by then, and must stay so.

    Returns
    -------
    ``[B, S]`` places in the line, for :meth:`Line.placed`.
    """
    users, width = gains.shape
    base, flat = np.arange(users) * width, gains.reshape(-1)
    best, worth = np.empty((places, users), np.int64), np.empty((places, users), np.float32)
    if users == 1:
        _fill_one(gains[0], best, worth, choose)
        places = 0
    for place in range(places):
        gains.argmax(1, best[place])
        chosen = best[place] + base
        flat.take(chosen, out=worth[place], mode="clip")
        if place < places - 1:
            flat[chosen] = _NOTHING
            choose(chosen)
    picks: Rows = np.where(worth == _NOTHING, width, best).T
    return picks


def _fill_one(gains: Floats, best: Rows, worth: Floats, choose: Callable[[Rows], None]) -> None:
    """Fill the places of a single user: plain numbers cost a third of arrays with one element."""
    for place in range(len(best)):
        at = int(gains.argmax())
        best[place, 0], worth[place, 0] = at, gains[at]
        if place < len(best) - 1:
            gains[at] = _NOTHING
            choose(best[place])


def scaled(relevance: Floats, by: Floats) -> Floats:
    """Return the relevance ``[B, K]`` times ``by [B, 1]``; -inf stays -inf, even times 0."""
    if relevance[:, -1].min() > _NOTHING:
        whole: Floats = relevance * by
        return whole
    with np.errstate(invalid="ignore"):
        out: Floats = np.where(relevance == _NOTHING, _NOTHING, relevance * by)
    return out


def in_order(scores: Scores, order: Rows) -> Scores:
    """Return scores ``[B, K]`` of the kept, given sorted scores and the new ``order [B, K]`` of the kept."""
    found = put_in_place(scores, order, None)
    return unsorted(strictly_falling(scores), order) if found is None else found


def unsorted(values: npt.NDArray[Any], order: Rows) -> npt.NDArray[Any]:
    """Return values ``[B, K]``, given in ``order [B, K]``, at their positions among the kept."""
    out = np.empty_like(values)
    if len(values) == 1:
        out[0, order[0]] = values[0]
    else:
        base = (np.arange(len(values)) * values.shape[1])[:, None]
        out.reshape(-1)[order + base] = values
    return out
