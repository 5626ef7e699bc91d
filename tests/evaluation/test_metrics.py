"""The vectorised metrics against hand-computed cases and a naive oracle, one user at a time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawing import examples
from tiercel_pipelines.offline.metrics import (
    Relevance,
    ndcg_at_k,
    ranking_metrics,
)


def naive(ranked, counts, relevant, k, catalogue):
    """Return the metrics by their textbook definitions, user by user, with sets and a loop over places."""
    rows = [list(row[: min(count, k)]) for row, count in zip(ranked, counts, strict=True)]
    sums = {"ndcg": 0.0, "precision": 0.0, "recall": 0.0, "hit_rate": 0.0, "mrr": 0.0}
    users = 0
    for answer, wanted in zip(rows, relevant, strict=True):
        if not wanted:
            continue
        users += 1
        dcg = sum(1 / math.log2(place + 2) for place, row in enumerate(answer) if row in wanted)
        ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
        found = len(wanted & set(answer))
        sums["ndcg"] += dcg / ideal
        sums["precision"] += found / k
        sums["recall"] += found / len(wanted)
        sums["hit_rate"] += found > 0
        sums["mrr"] += next((1 / place for place, row in enumerate(answer, 1) if row in wanted), 0)
    means = {name: value / users for name, value in sums.items()}
    covered = {row for answer in rows for row in answer}
    return {"k": k, "users": users, **means, "coverage": len(covered) / catalogue}


def relevance_of(sets):
    pairs = [(user, row) for user, rows in enumerate(sets) for row in rows]
    users, rows = zip(*pairs, strict=True) if pairs else ((), ())
    return Relevance.from_pairs(users, rows, len(sets))


def test_hand_computed_case():
    # User 0: hits at places 1 and 3 of 3, two relevant items; user 1: no hit; user 2: no test item.
    ranked = [[5, 6, 7], [1, 2, 3], [5, 6, 8]]
    result = ranking_metrics(ranked, relevance_of([{5, 7}, {9}, set()]), k=3, catalogue=10)
    dcg = 1 / math.log2(2) + 1 / math.log2(4)
    ideal = 1 / math.log2(2) + 1 / math.log2(3)
    assert result.users == 2
    assert result.ndcg == pytest.approx(dcg / ideal / 2)
    assert result.precision == pytest.approx((2 / 3 + 0) / 2)
    assert result.recall == pytest.approx(0.5)
    assert result.hit_rate == pytest.approx(0.5)
    assert result.coverage == pytest.approx(7 / 10)


def test_perfect_ranking_scores_one_even_with_fewer_relevant_items_than_places():
    result = ranking_metrics([[4, 1, 2]], relevance_of([{4}]), k=3, catalogue=5)
    assert (result.ndcg, result.recall, result.hit_rate) == (1.0, 1.0, 1.0)
    assert result.precision == pytest.approx(1 / 3)


def test_the_pad_row_is_no_item_and_what_stands_after_k_is_not_looked_at():
    result = ranking_metrics([[9, 10, 10, 4]], relevance_of([{4}]), k=3, catalogue=10)
    assert (result.hit_rate, result.coverage) == (0, pytest.approx(0.1))


def test_an_answer_narrower_than_k_still_divides_by_k():
    result = ranking_metrics([[4]], relevance_of([{4, 5}]), k=10, catalogue=10)
    assert result.precision == pytest.approx(0.1)
    assert result.recall == pytest.approx(0.5)


def test_an_empty_answer_scores_zero_and_counts():
    result = ranking_metrics([[1, 2], [4, 4]], relevance_of([{1}, {1}]), k=2, catalogue=4)
    assert result.users == 2
    assert result.recall == pytest.approx(0.5)


def test_a_pair_given_twice_counts_once():
    relevance = Relevance.from_pairs([0, 0, 1], [7, 7, 3], 2)
    assert relevance.counts.tolist() == [1, 1]
    assert relevance.rows.tolist() == [7, 3]


def test_ndcg_equals_the_recommenders_definition_on_its_own_example():
    # recommenders uses natural logarithms, which give the same ratio as log2.
    hits = np.array([[True, False, True, True, False]])
    expected = sum(1 / math.log(p + 1) for p in (1, 3, 4)) / sum(1 / math.log(p + 1) for p in range(1, 6))
    assert ndcg_at_k(hits, np.array([8]))[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("ranked", "k", "message"),
    [
        ([[1, 1]], 2, "names an item twice"),
        ([[1, 6]], 2, "rows must lie in 0 … 5, got 1 … 6"),
        ([[-1, 2]], 2, "rows must lie in 0 … 5, got -1 … 2"),
        ([[1, 2]], 0, "k must be at least 1"),
        ([[1, 2], [1, 2]], 2, "expected ranked"),
        ([1, 2], 2, "expected ranked"),
    ],
)
def test_wrong_input_is_refused(ranked, k, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(ranked, relevance_of([{1}]), k, catalogue=5)


def test_nobody_to_average_over_is_refused():
    with pytest.raises(ValueError, match="no user has a relevant item"):
        ranking_metrics([[1]], relevance_of([set()]), k=1, catalogue=2)


def test_pairs_out_of_range_are_refused():
    with pytest.raises(ValueError, match="user positions"):
        Relevance.from_pairs([2], [0], 2)
    with pytest.raises(ValueError, match="one length"):
        Relevance.from_pairs([0, 1], [0], 2)


@st.composite
def cases(draw):
    catalogue = draw(st.integers(1, 12))
    users = draw(st.integers(1, 6))
    width = draw(st.integers(0, catalogue))
    item = st.integers(0, catalogue - 1)
    ranked = [draw(st.permutations(range(catalogue)))[:width] for _ in range(users)]
    counts = [draw(st.integers(0, width)) for _ in range(users)]
    relevant = [draw(st.sets(item)) for _ in range(users)]
    relevant[0] = relevant[0] or {0}
    return ranked, counts, relevant, draw(st.integers(1, 14)), catalogue


@examples(65)
@given(cases())
def test_vectorised_equals_naive(case):
    ranked, counts, relevant, k, catalogue = case
    array = np.array(ranked, dtype=np.int64).reshape(len(ranked), -1)
    padded = np.where(np.arange(array.shape[1]) < np.array(counts)[:, None], array, catalogue)
    result = ranking_metrics(padded, relevance_of(relevant), k, catalogue).to_json()
    assert result == pytest.approx(naive(ranked, counts, relevant, k, catalogue), rel=1e-12, abs=0)
