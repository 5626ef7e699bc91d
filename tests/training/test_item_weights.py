"""Families that give item weights: against their formulas, over other catalogues, and as served."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from tiercel_pipelines.arrays.inputs import CategoryColumn, ModelInputs, Side
from tiercel_pipelines.arrays.packed import Packed
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.families.table import Plan, RetrievalData
from tiercel_pipelines.offline.in_memory import OfflineRetrieval
from tiercel_pipelines.recipe import (
    EASE,
    SLIM,
    DCNv2,
    ItemKNN,
    ItemWeights,
    ListwiseSoftmax,
    Popular,
    ServingSettings,
    Synthetic,
    load_recipe,
    replace,
)
from tiercel_pipelines.training import train_recipe
from tiercel_serving.mistyped import mistyped

USERS, ITEMS, GROUPS = 120, 32, 4
ITEM = Side("item", (CategoryColumn("maker", 8), CategoryColumn("item_id", ITEMS + 3)))
INPUTS = ModelInputs(Side("user", (CategoryColumn("user_id", USERS + 3),)), ITEM, ("item_id",), sources=2)
EACH: list[Any] = [
    ItemKNN(),
    ItemKNN(weighting="tf_idf", weights=8),
    ItemKNN(weighting="bm25", shrinkage=0.0),
    ItemKNN(similarity="jaccard"),
    EASE(l2=5.0),
    EASE(l2=5.0, weights=None),
    SLIM(l2=2.0, l1=0.1),
]


def packed_items(ids: np.ndarray) -> dict[str, np.ndarray]:
    return {"item_cat": np.stack([ids % GROUPS + 3, ids + 3], 1)}


@pytest.fixture(scope="module")
def world() -> tuple[Packed, Pairs, np.ndarray]:
    """Return users who mostly have items of their own group."""
    rng = np.random.default_rng(0)
    chance = np.where(np.arange(USERS)[:, None] % GROUPS == np.arange(ITEMS) % GROUPS, 0.5, 0.02)
    had = rng.random((USERS, ITEMS)) < chance
    users, items = np.nonzero(had)
    pairs = Pairs.build(users, items, users, np.ones(len(users)), USERS)
    cats = packed_items(np.arange(ITEMS))["item_cat"]
    packed = Packed(
        {"user_cat": np.arange(USERS)[:, None] + 3},
        {"item_cat": np.append(cats, [[0, 0]], 0)},
        (1,),
        ITEMS,
        USERS,
    )
    return packed, pairs, had.astype(float)


def fit(world: Any, settings: Any) -> Any:
    return settings.fit(RetrievalData(world[0], world[1], INPUTS), Plan(0, settings.name))[0]


def dense(form: Any) -> np.ndarray:
    rows = np.repeat(np.arange(len(form["offsets"]) - 1), np.diff(form["offsets"]))
    found = np.zeros((len(form["offsets"]) - 1,) * 2)
    found[rows, form["columns"]] = form["weights"]
    return found


def weights_of(world: Any, settings: Any) -> np.ndarray:
    return dense(fit(world, settings).form(world[0].catalogue))


def test_mistakes_are_told() -> None:
    wrong = [
        (EASE(l2=0.0), "l2: expected a number above 0"),
        (EASE(weights=0), "weights: expected a whole number of at least 1, or None for all, got 0"),
        (ItemKNN(similarity="dice"), "similarity: expected one of 'cosine', 'jaccard', got 'dice'"),
        (ItemKNN(similarity="jaccard", weighting="bm25"), "Jaccard counts and weighs none"),
        (SLIM(neighbours=0), "neighbours: expected a whole number"),
    ]
    for settings, words in wrong:
        assert any(words in str(problem) for problem in [*mistyped(settings), *settings.problems()]), words
    assert "history_length" in EASE().needs()


@pytest.mark.parametrize("settings", EACH)
def test_it_finds_what_others_of_the_taste_had_and_is_read_back(
    world: Any, settings: Any, tmp_path: Path
) -> None:
    packed, pairs, had = world
    fitted = fit(world, settings)
    serving = ServingSettings(
        candidates=ITEMS, kept=1, sources=(ItemWeights(settings.name), Popular(quota=0)), history_length=ITEMS
    )
    retrieval = OfflineRetrieval(serving, {settings.name: fitted}, packed, pairs)
    (scores, rows, sources), everybody = retrieval.candidates(np.arange(USERS))[1], np.arange(USERS)
    liked = (rows[:, 0] % GROUPS == everybody % GROUPS).mean()
    assert liked > 0.9
    assert (sources[:, 0] == 1).all()
    expected = (had @ dense(fitted.form(packed.catalogue)))[everybody, rows[:, 0]]
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5)
    fitted.save(tmp_path)
    again = settings.load(tmp_path, INPUTS)
    for name, array in fitted.form(packed.catalogue).items():
        np.testing.assert_array_equal(again.form(packed.catalogue)[name], array)
    (tmp_path / "item_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"no item weights.*train again"):
        settings.load(tmp_path, INPUTS)


def test_ease_is_its_formula(world: Any) -> None:
    had = world[2]
    inverse = np.linalg.inv(had.T @ had + 5 * np.eye(ITEMS))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights_of(world, EASE(l2=5.0, weights=None)), expected, rtol=1e-5, atol=1e-7)
    few = weights_of(world, EASE(l2=5.0, weights=4))
    for row in range(ITEMS):
        kept = np.argsort(-abs(expected[row]))[:4]
        np.testing.assert_allclose(few[row, kept], expected[row, kept], rtol=1e-5)
        assert np.count_nonzero(few[row]) == 4


def test_ease_with_dropout_is_the_mean_over_all_ways_to_drop(world: Any) -> None:
    """Compare with least squares over all ways to drop a user's items, weighted by probability."""
    had, share, l2 = np.array([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]]), 0.25, 2.0
    gram, target = np.zeros((3, 3)), np.zeros((3, 3))
    for kept in product((0, 1), repeat=3):
        chance = np.prod(np.where(kept, 1 - share, share))
        seen = had * kept / (1 - share)
        gram, target = gram + chance * seen.T @ seen, target + chance * seen.T @ had
    expected = np.zeros((3, 3))
    for item in range(3):  # each column by itself, without its own item
        rest = [other for other in range(3) if other != item]
        expected[rest, item] = np.linalg.solve(
            (gram + l2 * np.eye(3))[np.ix_(rest, rest)], target[rest, item]
        )
    found = EASE(l2=l2, dropout=share, weights=None).solve(sp.csr_matrix(had), Plan(0, "ease"))
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-9)


def test_slim_is_at_its_minimum(world: Any) -> None:
    """Check the Karush-Kuhn-Tucker conditions."""
    had, l1, l2 = world[2], 0.5, 2.0
    found = weights_of(world, SLIM(l1=l1, l2=l2, sweeps=200, weights=None))
    gradient = had.T @ (had @ found - had) + l2 * found + l1
    free = ~np.eye(ITEMS, dtype=bool)
    assert (found >= 0).all()
    assert not found[~free].any()
    assert abs(gradient[free & (found > 0)]).max() < 1e-4
    assert gradient[free & (found == 0)].min() > -1e-4


def test_neighbourhoods_are_their_formulas(world: Any) -> None:
    had = world[2]
    counts, together = had.sum(0), had.T @ had
    weights = np.log(ITEMS / (1 + had.sum(1)))[:, None] * had
    norms = np.linalg.norm(weights, axis=0)
    cosine = weights.T @ weights / np.outer(norms, norms) * together / (together + 10)
    normal = 0.25 + 0.75 * counts / counts.mean()
    bm25 = 2.2 / (1.2 * normal + 1) * weights
    bm25 = bm25.T @ bm25 * together / (together + 10)
    jaccard = together / (counts[:, None] + counts - together + 10)
    for settings, expected in (
        (ItemKNN(weighting="tf_idf", weights=None), cosine),
        (ItemKNN(weighting="bm25", weights=None), bm25),
        (ItemKNN(similarity="jaccard", weights=None), jaccard),
    ):
        np.fill_diagonal(expected, 0)
        np.testing.assert_allclose(weights_of(world, settings), expected, rtol=1e-5)


def test_another_catalogue_keeps_the_weights_of_the_items_it_knows(world: Any) -> None:
    fitted = fit(world, EASE(l2=5.0))
    before = dense(fitted.form(world[0].catalogue))
    ids = np.random.default_rng(1).permutation(ITEMS)[:12]
    # Two new items, unknown to the vocabulary, are among them.
    items = packed_items(np.insert(ids, 5, [-1, -1]))
    after = dense(fitted.form(items))
    assert not after[5:7].any()
    assert not after[:, 5:7].any()
    known = np.delete(np.arange(14), [5, 6])
    np.testing.assert_array_equal(after[np.ix_(known, known)], before[np.ix_(ids, ids)])


def test_what_cannot_be_fitted_is_told(world: Any) -> None:
    packed, pairs, _ = world
    with pytest.raises(
        TrainingError, match=r"ease: most_items: EASE takes a dense matrix of 32 × 32.*ItemKNN"
    ):
        fit(world, EASE(most_items=10))
    nothing = (packed, pairs.select(np.zeros(len(pairs), bool)))
    with pytest.raises(TrainingError, match="slim: there are no interactions"):
        fit(nothing, SLIM())


@pytest.mark.slow
def test_trained_exported_and_verified(tmp_path: Path) -> None:
    """With a ranker, and also for a catalogue with other items than in training."""
    base = load_recipe("synthetic")
    dataset = load_dataset(Synthetic(users=120, items=80, interactions=2_500))
    recipe = replace(
        base,
        retrieval=EASE(l2=20.0),
        ranking=DCNv2(max_epochs=1, task=ListwiseSoftmax(folds=2)),
        serving=replace(base.serving, candidates=30, kept=20, k_max=20, sources=()),
    )
    run = train_recipe(recipe, dataset, tmp_path / "run")
    assert run.metrics["retrieval"]["ndcg"] > run.metrics["popularity"]["ndcg"]
    assert run.record.recipe.serving.sources == (ItemWeights("ease"), Popular(quota=0))
    release = export_run(run, tmp_path / "release")
    assert release.manifest.queries == {}
    items = run.items.sample(frac=0.8, random_state=0).reset_index(drop=True)
    other = export_run(run, tmp_path / "other", items=items)
    assert other.manifest.sources["ease"]["weights"] < release.manifest.sources["ease"]["weights"]
