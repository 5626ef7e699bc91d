"""Epochs, early stopping, seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiercel_pipelines.training.fitting import fit_dlrm, fit_two_tower, retrieval_ndcg
from tiercel_pipelines.training.pairs import Packed, Pairs, assign_folds
from tiercel_pipelines.training.retrieval import item_vectors, popular_items, queries, retrieve
from tiercel_pipelines.training.sampling import make_lists

from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.families import CategoryColumn, DLRMConfig, Side, TwoTowerConfig
from tiercel_pipelines.recipe.recipe import RankingSettings, RetrievalSettings
from tiercel_pipelines.training import fitting
from tiercel_serving.settings import ServingSettings

USERS, ITEMS, GROUPS = 60, 40, 4
USER = Side("user", (CategoryColumn("user_id", USERS + 3),))
ITEM = Side("item", (CategoryColumn("item_id", ITEMS + 3),))
TOWERS = TwoTowerConfig(USER, ITEM, ("item_id",), dimension=8, embedding_dimension=8)
RANKER = DLRMConfig(USER, ITEM, ("item_id",), embedding_dimension=4, top_layers=(8,))
RETRIEVAL = RetrievalSettings(batch_size=64, positives=4, max_epochs=8, patience=2)
RANKING = RankingSettings(negatives=10, batch_size=32, max_epochs=4, patience=2)
SERVING = ServingSettings(candidates=20, kept=15)


@pytest.fixture(scope="module")
def world():
    """Users of a group like the items of that group: easy to learn, and popularity knows nothing of it."""
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


def test_the_same_seed_gives_the_same_weights(world):
    packed, pairs, _ = world
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, _ = fit_two_tower(TOWERS, RETRIEVAL, packed, pairs, seed=5, epochs=2)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second, _ = fit_two_tower(TOWERS, RETRIEVAL, packed, pairs, seed=5, epochs=2)
    third, _ = fit_two_tower(TOWERS, RETRIEVAL, packed, pairs, seed=6, epochs=2)
    assert equal(weights_of(first), weights_of(second))
    assert not equal(weights_of(first), weights_of(third))


def test_training_beats_popularity(world):
    packed, pairs, folds = world
    seen, valid = pairs.select(folds != 0), pairs.select(folds == 0)
    _, course = fit_two_tower(TOWERS, RETRIEVAL, packed, seen, seed=0, valid=valid)
    place = np.argsort(popular_items(seen, ITEMS))
    scores = np.tile(-place.astype(float), (USERS, 1))
    scores[seen.users, seen.items] = -np.inf
    rows = np.argsort(-scores, axis=1)[:, :10]
    popular = fitting._ndcg(rows, np.full(USERS, 10), valid, ITEMS)
    assert course.validation[course.epochs] > popular + 0.2


def test_early_stopping_returns_the_best_epoch(world, monkeypatch):
    packed, pairs, folds = world
    seen, valid = pairs.select(folds != 0), pairs.select(folds == 0)
    judged = iter([0.1, 0.3, 0.5, 0.4, 0.4, 0.9])
    kept = []

    def judge(model, *_):
        kept.append(weights_of(model))
        return next(judged)

    monkeypatch.setattr(fitting, "retrieval_ndcg", judge)
    told = []
    model, course = fit_two_tower(
        TOWERS, RETRIEVAL, packed, seen, seed=0, valid=valid, progress=lambda *step: told.append(step)
    )
    assert course.validation == (0.1, 0.3, 0.5, 0.4, 0.4)
    assert course.epochs == 2
    assert equal(weights_of(model), kept[2])
    assert told[-1] == ("two-tower", 8, 8)


def test_a_fixed_number_of_epochs_repeats_what_early_stopping_found(world):
    packed, pairs, folds = world
    seen, valid = pairs.select(folds != 0), pairs.select(folds == 0)
    stopped, course = fit_two_tower(TOWERS, RETRIEVAL, packed, seen, seed=0, valid=valid)
    repeated, _ = fit_two_tower(TOWERS, RETRIEVAL, packed, seen, seed=0, epochs=course.epochs)
    assert equal(weights_of(stopped), weights_of(repeated))
    assert retrieval_ndcg(repeated, packed, seen, valid) == course.validation[course.epochs]


def ranking_lists(world, fold):
    packed, pairs, folds = world
    rest, held_out = pairs.select((folds != 0) & (folds != fold)), pairs.select(folds == fold)
    model, _ = fit_two_tower(TOWERS, RETRIEVAL, packed, rest, seed=0, epochs=3)
    query, vectors = queries(model.user_tower, packed, rest), item_vectors(model.item_tower, packed)
    found = retrieve(query, vectors, rest, popular_items(rest, ITEMS), SERVING)
    return make_lists(rest, held_out, packed, found, 0.3, np.random.default_rng(0)), held_out


def test_the_ranker_is_never_worse_than_retrieval_on_what_it_is_judged_by(world):
    valid, lists = ranking_lists(world, 0), ranking_lists(world, 1)[0]
    packed = world[0]
    model, course = fit_dlrm(RANKER, RANKING, packed, lists, SERVING.kept, seed=0, valid=valid)
    again, _ = fit_dlrm(RANKER, RANKING, packed, lists, SERVING.kept, seed=0, valid=valid)
    assert course.validation[course.epochs] == max(course.validation) >= course.validation[0]
    assert equal(weights_of(model), weights_of(again))
    start, none = fit_dlrm(RANKER, RANKING, packed, lists, SERVING.kept, seed=0, epochs=0)
    assert none.epochs == 0
    before = fitting.ranking_ndcg(start, packed, valid[0], valid[1], SERVING.kept)
    assert before == pytest.approx(course.validation[0])


def test_a_loss_that_is_no_number_is_told(world):
    packed, pairs, _ = world
    wild = replace(RETRIEVAL, temperature=1e-42)
    with pytest.raises(TrainingError, match="raise the temperature"):
        fit_two_tower(TOWERS, wild, packed, pairs, seed=0)


def test_nothing_to_learn_is_told(world):
    packed, pairs, _ = world
    with pytest.raises(TrainingError, match="no interactions"):
        fit_two_tower(TOWERS, RETRIEVAL, packed, pairs.select(np.zeros(len(pairs), bool)), seed=0)
