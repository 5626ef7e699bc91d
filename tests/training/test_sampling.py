"""Batches and lists, their masks, and the served path in memory compared with the plain reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawing import examples
from tiercel_pipelines.arrays.inputs import CategoryColumn, Side
from tiercel_pipelines.arrays.lists import RankingLists, draw_contexts, positive_weights
from tiercel_pipelines.arrays.packed import Packed
from tiercel_pipelines.arrays.pairs import Pairs, assign_folds, left_align
from tiercel_pipelines.families.views import TrainingViews, drop_history, drop_ids
from tiercel_pipelines.offline.in_memory import OfflineOrdering, OfflineRetrieval, open_source
from tiercel_pipelines.recipe import (
    Compare,
    Debiasing,
    Index,
    Popular,
    SampledSoftmax,
    ServingSettings,
    WeightedSum,
)
from tiercel_pipelines.tasks.listwise_softmax import sample_candidates
from tiercel_pipelines.tasks.sampled_softmax import draw_groups
from tiercel_serving.columns import Column
from tiercel_serving.sources.table import Material
from tiercel_serving.verify.reference import retrieve

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


@examples(10)
@given(st.integers(0, 10_000), st.integers(1, 4), st.booleans())
def test_each_interaction_is_a_target_once_an_epoch(seed, size, contexts):
    pairs = random_pairs(seed, contexts=contexts)
    groups = draw_groups(pairs, size, 0.0, np.random.default_rng(seed))
    targets = groups.targets(np.arange(len(groups)))
    assert sorted(targets[targets >= 0].tolist()) == list(range(len(pairs)))
    for context, user, row in zip(groups.contexts, groups.users, targets, strict=True):
        assert (pairs.users[row[row >= 0]] == user).all()
        assert (pairs.contexts[row[row >= 0]] == context).all()


def test_hidden_contexts_are_the_users_own_rows():
    pairs = random_pairs(1, contexts=True)
    groups = draw_groups(pairs, 2, 1.0, np.random.default_rng(0))
    assert (groups.contexts == groups.users).all()


@examples(10)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 8))
def test_a_batch_masks_targets_out_of_the_history_and_positives_out_of_the_negatives(seed, size, length):
    rng = np.random.default_rng(seed)
    pairs = random_pairs(seed)
    if not len(pairs):
        return
    views = TrainingViews(pairs, packed(pairs, length), SIDE, history_dropout=0.0, id_dropout=0.0)
    groups = draw_groups(pairs, size, 0.0, rng)
    chosen = rng.permutation(len(groups))[:4]
    batch = SampledSoftmax().start(pairs, ITEMS).batch(groups, chosen)
    shown = views.users(batch, rng)
    for row, group in enumerate(chosen):
        user, positions = groups.users[group], groups.targets(chosen)[row]
        targets = pairs.items[positions[positions >= 0]].tolist()
        expected = naive_history(pairs, user, targets, length)
        assert shown["history_length"][row, 0] == len(expected)
        got = shown["history_cat"][row, :, 0] - 3
        assert got[: len(expected)].tolist() == expected
        assert (shown["history_cat"][row, len(expected) :] == 0).all()
        positives = set(pairs.items[pairs.users == user].tolist())
        assert batch.hits[row].tolist() == [int(item) in positives for item in batch.items]
        real = batch.weights[row] > 0
        assert batch.items[batch.positives[row][real]].tolist() == targets
    assert batch.counts.sum() == batch.weights.sum()


def test_an_epoch_has_every_group_once_and_about_batch_size_interactions():
    pairs = random_pairs(4, share=0.9)
    batches = list(
        SampledSoftmax(batch_size=16, positives=4).start(pairs, ITEMS).epoch(np.random.default_rng(0))
    )
    assert sum(batch.weights.sum() for batch in batches) == len(pairs)
    assert len(batches) == pytest.approx(len(pairs) / 16, abs=1.5)


def test_subsampling_leaves_the_size_of_batches_alone():
    pairs = random_pairs(4, share=0.9)
    task = SampledSoftmax(batch_size=4, positives=2, debiasing=Debiasing(subsampling=0.01))
    batches = list(task.start(pairs, ITEMS).epoch(np.random.default_rng(0)))
    taken = sum(batch.interactions for batch in batches)
    assert taken < len(pairs) / 2
    assert len(batches) == pytest.approx(taken / 4, abs=2)


def test_history_dropout_leaves_some_out_and_keeps_the_order():
    pairs = random_pairs(2, share=1.0)
    views = TrainingViews(pairs, packed(pairs, 12), SIDE, history_dropout=0.5, id_dropout=0.0)
    groups = draw_groups(pairs, 1, 0.0, np.random.default_rng(0))
    batch = SampledSoftmax().start(pairs, ITEMS).batch(groups, np.arange(USERS))
    shown = views.users(batch, np.random.default_rng(0))
    lengths = shown["history_length"][:, 0]
    assert len(set(lengths.tolist())) > 1
    place = {(user, item): at for at, (user, item) in enumerate(zip(pairs.users, pairs.items, strict=True))}
    for row, user in enumerate(groups.users[:USERS]):
        items = shown["history_cat"][row, : lengths[row], 0] - 3
        positions = [place[user, item] for item in items]
        assert positions == sorted(positions)
    history = np.tile(np.arange(12), (50, 1))
    assert drop_history(history, 0.0, ITEMS, np.random.default_rng(0)) is history
    fewer = drop_history(history, 0.5, ITEMS, np.random.default_rng(0))
    for row in fewer:
        kept = row[row != ITEMS]
        assert kept.tolist() == sorted(kept.tolist()) == row[: len(kept)].tolist()
    assert 0.4 < (fewer != ITEMS).mean() < 0.6


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


class Table:
    """A model that stores the queries of all users and the vectors of all items."""

    def __init__(self, queries, vectors):
        self.queries, self.vectors = queries, vectors

    def query(self, users):
        return self.queries[users["user_cat"][:, 0] - 3]

    def form(self, items):
        return {"vectors": self.vectors}


@examples(14)
@given(
    st.integers(0, 10_000),
    st.integers(1, 15),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_candidates_equal_the_plain_reference(seed, candidates, quota, second, popular_first, allow_seen):
    rng = np.random.default_rng(seed)
    pairs = random_pairs(seed, share=0.6)
    models = {
        name: Table(
            rng.normal(size=(USERS, 3)).astype(np.float32),
            rng.integers(-1, 2, size=(ITEMS, 3)).astype(np.float32),  # many ties
        )
        for name in ("one", "two")[: 1 + (second > 0)]
    }
    quota = min(quota, candidates)
    sources = [Index("one"), Popular(quota=quota)]
    if second and quota + second <= candidates:
        sources.append(Index("two", quota=second))
    else:
        models.pop("two", None)
    config = ServingSettings(
        candidates=candidates,
        sources=tuple(sources[::-1] if popular_first else sources),
        history_length=5,
        allow_seen=allow_seen,
    )
    retrieval = OfflineRetrieval(config, models, packed(pairs), pairs)
    _, (scores, rows, codes) = retrieval.candidates(np.arange(USERS))
    assert rows.shape == (USERS, candidates)
    forms = [models[source.name].form({}) if source.form else {} for source in config.sources]
    made = [
        source.make(Material(ITEMS, pairs.users, pairs.items, form=form)).arrays
        for source, form in zip(config.sources, forms, strict=True)
    ]
    for user in range(USERS):
        allowed = np.ones(ITEMS, np.bool_)
        allowed[pairs.items[pairs.users == user]] = allow_seen
        queries = {f"query_{name}": model.queries[user] for name, model in models.items()}
        expected = retrieve(config, made, queries, allowed).candidates
        real = rows[user] < ITEMS
        assert rows[user][real].tolist() == [candidate.row for candidate in expected]
        assert codes[user][real].tolist() == [candidate.source for candidate in expected]
        assert scores[user][real] == pytest.approx([candidate.score for candidate in expected])
        assert not scores[user][~real].any()
        assert not codes[user][~real].any()


class Backwards:
    """A ranker with two tasks: one reverses the order of retrieval, the other does nothing."""

    inputs = ("item_cat", "kept_score")

    def scores(self, arrays):
        assert arrays["item_cat"].shape[:2] == arrays["kept_score"].shape
        return np.stack([-arrays["kept_score"], np.zeros_like(arrays["kept_score"])], axis=-1)


def test_a_source_in_memory_leaves_the_number_of_threads_alone():
    """A judge opens a source after each epoch; changing the number of threads would change the training."""
    pairs, before = random_pairs(1), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = Table(np.eye(USERS, 4, dtype=np.float32), np.ones((ITEMS, 4), np.float32))
            open_source(Index("index", factory="Flat"), model, packed(pairs), pairs, 3)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_rules_the_cut_to_k_the_ranker_and_the_steps():
    pairs = random_pairs(0)
    year = np.array([1990.0, np.nan, 2000, 2010, *[1980.0] * 8])
    table = replace(packed(pairs), raw={"year": Column(year)})
    config = ServingSettings(
        candidates=4,
        kept=3,
        sources=(Popular(),),
        rules=(Compare("new", "year", ">=", 1985), Compare("known", "year", "<", 2005)),
    )
    candidates = (
        np.array([[4, 3, 2, 0]], np.float32),
        np.array([[0, 1, 2, ITEMS]]),
        np.array([[1, 1, 2, 0]], np.int32),
    )
    ordering = OfflineOrdering(config, None, table)
    kept = ordering.keep(candidates)
    assert kept["kept_row"].tolist() == [[0, 2, ITEMS]]
    assert kept["kept_score"].tolist() == [[4, 2, 0]]
    assert kept["kept_source"].tolist() == [[1, 2, 0]]
    # Without a ranker the order is retrieval's; with one it is that of the first task, or of the steps.
    assert ordering.order({}, kept).tolist() == [[0, 2, ITEMS]]
    assert OfflineOrdering(config, Backwards(), table).order({}, kept).tolist() == [[2, 0, ITEMS]]
    fair = ServingSettings(candidates=4, kept=3, rules=config.rules, reorder=(WeightedSum((-1.0, 0.0)),))
    assert OfflineOrdering(fair, Backwards(), table).order({}, kept).tolist() == [[0, 2, ITEMS]]


def test_lists_know_nothing_of_what_was_held_out():
    pairs = random_pairs(5, share=0.7)
    folds = assign_folds(pairs, 3, np.random.default_rng(1))
    rest, held_out = pairs.select(folds != 1), pairs.select(folds == 1)
    model = Table(np.ones((USERS, 2), np.float32), np.ones((ITEMS, 2), np.float32))
    config = ServingSettings(candidates=ITEMS, sources=(Index("one"), Popular(quota=0)))
    retrieval = OfflineRetrieval(config, {"one": model}, packed(pairs, 20), rest)
    users = np.arange(USERS)
    _, (_, rows, _) = retrieval.candidates(users)
    weights, histories = positive_weights(held_out, users, rows, ITEMS), retrieval.users.history(users)
    for user in range(USERS):
        positives = set(held_out.items[held_out.users == user].tolist())
        known = rest.items[rest.users == user].tolist()
        assert histories[user].tolist() == known + [ITEMS] * (20 - len(known))
        assert not set(known) & set(rows[user].tolist())
        assert positives == set(rows[user][weights[user] > 0].tolist())


def test_a_list_has_the_context_of_one_of_its_positives_or_none():
    pairs = random_pairs(6, share=0.4, contexts=True)
    contexts = draw_contexts(pairs, 0.3, np.random.default_rng(0))
    assert (draw_contexts(pairs, 1.0, np.random.default_rng(0)) == np.arange(USERS)).all()
    for user, context in enumerate(contexts):
        assert context == user or context in pairs.contexts[pairs.users == user]


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
