"""Fitting: epochs, early stopping and seeds."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from tiercel_pipelines.arrays.inputs import CategoryColumn, ModelInputs, Side
from tiercel_pipelines.arrays.lists import RankingLists, positive_weights
from tiercel_pipelines.arrays.packed import Packed
from tiercel_pipelines.arrays.pairs import Pairs, assign_folds
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.families.table import Plan, RankingData, RetrievalData
from tiercel_pipelines.offline.in_memory import OfflineRetrieval, blocks
from tiercel_pipelines.recipe import (
    DLRM,
    Index,
    ListwiseSoftmax,
    Popular,
    SampledSoftmax,
    ServingSettings,
    TrainingSettings,
    TwoTower,
    replace,
)
from tiercel_pipelines.training.judges import RankingJudge, RetrievalJudge, ndcg, sampled_users

USERS, ITEMS, GROUPS = 60, 40, 4
USER = Side("user", (CategoryColumn("user_id", USERS + 3),))
ITEM = Side("item", (CategoryColumn("item_id", ITEMS + 3),))
INPUTS = ModelInputs(USER, ITEM, ("item_id",), sources=2)
RETRIEVAL = TwoTower(
    dimension=8,
    embedding_dimension=8,
    max_epochs=8,
    patience=2,
    task=SampledSoftmax(batch_size=64, positives=4),
)
RANKING = DLRM(
    embedding_dimension=4,
    top_layers=(8,),
    max_epochs=4,
    patience=2,
    task=ListwiseSoftmax(negatives=10, batch_size=32),
)
SERVING = ServingSettings(
    candidates=20, kept=15, k_max=15, sources=(Index("two_tower"), Popular(quota=0)), history_length=10
)


@pytest.fixture(scope="module")
def world():
    """Return users who prefer the items of their group: easy to learn, but unknown to popularity."""
    rng = np.random.default_rng(0)
    chance = np.where(np.arange(USERS)[:, None] % GROUPS == np.arange(ITEMS) % GROUPS, 0.7, 0.05)
    users, items = np.nonzero(rng.random((USERS, ITEMS)) < chance)
    pairs = Pairs.build(users, items, users, np.ones(len(users)), USERS)
    packed = Packed(
        {"user_cat": np.arange(USERS)[:, None] + 3},
        {"item_cat": np.append(np.arange(ITEMS) + 3, 0)[:, None]},
        (0,),
        10,
        USERS,
    )
    return packed, pairs, assign_folds(pairs, 3, rng)


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def fit(world, pairs, seed=0, judge=None, epochs=None, settings=RETRIEVAL, progress=None):
    plan = Plan(seed, "two_tower", judge, epochs, progress)
    return settings.fit(RetrievalData(world[0], pairs, INPUTS), plan)


def module_of(fitted):
    return torch.nn.ModuleList([fitted.user_tower, fitted.item_tower])


def judge_of(world, seen, valid):
    return RetrievalJudge(SERVING.sources[0], world[0], seen, valid, sampled_users(valid, 0, USERS))


def test_the_same_seed_gives_the_same_weights(world):
    pairs = world[1]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, _ = fit(world, pairs, seed=5, epochs=2)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second, _ = fit(world, pairs, seed=5, epochs=2)
    third, _ = fit(world, pairs, seed=6, epochs=2)
    assert equal(weights_of(module_of(first)), weights_of(module_of(second)))
    assert not equal(weights_of(module_of(first)), weights_of(module_of(third)))


def held_out(world):
    _, pairs, folds = world
    return pairs.select(folds != 0), pairs.select(folds == 0)


def test_training_beats_popularity(world):
    seen, valid = held_out(world)
    _, course = fit(world, seen, judge=judge_of(world, seen, valid))
    scores = np.tile(np.bincount(seen.items, minlength=ITEMS).astype(float), (USERS, 1))
    scores[seen.users, seen.items] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    users = sampled_users(valid, 0, USERS)
    assert course.validation[course.epochs] > ndcg(rows[users], users, valid, ITEMS) + 0.2


def test_early_stopping_returns_the_best_epoch(world):
    seen, _ = held_out(world)
    judged = iter([0.1, 0.3, 0.5, 0.4, 0.4, 0.9])
    kept = []

    def judge(fitted):
        kept.append(weights_of(module_of(fitted)))
        return next(judged)

    told = []
    fitted, course = fit(world, seen, judge=judge, progress=lambda *step: told.append(step))
    assert course.validation == (0.1, 0.3, 0.5, 0.4, 0.4)
    assert course.epochs == 2
    assert equal(weights_of(module_of(fitted)), kept[2])
    assert told[-1] == ("two_tower", 8, 8)


def test_a_long_epoch_says_how_far_it_is(world, monkeypatch):
    seen, _ = held_out(world)
    told = []
    monkeypatch.setattr("tiercel_pipelines.families.descent._LONG_S", 0.0)
    monkeypatch.setattr("tiercel_pipelines.families.descent._EVERY_S", 0.0)
    _, course = fit(world, seen, epochs=2, progress=lambda *step: told.append(step))
    within = [step for step in told if step[0].startswith("two_tower, within an epoch")]
    steps = within[0][2]
    assert [done for _, done, _ in within] == [*range(1, steps + 1), steps] * 2
    assert {total for *_, total in within} == {steps}
    losses = [re.search(r"; epoch (\d), loss ([\d.]+), [\d,.]+ steps/s$", what) for what, *_ in within]
    ends = [found.groups() for found in (losses[steps - 1], losses[2 * steps])]
    assert ends == [(str(epoch + 1), f"{loss:.4f}") for epoch, loss in enumerate(course.losses)]


def test_a_fixed_number_of_epochs_repeats_what_early_stopping_found(world):
    seen, valid = held_out(world)
    judge = judge_of(world, seen, valid)
    stopped, course = fit(world, seen, judge=judge)
    repeated, _ = fit(world, seen, epochs=course.epochs)
    assert equal(weights_of(module_of(stopped)), weights_of(module_of(repeated)))
    assert judge(repeated) == course.validation[course.epochs]


def test_the_judge_finds_what_a_plain_search_of_all_unseen_items_finds(world, monkeypatch):
    seen, valid = held_out(world)
    packed = world[0]
    fitted, _ = fit(world, seen, epochs=3)
    monkeypatch.setattr("tiercel_pipelines.offline.in_memory.BLOCK", 7)
    scores = np.empty((USERS, ITEMS))
    for user in range(USERS):
        mine = seen.items[seen.users == user][-packed.history_length :]
        history = np.append(mine, np.full(packed.history_length - len(mine), ITEMS))[None]
        query = fitted.query(packed.user_tensors(np.array([user]), history))
        scores[user] = fitted.form(packed.catalogue)["vectors"] @ query[0]
    scores[seen.users, seen.items] = -np.inf
    users = sampled_users(valid, 0, USERS)
    expected = ndcg(np.argsort(-scores, axis=1)[users, :10], users, valid, ITEMS)
    assert judge_of(world, seen, valid)(fitted) == pytest.approx(expected)


def test_the_judge_looks_at_a_fixed_sample_of_users(world):
    _, valid = held_out(world)
    everybody = sampled_users(valid, 0, USERS)
    assert everybody.tolist() == sorted(set(valid.users.tolist()))
    some = sampled_users(valid, 0, 10)
    assert len(some) == 10
    assert set(some.tolist()) < set(everybody.tolist())
    assert some.tolist() == sampled_users(valid, 0, 10).tolist() == sorted(some.tolist())
    assert some.tolist() != sampled_users(valid, 1, 10).tolist()
    assert TrainingSettings().judged_users >= 943


def ranking_lists(world, fold):
    packed, pairs, folds = world
    rest, positives = pairs.select((folds != 0) & (folds != fold)), pairs.select(folds == fold)
    model, _ = fit(world, rest, epochs=3)
    retrieval = OfflineRetrieval(SERVING, {"two_tower": model}, packed, rest)
    parts = []
    for users in blocks(np.arange(USERS)):
        scores, rows, sources = retrieval.candidates(users)[1]
        weights = positive_weights(positives, users, rows, ITEMS)
        history = retrieval.users.history(users)
        parts.append(RankingLists(users, users, history, rows, scores, sources, weights))
    return RankingLists.concatenate(parts), positives


def test_the_ranker_is_never_worse_than_retrieval_on_what_it_is_judged_by(world):
    valid, lists = ranking_lists(world, 0), ranking_lists(world, 1)[0]
    judge = RankingJudge(SERVING, world[0], *valid)
    data = RankingData(world[0], INPUTS, lists, SERVING.kept, RETRIEVAL.scale)
    fitted, course = RANKING.fit(data, Plan(0, "ranking", judge))
    again, _ = RANKING.fit(data, Plan(0, "ranking", judge))
    assert course.validation[course.epochs] == max(course.validation) >= course.validation[0]
    assert equal(weights_of(fitted.module), weights_of(again.module))
    nothing = lists.take(np.array([], dtype=int))
    start, none = RANKING.fit(RankingData(world[0], INPUTS, nothing, 15, 5.0), Plan(0, "ranking"))
    assert none.epochs == 0
    assert judge(start) == pytest.approx(course.validation[0])


def test_a_loss_that_is_no_number_is_told(world):
    wild = replace(RETRIEVAL, task=SampledSoftmax(temperature=1e-42))
    with pytest.raises(TrainingError, match="raise the temperature"):
        fit(world, world[1], settings=wild)


def test_numbers_that_the_very_last_step_lost_are_told(world):
    """No later loss shows them; the judge reports them or, without one, the code that makes the lists."""
    packed, pairs, folds = world
    rest, valid = pairs.select(folds != 0), pairs.select(folds == 0)
    one_step = replace(RETRIEVAL, learning_rate=1e30, task=SampledSoftmax(batch_size=10**6))
    told = r"two_tower, its queries of users: 480 of 480 numbers are NaN or infinite; lower the learning rate"
    with pytest.raises(TrainingError, match=told):
        fit(world, rest, judge=judge_of(world, rest, valid), settings=replace(one_step, max_epochs=1))
    fitted, _ = fit(world, rest, epochs=1, settings=one_step)
    retrieval = OfflineRetrieval(SERVING, {"two_tower": fitted}, packed, rest)
    with pytest.raises(TrainingError, match=told):
        retrieval.candidates(np.arange(USERS))
    with torch.no_grad():
        fitted.item_tower.bias[0] = torch.nan
    with pytest.raises(TrainingError, match=r"two_tower, its vectors of items: 320 of 320 numbers"):
        OfflineRetrieval(SERVING, {"two_tower": fitted}, packed, rest)
    valid_lists, lists = ranking_lists(world, 0), ranking_lists(world, 1)[0]
    wild = replace(RANKING, learning_rate=1e30, max_epochs=1, task=ListwiseSoftmax(batch_size=10**6))
    data = RankingData(packed, INPUTS, lists, SERVING.kept, RETRIEVAL.scale)
    with pytest.raises(TrainingError, match=r"ranking, its scores: \d+ of \d+ numbers"):
        wild.fit(data, Plan(0, "ranking", RankingJudge(SERVING, packed, *valid_lists)))


def test_nothing_to_learn_is_told(world):
    pairs = world[1]
    with pytest.raises(TrainingError, match="no interactions"):
        fit(world, pairs.select(np.zeros(len(pairs), bool)))


def test_large_tables_that_learn_row_by_row_learn_as_well(world, monkeypatch):
    """All tables of the model count as large, even the one shared by the item tower and the histories."""
    from tiercel_pipelines.families import learner

    packed, pairs, folds = world
    rest, valid = pairs.select(folds != 0), pairs.select(folds == 0)
    judge = RetrievalJudge(SERVING.sources[0], packed, rest, valid, sampled_users(valid, 0, USERS))
    best = []
    for large in (learner.LARGE_TABLE, 10):
        monkeypatch.setattr(learner, "LARGE_TABLE", large)
        fitted, course = RETRIEVAL.fit(RetrievalData(packed, rest, INPUTS), Plan(3, "x", judge))
        assert judge(fitted) == course.validation[course.epochs] == max(course.validation)
        best.append(max(course.validation))
        tables = [m for m in fitted.item_tower.modules() if isinstance(m, torch.nn.Embedding)]
        assert all(table.sparse == (large == 10) for table in tables)
    assert best[1] > best[0] - 0.05


def test_sums_without_padding_are_those_with_it():
    """For a history of two columns and for lists, some empty: values and gradients."""
    from tiercel_pipelines.families.layers import mean_of_list, pool_history

    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(1, 9, size=(5, 4, 2)))
    lengths = torch.tensor([[0], [4], [1], [3], [2]])
    lists = torch.from_numpy(rng.integers(0, 4, size=(3, 2, 5)))
    found = []
    for training in (True, False):
        torch.manual_seed(0)
        tables = torch.nn.ModuleList(torch.nn.Embedding(9, 3) for _ in range(2)).train(training)
        made = [pool_history(list(tables), ids, lengths), mean_of_list(tables[0], lists)]
        (made[0].square().sum() + made[1].exp().sum()).backward()
        found.append([*made, *(table.weight.grad for table in tables)])
    for mine, padded in zip(*found, strict=True):
        torch.testing.assert_close(mine, padded)
