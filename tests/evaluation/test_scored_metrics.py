"""AUC, log loss, 1 + n, top-K accuracy, novelty, bias, diversity: against SciPy or a literal definition."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cosine

from drawing import examples
from tiercel_pipelines.offline.beyond_accuracy import beyond_accuracy, gini
from tiercel_pipelines.offline.metrics import Relevance, ranking_metrics, recall_curve
from tiercel_pipelines.offline.scored import auc, draw_negatives, factorised_top_k, log_loss, one_plus_n

SEEDS = st.integers(0, 2**32 - 1)


@examples(10)
@given(SEEDS, st.integers(2, 40), st.booleans())
def test_auc_is_the_statistic_of_mann_and_whitney(seed, n, ties):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.5
    positive[:2] = True, False
    scores = rng.integers(4, size=n).astype(float) if ties else rng.normal(size=n)
    expected = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert auc(positive, scores) == pytest.approx(expected / (positive.sum() * (~positive).sum()))


@examples(10)
@given(SEEDS, st.integers(1, 30))
def test_log_loss_is_the_entropy_of_what_happened(seed, n):
    rng = np.random.default_rng(seed)
    positive, p = rng.random(n) < 0.5, rng.random(n)
    expected = -np.mean([stats.bernoulli(q).logpmf(int(y)) for y, q in zip(positive, p, strict=True)])
    assert log_loss(positive, p) == pytest.approx(expected)


def test_a_certain_mistake_costs_much_and_not_everything():
    assert 30 < log_loss([True], [0.0]) < 40
    with pytest.raises(ValueError, match=r"probabilities in 0 … 1"):
        log_loss([True], [1.5])
    with pytest.raises(ValueError, match="expected positives and negatives, got 2 and 0"):
        auc([True, True], [1, 2])


@examples(10)
@given(SEEDS, st.integers(1, 8), st.integers(1, 12), st.integers(1, 6))
def test_one_plus_n_place_by_place(seed, count, n, k):
    rng = np.random.default_rng(seed)
    scores = rng.integers(5, size=(count, 1 + n)).astype(float)
    hits, gains, reciprocal, areas = [], [], [], []
    for own, *others in scores.tolist():
        rank = 1 + sum(other >= own for other in others)
        hits.append(rank <= k)
        gains.append(1 / math.log2(rank + 1) if rank <= k else 0)
        reciprocal.append(1 / rank)
        areas.append(auc([True] + [False] * n, [own, *others]))
    found = one_plus_n(scores, k)
    expected = [np.mean(values) for values in (hits, gains, reciprocal, areas)]
    np.testing.assert_allclose([found.hit_rate, found.ndcg, found.mrr, found.auc], expected)
    assert (found.positives, found.negatives, found.k) == (count, n, k)


def test_one_score_for_all_gets_nothing():
    assert one_plus_n(np.zeros((3, 100)), 10).hit_rate == 0


def test_negatives_are_what_the_user_never_had():
    rng = np.random.default_rng(0)
    relevant = Relevance.from_pairs([0, 0, 1], [3, 5, 2], 2)
    known = Relevance.from_pairs([0, 1], [1, 9], 2)
    users, candidates = draw_negatives(relevant, known, 10, 6, rng)
    assert users.tolist() == [0, 0, 1]
    assert candidates[:, 0].tolist() == [3, 5, 2]
    for user, row in zip(users.tolist(), candidates.tolist(), strict=True):
        assert len(set(row)) == 7
        assert not set(row[1:]) & ({3, 5, 1} if user == 0 else {2, 9})
    with pytest.raises(ValueError, match="user 0 never had 7 items, expected 8"):
        draw_negatives(relevant, known, 10, 8, rng)


@examples(7)
@given(SEEDS, st.integers(1, 9), st.integers(2, 12))
def test_factorised_top_k_by_sorting(seed, pairs, items):
    rng = np.random.default_rng(seed)
    queries, vectors = rng.normal(size=(pairs, 3)), rng.normal(size=(items, 3))
    own = rng.integers(items, size=pairs)
    found = factorised_top_k(queries, vectors, own, (1, 3, items))
    order = np.argsort(-(queries @ vectors.T), axis=1)
    for k, share in found.items():
        assert share == np.mean([item in row[:k] for item, row in zip(own, order, strict=True)])
    assert found[items] == 1


def literal(lists, k, users, rows, catalogue):
    """Return every figure of beyond_accuracy, user by user and pair by pair."""
    everybody = sorted(set(users))
    had = np.zeros((catalogue, len(everybody)))
    for user, row in zip(users, rows, strict=True):
        had[row, everybody.index(user)] = 1
    counts = had.sum(1)
    answers = [[row for row in answer[:k] if row != catalogue] for answer in lists]
    answers = [answer for answer in answers if answer]
    novelty = [np.mean([-math.log2(max(counts[i], 1) / len(everybody)) for i in a]) for a in answers]
    popularity = np.mean([np.mean([counts[i] for i in a]) for a in answers])
    apart = [
        np.mean([1.0 if not (had[i].any() and had[j].any()) else cosine(had[i], had[j]) for i, j in pairs])
        for a in answers
        if (pairs := list(combinations(a, 2)))
    ]
    profile = np.mean([counts[i] for i, u in {(r, u) for u, r in zip(users, rows, strict=True)}])
    shown = np.bincount([i for a in answers for i in a], minlength=catalogue)
    uneven = np.abs(shown[:, None] - shown).mean() / (2 * shown.mean())
    return np.mean(novelty), popularity, popularity / profile - 1, uneven, np.mean(apart) if apart else np.nan


@examples(9)
@given(SEEDS, st.integers(1, 6), st.integers(1, 5), st.integers(6, 9))
def test_beyond_accuracy_list_by_list(seed, n_lists, k, catalogue):
    rng = np.random.default_rng(seed)
    lists = np.array([rng.permutation(catalogue)[:5] for _ in range(n_lists)])
    lists[rng.random(n_lists) < 0.3, 2:] = catalogue
    n = int(rng.integers(1, 25))
    users, rows = rng.integers(10, 15, size=n), rng.integers(catalogue, size=n)
    found = beyond_accuracy(lists, k, users, rows, catalogue)
    expected = literal(lists.tolist(), k, users.tolist(), rows.tolist(), catalogue)
    figures = (found.novelty, found.popularity, found.popularity_lift, found.gini, found.diversity)
    np.testing.assert_allclose(figures, expected, atol=1e-12)


def test_gini_of_one_item_and_of_all():
    assert gini(np.array([5, 5, 5, 5])) == 0
    assert gini(np.array([0, 0, 0, 9])) == pytest.approx(3 / 4)


def test_the_recall_curve_ends_at_recall():
    rng = np.random.default_rng(3)
    ranked = np.array([rng.permutation(20)[:10] for _ in range(5)])
    wanted = Relevance.from_pairs(rng.integers(5, size=12), rng.integers(20, size=12), 5)
    curve = recall_curve(ranked, wanted, 10, 20)
    for k in (1, 4, 10):
        assert curve[k - 1] == pytest.approx(ranking_metrics(ranked, wanted, k, 20).recall)
