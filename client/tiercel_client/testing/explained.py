"""The fake's explanations of its stages and of single items."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ..contract import TIME_PREFIX
from ..request import id_array
from ..response import EXCLUDED, FOUND, HAD, NOT_ASKED, TOO_DEEP, UNKNOWN
from ..results import Id
from ..wire.transport import Array

#: The outputs of ``recommend_explain`` besides those of ``recommend`` and the times, with their dtypes.
EXPLAIN_OUTPUTS = {
    "history_row": "int64",
    "history_length": "int32",
    "retrieved_row": "int64",
    "retrieval_score": "float32",
    "source": "int32",
    "kept_row": "int64",
    "kept_index": "int64",
    "filter_reason": "int32",
    "rank_score": "float32",
    "reorder_reason": "int32",
    "explain_reason": "int32",
    "explain_place": "int64",
    "explain_score": "float32",
    "explain_detail": "bytes",
}


def explained(rows: Sequence[int], items: int, stages: Sequence[str], *, moved: bool) -> dict[str, Array]:
    """Return the stages' outputs for the item rows of an answer; ``moved`` gives each a reorder reason."""
    n = max(1, items)
    padded = np.array([[*rows, *[items] * (n - len(rows))]], np.int64)
    places = np.arange(n)
    real = places < len(rows)
    scores = np.where(real, 1 / (1 + places), 0).astype(np.float32)
    return {
        "history_row": np.full((1, 1), items, np.int64),
        "history_length": np.zeros((1, 1), np.int32),
        "retrieved_row": padded,
        "retrieval_score": scores[None],
        "source": real.astype(np.int32)[None],
        "kept_row": padded,
        "kept_index": np.where(real, places, 0)[None],
        "filter_reason": np.where(real, 0, 1).astype(np.int32)[None],
        "rank_score": scores[None, :, None],
        "reorder_reason": (real & moved).astype(np.int32)[None],
        **{TIME_PREFIX + stage: np.full((1, 1), 100, np.float32) for stage in stages},
    }


def said_of(
    asked: Sequence[Id],
    answer: Sequence[Id],
    items: Collection[Id],
    excluded: Collection[Id],
    had: Collection[Id],
    limits: Sequence[Collection[Id]],
) -> dict[str, Array]:
    """Return the outcome of single items.

    Parameters
    ----------
    asked
        The items, at least one.
    answer
        The recommended items, best first.
    items
        All items of the fake.
    excluded
        The items that the request excludes.
    had
        The seen items, if they may not be recommended.
    limits
        Sets of the only items that may be recommended.
    """
    reasons = []
    for one in asked:
        cases = {
            UNKNOWN: one not in items,
            EXCLUDED: one in excluded,
            HAD: one in had,
            NOT_ASKED: any(one not in limit for limit in limits),
            FOUND: one in answer,
        }
        reasons.append(next((reason for reason, holds in cases.items() if holds), TOO_DEEP))
    places = [answer.index(one) + 1 if one in answer else 0 for one in asked]
    scores = [1 / place if place else float("nan") for place in places]
    return {
        "explain_reason": np.array([reasons], np.int32),
        "explain_place": np.array([places], np.int64),
        "explain_score": np.array([scores], np.float32),
        "explain_detail": id_array([""] * len(places), "bytes")[None],
    }
