"""Places that one source leaves empty, by failing or running out of items, are filled by the next ones."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tiercel_serving.ranked.masks import Mask, make_mask
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.merged import MergedSources
from tiercel_serving.sources.popular import Popular

ITEMS, N = 20, 6
SETTINGS = ServingSettings(
    candidates=N, kept=N, k_max=N, k_default=2, sources=(Index("a", quota=2), Index("b"), Popular(quota=1))
)


class Listed:
    """Returns items in its order, and cannot score given ones."""

    def __init__(self, *rows: int, broken: bool = False) -> None:
        self.rows, self.broken, self.asked = rows, broken, list[int]()

    def candidates(self, arrays: object, mask: Mask, count: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(count)
        if self.broken:
            raise RuntimeError("no index")
        scores = np.full((mask.users, count), -np.inf, np.float32)
        rows = np.full((mask.users, count), ITEMS)
        for user in range(mask.users):
            free = [row for row in self.rows if mask.allows(np.full((mask.users, 1), row))[user, 0]][:count]
            rows[user, : len(free)] = free
            scores[user, : len(free)] = [-self.rows.index(row) for row in free]
        return scores, rows


def ask(*sources: Listed, strict: bool = False) -> tuple[list[tuple[int, int]], Counter[str]]:
    failures: Counter[str] = Counter()
    merged = MergedSources(SETTINGS, sources, ITEMS, None if strict else failures)
    mask = make_mask(1, ITEMS, np.zeros(0, np.int64), np.zeros(1, np.int64))
    _, rows, source = merged.personal({}, mask)
    return [(int(r), int(s)) for r, s in zip(rows[0], source[0], strict=True) if r < ITEMS], failures


def test_a_source_that_runs_dry_is_filled_by_the_next_that_has_more() -> None:
    found, _ = ask(Listed(0), Listed(*range(1, 19)), Listed(*range(19, -1, -1)))
    # Of six places, the first source fills one of its two, the second its three and one more.
    assert found == [(0, 1), (1, 2), (2, 2), (3, 2), (4, 2), (19, 3)]


def test_the_fallback_is_the_last_to_fill() -> None:
    dry = Listed(1)
    found, _ = ask(Listed(0, *range(10, 14)), dry, Listed(19, 18, 17))
    assert found == [(0, 1), (10, 1), (11, 1), (12, 1), (1, 2), (19, 3)]
    assert dry.asked == [3]  # a source that has run out is not asked again


def test_a_source_that_breaks_is_counted_and_filled() -> None:
    found, failures = ask(Listed(broken=True), Listed(*range(1, 19)), Listed(*range(19, -1, -1)))
    assert found == [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (19, 3)]
    assert failures == {"a": 1}
    # If the fallback fails too, one source is left to answer.
    found, failures = ask(Listed(broken=True), Listed(*range(1, 19)), Listed(broken=True))
    assert [row for row, _ in found] == [1, 2, 3, 4, 5, 6]
    assert failures == {"a": 1, "popular": 1}


def test_when_all_break_the_request_does() -> None:
    with pytest.raises(RuntimeError, match="no index"):
        ask(*[Listed(broken=True)] * 3)
    with pytest.raises(RuntimeError, match="no index"):
        ask(Listed(broken=True), Listed(*range(10)), Listed(1), strict=True)
