"""Batches and lists: what is a target, history, masked; exact retrieval beside a naive one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiercel_pipelines.training.pairs import Packed, Pairs, assign_folds, history_rows, left_align
from tiercel_pipelines.training.retrieval import allowed_items, keep, popular_items, reorder, retrieve
from tiercel_pipelines.training.sampling import (
    BatchMaker,
    RankingLists,
    draw_groups,
    drop_ids,
    make_lists,
    sample_candidates,
)

from tiercel_pipelines.families import CategoryColumn, Side
from tiercel_serving.settings import Rule, ServingSettings, Source

USERS, ITEMS = 7, 12
SIDE = Side("user", (CategoryColumn("user_id", 20), CategoryColumn("group", 4, vocabulary=False)))


def random_pairs(seed, share=0.5, contexts=False):
    rng = np.random.default_rng(seed)
    users, items = np.nonzero(rng.random((USERS, ITEMS)) < share)
    order = np.lexsort((rng.random(len(users)), users))
    users, items = users[order], items[order]
    own = USERS + users * ITEMS + items // 2 if contexts else users
    return Pairs.build(users, items, own, np.ones(len(users)), USERS)


def packed(pairs, length=5):
    rows = max(USERS, int(pairs.contexts.max(initial=0)) + 1)
    user = {"user_cat": np.stack([np.arange(rows), np.zeros(rows, np.int64)], axis=1) + 3}
    item = {"item_cat": np.append(np.arange(ITEMS) + 3, 0)[:, None]}
    return Packed(user, item, (0,), length, USERS)


def naive_history(pairs, user, without, length):
    mine = [int(i) for i in pairs.items[pairs.users == user] if int(i) not in without]
    return mine[-length:]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.booleans())
def test_each_interaction_is_a_target_once_an_epoch(seed, size, contexts):
    pairs = random_pairs(seed, contexts=contexts)
    groups = draw_groups(pairs, size, 0.0, np.random.default_rng(seed))
    targets = groups.targets[groups.targets >= 0]
    assert sorted(targets.tolist()) == list(range(len(pairs)))
    for context, user, row in zip(groups.contexts, groups.users, groups.targets, strict=True):
        assert (pairs.users[row[row >= 0]] == user).all()
        assert (pairs.contexts[row[row >= 0]] == context).all()


def test_hidden_contexts_are_the_users_own_rows():
    pairs = random_pairs(1, contexts=True)
    groups = draw_groups(pairs, 2, 1.0, np.random.default_rng(0))
    assert (groups.contexts == groups.users).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 8))
def test_a_batch_masks_targets_out_of_the_history_and_positives_out_of_the_negatives(seed, size, length):
    rng = np.random.default_rng(seed)
    pairs = random_pairs(seed)
    if not len(pairs):
        return
    table = packed(pairs, length)
    maker = BatchMaker(pairs, table, SIDE, history_dropout=0.0, id_dropout=0.0)
    groups = draw_groups(pairs, size, 0.0, rng)
    chosen = rng.permutation(len(groups.users))[:4]
    batch = maker.batch(groups, chosen, rng)
    for row, group in enumerate(chosen):
        user, positions = groups.users[group], groups.targets[group]
        targets = pairs.items[positions[positions >= 0]].tolist()
        expected = naive_history(pairs, user, targets, length)
        assert batch.user["history_length"][row, 0] == len(expected)
        got = batch.user["history_cat"][row, :, 0] - 3
        assert got[: len(expected)].tolist() == expected
        assert (batch.user["history_cat"][row, len(expected) :] == 0).all()
        positives = set(pairs.items[pairs.users == user].tolist())
        assert batch.hits[row].tolist() == [int(item) in positives for item in batch.items]
        real = batch.weights[row] > 0
        assert batch.items[batch.positives[row][real]].tolist() == targets
    assert batch.counts.sum() == batch.weights.sum()


def test_history_dropout_leaves_some_out_and_keeps_the_order():
    pairs = random_pairs(2, share=1.0)
    maker = BatchMaker(pairs, packed(pairs, 12), SIDE, history_dropout=0.5, id_dropout=0.0)
    groups = draw_groups(pairs, 1, 0.0, np.random.default_rng(0))
    batch = maker.batch(groups, np.arange(USERS), np.random.default_rng(0))
    lengths = batch.user["history_length"][:, 0]
    assert len(set(lengths.tolist())) > 1
    place = {(user, item): at for at, (user, item) in enumerate(zip(pairs.users, pairs.items, strict=True))}
    for row, user in enumerate(groups.users[:USERS]):
        items = batch.user["history_cat"][row, : lengths[row], 0] - 3
        positions = [place[user, item] for item in items]
        assert positions == sorted(positions)


def test_ids_are_dropped_only_where_there_is_a_vocabulary():
    tensors = {"user_cat": np.full((200, 2), 3)}
    dropped = drop_ids(tensors, SIDE, 0.5, np.random.default_rng(0))["user_cat"]
    assert set(np.unique(dropped[:, 0])) == {1, 2, 3}
    assert (dropped[:, 1] == 3).all()
    assert (tensors["user_cat"] == 3).all()


def test_left_align_keeps_the_last_in_order():
    rows = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    kept = np.array([[True, True, False, True], [False, False, False, False]])
    assert left_align(rows, kept, 2, 99).tolist() == [[2, 4], [99, 99]]
    assert left_align(rows, kept, 5, 99).tolist() == [[1, 2, 4, 99, 99], [99] * 5]


def test_folds_are_even_for_each_user():
    pairs = random_pairs(3, share=0.9)
    folds = assign_folds(pairs, 3, np.random.default_rng(0))
    for user in range(USERS):
        counts = np.bincount(folds[pairs.users == user], minlength=3)
        assert counts.max() - counts.min() <= 1


def naive_retrieve(query, vectors, seen, popular, config):
    """Follow the served definition word by word for one user."""
    scores = vectors @ query
    free = [row for row in range(len(vectors)) if row not in seen]
    taken: dict[int, int] = {}
    fixed = sum(source.quota or 0 for source in config.sources)
    for code, source in enumerate(config.sources, 1):
        quota = config.candidates - fixed if source.quota is None else source.quota
        order = sorted(free, key=lambda row: (-scores[row], row))
        if source.kind == "popular":
            order = [row for row in popular if row in free]
        for row in [row for row in order if row not in taken][:quota]:
            taken[row] = code
    fill = [source.kind for source in config.sources].index("popular") + 1
    for row in popular:
        if len(taken) < config.candidates and row in free and row not in taken:
            taken[row] = fill
    rows = sorted(taken, key=lambda row: (-scores[row], row))
    return rows, [taken[row] for row in rows]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 15), st.integers(0, 3), st.booleans())
def test_retrieval_equals_a_naive_one(seed, candidates, quota, popular_first):
    rng = np.random.default_rng(seed)
    pairs = random_pairs(seed, share=0.6)
    query = rng.normal(size=(USERS, 3)).astype(np.float32)
    vectors = rng.integers(-1, 2, size=(ITEMS, 3)).astype(np.float32)  # many ties
    sources = (Source("index", "index"), Source("popular", "popular", min(quota, candidates)))
    config = ServingSettings(candidates=candidates, sources=sources[::-1] if popular_first else sources)
    popular = popular_items(pairs, ITEMS)
    rows, scores, codes = retrieve(query, vectors, pairs, popular, config)
    assert rows.shape == (USERS, candidates)
    for user in range(USERS):
        seen = set(pairs.items[pairs.users == user].tolist())
        expected, sources_of = naive_retrieve(query[user], vectors, seen, popular.tolist(), config)
        real = rows[user] < ITEMS
        assert rows[user][real].tolist() == expected
        assert codes[user][real].tolist() == sources_of
        assert not scores[user][~real].any()
        assert not codes[user][~real].any()


def test_rules_and_the_cut_to_k():
    frame = pd.DataFrame({"year": [1990.0, np.nan, 2000, 2010], "kind": ["a", "b", None, "a"]})
    rules = (Rule("new", "year", ">=", 1995), Rule("known", "kind", "in", ("a", "b")))
    assert allowed_items(frame, rules).tolist() == [False, False, False, True]
    assert allowed_items(frame, rules[:1]).tolist() == [False, False, True, True]
    candidates = (
        np.array([[3, 0, 2, 4]]),
        np.array([[4, 3, 2, 0]], np.float32),
        np.array([[1, 1, 2, 0]], np.int32),
    )
    rows, scores, sources = keep(candidates, allowed_items(frame, rules[:1]), 3)
    assert (rows.tolist(), scores.tolist(), sources.tolist()) == ([[3, 2, 4]], [[4, 2, 0]], [[1, 2, 0]])
    assert reorder(np.array([[3, 1, 2]]), np.array([[1.0, 5.0, 1.0]], np.float32)).tolist() == [[1, 2, 3]]


def test_lists_know_nothing_of_what_was_held_out():
    pairs = random_pairs(5, share=0.7)
    folds = assign_folds(pairs, 3, np.random.default_rng(1))
    rest, held_out = pairs.select(folds != 1), pairs.select(folds == 1)
    table = packed(pairs, 20)
    query, vectors = np.ones((USERS, 2), np.float32), np.ones((ITEMS, 2), np.float32)
    config = ServingSettings(candidates=ITEMS)
    found = retrieve(query, vectors, rest, popular_items(rest, ITEMS), config)
    lists = make_lists(rest, held_out, table, found, 0.0, np.random.default_rng(0))
    for user in range(USERS):
        positives = set(held_out.items[held_out.users == user].tolist())
        known = set(rest.items[rest.users == user].tolist())
        assert not positives & set(lists.history[user].tolist())
        assert not known & set(lists.rows[user].tolist())
        assert positives == set(lists.rows[user][lists.weights[user] > 0].tolist())
    assert (lists.history == history_rows(rest, np.arange(USERS), 20, ITEMS)).all()


@pytest.mark.parametrize("hard", [0.0, 0.5, 1.0])
def test_sampled_candidates(hard):
    rng = np.random.default_rng(0)
    rows = np.argsort(rng.random((40, 20)), axis=1)
    rows[:, 15:] = 20  # padding
    weights = np.where((rng.random((40, 20)) < 0.2) & (rows < 20), 1, 0).astype(np.float32)
    zero = np.zeros(40, np.int64)
    lists = RankingLists(zero, zero, rows, rows, weights, rows.astype(np.int32), weights)
    chosen = sample_candidates(lists, 8, 4, hard, 20, rng)
    assert not chosen[rows == 20].any()
    assert chosen[:, 0].all()
    near = np.arange(20) < 8
    assert chosen[(weights > 0) & near].all()
    assert not chosen[(weights > 0) & ~near].any()
    negatives = chosen & (weights == 0)
    negatives[:, 0] = False
    assert (negatives.sum(axis=1) <= 4).all()
    if hard == 1:
        assert not negatives[:, 8:].any()
