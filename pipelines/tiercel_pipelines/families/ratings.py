"""Ratings for the families that learn from them: a numeric column of the interactions."""

from __future__ import annotations

import numpy as np

from tiercel_serving.spec import Array

from ..arrays.pairs import Pairs
from ..errors import TrainingError


def ratings_of(pairs: Pairs, column: str, label: str) -> Array:
    """Return the ratings ``[n]`` float64 of the interactions.

    Raises
    ------
    TrainingError
        There is no such column, its values are not all finite, or they are all equal.
    """
    if column not in pairs.numbers:
        known = ", ".join(map(repr, pairs.numbers)) or "none"
        raise TrainingError(f"{label}: expected interactions with {column!r}, got {known}; name it")
    ratings = pairs.numbers[column]
    if not np.isfinite(ratings).all():
        raise TrainingError(f"{label}: {column!r} is not everywhere a finite number; drop those interactions")
    if len(ratings) and ratings.min() == ratings.max():
        raise TrainingError(
            f"{label}: every {column!r} is {ratings[0]:g}, so there is nothing to learn from it; take a "
            "family that learns from who had what"
        )
    return ratings


def centred(pairs: Pairs, column: str, label: str) -> Array:
    """Return each rating minus the mean of its user's ratings, ``[n]`` float64."""
    ratings = ratings_of(pairs, column, label)
    totals = np.bincount(pairs.users, ratings, minlength=pairs.n_users)
    means = totals / np.maximum(pairs.lengths, 1)
    return np.asarray(ratings - means[pairs.users])
