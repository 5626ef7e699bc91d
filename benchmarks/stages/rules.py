"""Five rules that read users, requests and the time, and a long history, over one user's candidates."""

from __future__ import annotations

import numpy as np

from benchmarks.features.timing import interleave
from tiercel_serving.columns import Column
from tiercel_serving.ranked.masks import make_mask
from tiercel_serving.rules.expression import Expression
from tiercel_serving.rules.expressions.given import Given
from tiercel_serving.spec import Array

#: Rules that each candidate must pass.
RULES = (
    "item.stock > 0",
    "item.year >= request.min_year",
    "any(item.genres, request.genres)",
    "item.owner != user.user_id",
    "item.expires > now",
)

#: Numbers of items, of candidates, and of items that the user has had. Candidates and history are random.
ITEMS, CANDIDATES, HISTORY = 20_000, 2_000, 10_000


def measure_rules(*, rounds: int, seconds: float, items: int = ITEMS) -> float:
    """Return the microseconds, for one user, to find the candidates that pass all rules and are not seen.

    Results that depend only on the item are computed when a release is opened, so here they are gathered.
    """
    rng = np.random.default_rng(0)
    columns, given = _columns(rng, items), _given()
    rules = [Expression(str(number), text) for number, text in enumerate(RULES)]
    decided = np.logical_and.reduce([rule.passes(columns) for rule in rules])
    opened = [one for one in (rule.open(columns) for rule in rules) if one is not None]
    rows = rng.permutation(items)[: items * CANDIDATES // ITEMS][None]
    history = np.sort(rng.permutation(items)[: items * HISTORY // ITEMS])
    counts = np.array([len(history)])

    def ask() -> Array:
        passed = decided.take(rows)
        for one in opened:
            passed = passed & one.allows(given, rows)
        free: Array = make_mask(1, items, history, counts).allows(rows)
        return np.logical_and(passed, free)

    return interleave({"rules": [ask]}, rounds=rounds, seconds=seconds)["rules"].us


def _columns(rng: np.random.Generator, items: int) -> dict[str, Column]:
    counts = rng.integers(1, 4, items)
    genres = np.concatenate([rng.permutation(18)[:count] for count in counts])
    return {
        "stock": Column(rng.integers(0, 5, items)),
        "year": Column(rng.integers(1950, 2026, items)),
        "genres": Column(_texts("genre", genres), None, np.concatenate([[0], np.cumsum(counts)])),
        "owner": Column(_texts("user", rng.integers(0, 1000, items))),
        "expires": Column(rng.random(items) * 2e9),
    }


def _given() -> Given:
    sent = np.ones(1, np.bool_)
    genres = Column(_texts("genre", np.arange(3)), None, np.array([0, 3]))
    return Given(
        {"user_id": Column(_texts("user", np.array([7])))},
        {"min_year": Column(np.array([1980])), "genres": genres},
        {"min_year": sent, "genres": sent},
        np.array([1e9]),
    )


def _texts(prefix: str, numbers: Array) -> Array:
    return np.array([f"{prefix}-{number}".encode() for number in numbers.tolist()], np.object_)
