"""Neighbourhoods of users and of ratings, compared with their formulas in dense NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from retrieval_contract import INPUTS, packed_items

from tiercel_pipelines.arrays.packed import Packed
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.families.table import Plan, RetrievalData
from tiercel_pipelines.recipe import (
    Index,
    Item2Vec,
    ItemKNN,
    KMeans,
    Lists,
    Popular,
    SoftmaxDNN,
    Synthetic,
    UserKNN,
    load_recipe,
    replace,
)
from tiercel_pipelines.training import train_recipe
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.sources.table import Material
from tiercel_serving.sources.user_neighbours import UserNeighbours

USERS, ITEMS = 40, 32


@pytest.fixture(scope="module")
def world() -> tuple[RetrievalData, np.ndarray, np.ndarray]:
    """Return data, histories and ratings ``[U, I]``; user 3 has no items, user 4 has one, item 5 no user."""
    rng = np.random.default_rng(0)
    had = rng.random((USERS, ITEMS)) < 0.3
    had[3], had[4], had[:, 5] = False, np.arange(ITEMS) == 7, False
    ratings = rng.integers(1, 6, had.shape) * had.astype(float)
    users, items = np.nonzero(had)
    numbers = {"rating": ratings[users, items]}
    pairs = Pairs.build(users, items, users, np.ones(len(users)), USERS, None, numbers)
    cats = np.append(packed_items(np.arange(ITEMS)), [[0, 0]], 0)
    packed = Packed({"user_cat": np.arange(USERS)[:, None] + 3}, {"item_cat": cats}, (1,), ITEMS, USERS)
    return RetrievalData(packed, pairs, INPUTS), had.astype(float), ratings


def above_mean(had: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    return (ratings - (ratings.sum(1) / np.maximum(had.sum(1), 1))[:, None]) * had


def served(data: RetrievalData, settings: Any, history: np.ndarray) -> np.ndarray:
    """Return the source's scores of all items for a history."""
    form = settings.fit(data, Plan(0, "m"))[0].form(data.packed.catalogue)
    kind = UserNeighbours("user_knn")
    made = kind.make(Material(ITEMS, data.pairs.users, data.pairs.items, form=form))
    source = kind.open(Artefact.in_memory("source", made.arrays, made.meta), ITEMS, 1)
    return source.score({"history_row": history[None]}, np.arange(ITEMS)[None])[0]


@pytest.mark.parametrize("weighting", ["none", "tf_idf", "bm25", "jaccard"])
def test_users_are_near_by_the_formula(world: Any, weighting: str) -> None:
    data, had, ratings = world
    jaccard = weighting == "jaccard"
    settings = UserKNN(
        neighbours=5,
        similarity="jaccard" if jaccard else "cosine",
        weighting="none" if jaccard else weighting,  # type: ignore[arg-type]
        shrinkage=2.0,
        rating="rating" if weighting == "tf_idf" else None,
    )
    people = had.sum(1) > 0
    known, history = had[people], np.array([2, 9, 11, 20])
    asked = np.isin(np.arange(ITEMS), history).astype(float)
    both, lengths = known @ asked, known.sum(1)
    idf = np.maximum(np.log(people.sum() / (1 + known.sum(0))), 0) if weighting in ("tf_idf", "bm25") else 1.0
    mine, theirs = asked * idf, known * idf
    normal = 0.25 + 0.75 * lengths / lengths.mean()
    norms = (1.2 * normal + 1) / 2.2 if weighting == "bm25" else np.linalg.norm(theirs, axis=1)
    like = theirs @ mine / np.linalg.norm(mine) / norms * both / (both + 2)
    if jaccard:
        like = both / (len(history) + lengths - both + 2)
    near = np.argsort(-like)[:5]
    votes = above_mean(had, ratings)[people] if settings.rating else known
    np.testing.assert_allclose(
        served(data, settings, history), like[near] @ votes[near], rtol=1e-5, atol=1e-6
    )


def test_of_an_item_with_many_users_some_are_looked_at(world: Any) -> None:
    data, had, _ = world
    form = UserKNN(users_per_item=3).fit(data, Plan(0, "m"))[0].form(data.packed.catalogue)
    np.testing.assert_array_equal(np.diff(form["offsets"]), np.minimum(had.sum(0), 3))
    assert len(form["votes"]) == had.sum()
    again = UserKNN(users_per_item=3).fit(data, Plan(0, "m"))[0].form(data.packed.catalogue)
    np.testing.assert_array_equal(form["users"], again["users"])


def test_another_catalogue_keeps_what_users_had_of_it(world: Any) -> None:
    data = world[0]
    fitted = UserKNN(users_per_item=None).fit(data, Plan(0, "m"))[0]
    before = fitted.form(data.packed.catalogue)
    ids = np.array([9, -1, 2, 30, -1])
    after = fitted.form({"item_cat": packed_items(ids)})
    for row, item in enumerate(ids):
        part, old = (form["offsets"][at : at + 2] for form, at in ((after, row), (before, item)))
        expected = before["users"][slice(*old)] if item >= 0 else []
        assert after["users"][slice(*part)].tolist() == list(expected)
    assert after["weights"][[1, 4]].tolist() == [0, 0]
    assert sorted(set(after["voted"].tolist())) == [0, 2, 3]
    assert len(after["vote_offsets"]) == len(before["vote_offsets"])


def test_ratings_make_the_adjusted_cosine(world: Any) -> None:
    data, had, ratings = world
    values, together = above_mean(had, ratings), had.T @ had
    norms = np.maximum(np.linalg.norm(values, axis=0), 1e-12)
    expected = values.T @ values / np.outer(norms, norms) * together / np.maximum(together + 3, 1e-12)
    np.fill_diagonal(expected, 0)
    settings = ItemKNN(rating="rating", shrinkage=3.0, weights=None)
    form = settings.fit(data, Plan(0, "m"))[0].form(data.packed.catalogue)
    found = np.zeros((ITEMS, ITEMS))
    found[np.repeat(np.arange(ITEMS), np.diff(form["offsets"])), form["columns"]] = form["weights"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_what_no_ratings_can_be_learned_from_is_told(world: Any) -> None:
    data = world[0]
    with pytest.raises(TrainingError, match=r"m: expected interactions with 'stars', got 'rating'"):
        UserKNN(rating="stars").fit(data, Plan(0, "m"))
    flat = Pairs.build(
        data.pairs.users,
        data.pairs.items,
        data.pairs.contexts,
        data.pairs.weights,
        USERS,
        None,
        {"rating": np.full(len(data.pairs), 4.0)},
    )
    with pytest.raises(TrainingError, match="m: every 'rating' is 4, so there is nothing to learn from it"):
        ItemKNN(rating="rating").fit(RetrievalData(data.packed, flat, INPUTS), Plan(0, "m"))


@pytest.mark.slow
def test_the_new_forms_are_trained_exported_and_verified(tmp_path: Path) -> None:
    """Several models in one recipe, each with its quota, and also for a catalogue with other items."""
    base = load_recipe("synthetic")
    dataset = load_dataset(Synthetic(users=120, items=80, interactions=2_500))
    recipe = replace(
        base,
        retrieval=(
            UserKNN(),
            KMeans(clusters=4, dimension=8),
            SoftmaxDNN(embedding_dimension=8, layers=(8,), max_epochs=1),
            Item2Vec(dimension=8, max_epochs=1),
        ),
        ranking=None,
        serving=replace(
            base.serving,
            candidates=30,
            kept=20,
            k_max=20,
            sources=(
                UserNeighbours("user_knn"),
                Lists("kmeans", quota=5),
                Index("softmax_dnn", quota=5),
                Index("item2vec", quota=5),
                Popular("late", quota=3, half_life_days=30),
                Popular(quota=0),
            ),
        ),
    )
    run = train_recipe(recipe, dataset, tmp_path / "run")
    release = export_run(run, tmp_path / "release")
    assert set(release.manifest.queries) == {"kmeans", "softmax_dnn", "item2vec"}
    items = run.items.sample(frac=0.8, random_state=0).reset_index(drop=True)
    other = export_run(run, tmp_path / "other", items=items)
    assert other.manifest.sources["user_knn"]["votes"] < release.manifest.sources["user_knn"]["votes"]
    assert other.manifest.sources["kmeans"]["listed"] < release.manifest.sources["kmeans"]["listed"]
