"""Factorisations of users by items: against their formulas, over other catalogues, and for unknown users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiercel_pipelines.arrays.inputs import CategoryColumn, ModelInputs, Side
from tiercel_pipelines.arrays.packed import Packed
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.families.table import Plan, RetrievalData
from tiercel_pipelines.offline.in_memory import OfflineRetrieval
from tiercel_pipelines.recipe import (
    ALS,
    BPRMF,
    Index,
    Popular,
    ServingSettings,
    Synthetic,
    load_recipe,
    replace,
)
from tiercel_pipelines.training import train_recipe

USERS, ITEMS, GROUPS = 120, 32, 4
USER = Side("user", (CategoryColumn("taste", GROUPS + 3), CategoryColumn("user_id", USERS + 3)))
ITEM = Side("item", (CategoryColumn("item_id", ITEMS + 3),))
INPUTS = ModelInputs(USER, ITEM, ("item_id",), sources=2)
EACH: list[Any] = [
    ALS(dimension=8, max_epochs=5, regularisation=1.0),
    BPRMF(dimension=8, max_epochs=15, batch_size=64, learning_rate=0.05, weight_decay=0.01),
]


@pytest.fixture(scope="module")
def world() -> tuple[Packed, Pairs, np.ndarray]:
    """Return users who mostly have items of their own group, some items more often than others."""
    rng = np.random.default_rng(0)
    chance = np.where(np.arange(USERS)[:, None] % GROUPS == np.arange(ITEMS) % GROUPS, 0.7, 0.03)
    chance = chance * np.linspace(1, 0.4, ITEMS)
    users, items = np.nonzero(rng.random((USERS, ITEMS)) < chance)
    pairs = Pairs.build(users, items, users, np.ones(len(users)), USERS)
    everybody = np.arange(USERS)
    packed = Packed(
        {"user_cat": np.stack([everybody % GROUPS, everybody], 1) + 3},
        {"item_cat": np.append(np.arange(ITEMS) + 3, 0)[:, None]},
        (0,),
        5,
        USERS,
    )
    had = np.zeros((USERS, ITEMS))
    had[users, items] = 1
    return packed, pairs, had


def fit(world: Any, settings: Any, **plan: Any) -> Any:
    return settings.fit(RetrievalData(world[0], world[1], INPUTS), Plan(plan.pop("seed", 0), "mf", **plan))


@pytest.mark.parametrize("settings", EACH)
def test_mistakes_are_told(settings: Any) -> None:
    assert [problem.field for problem in replace(settings, dimension=0).problems()] == ["dimension"]
    [problem] = settings.misfits({"age": "number"}, {"item_id": "category"}, True)
    assert "keeps a vector for each user, but no category of the user" in str(problem)


@pytest.mark.parametrize("settings", EACH)
def test_it_finds_what_others_of_the_taste_had_and_is_read_back(
    world: Any, settings: Any, tmp_path: Path
) -> None:
    packed, pairs, _ = world
    fitted, course = fit(world, settings)
    assert len(course.losses) == settings.max_epochs
    assert course.losses[-1] < course.losses[0]
    serving = ServingSettings(
        candidates=ITEMS, kept=1, sources=(Index(settings.name), Popular(quota=0)), history_length=5
    )
    everybody = np.arange(USERS)
    retrieval = OfflineRetrieval(serving, {settings.name: fitted}, packed, pairs)
    rows = retrieval.candidates(everybody)[1][1]
    assert (rows[:, 0] % GROUPS == everybody % GROUPS).mean() > 0.85
    fitted.save(tmp_path)
    again = settings.load(tmp_path, INPUTS)
    np.testing.assert_array_equal(again.query(packed.user), fitted.query(packed.user))
    np.testing.assert_array_equal(
        again.form(packed.catalogue)["vectors"], fitted.form(packed.catalogue)["vectors"]
    )
    # Items of another catalogue keep their vectors, and an unknown user gets the popular taste.
    some = {"item_cat": packed.item["item_cat"][[7, 3]]}
    np.testing.assert_array_equal(
        fitted.form(some)["vectors"], fitted.form(packed.catalogue)["vectors"][[7, 3]]
    )
    stranger = fitted.query({"user_cat": np.array([[2, 2]])})
    scores = fitted.form(packed.catalogue)["vectors"] @ stranger[0]
    assert np.corrcoef(scores, np.bincount(pairs.items, minlength=ITEMS))[0, 1] > 0.4


@pytest.mark.parametrize("settings", EACH)
def test_the_judge_and_the_seed_decide(world: Any, settings: Any) -> None:
    def weights(**plan: Any) -> torch.Tensor:
        fitted = fit(world, settings, **plan)[0]
        return torch.cat([fitted.user_tower.table.weight.flatten(), fitted.item_tower.table.weight.flatten()])

    assert torch.equal(weights(epochs=2), weights(epochs=2))
    assert not torch.equal(weights(epochs=2), weights(epochs=2, seed=1))
    told = iter([0.0, 0.1, 0.5, *[0.2] * 100])
    if isinstance(settings, ALS):
        next(told)  # there is nothing to judge before the first epoch
    fitted, course = fit(world, replace(settings, patience=2), judge=lambda model: next(told))
    assert (course.epochs, len(course.losses)) == (2, 4)
    best = fit(world, settings, epochs=2)[0]
    assert torch.equal(fitted.item_tower.table.weight, best.item_tower.table.weight)


def test_als_solves_its_equation(world: Any) -> None:
    """Compare one side with the normal equations, solved user by user."""
    import scipy.sparse as sp

    had, rng, settings = world[2].copy(), np.random.default_rng(1), EACH[0]
    had[5] = 0
    others = rng.normal(size=(ITEMS, 8))
    found = settings.solve(sp.csr_matrix(had), others, 0.05)
    for user in range(USERS):
        mine, count = others[had[user] > 0], had[user].sum()
        penalty = 0.05 * (count + settings.unobserved_weight * ITEMS)
        left = mine.T @ mine + settings.unobserved_weight * others.T @ others + penalty * np.eye(8)
        expected = np.linalg.solve(left, mine.sum(0)) if count else np.zeros(8)
        np.testing.assert_allclose(found[user], expected, rtol=1e-8, atol=1e-12)


def test_als_is_held_back_alike_in_every_catalogue() -> None:
    """Tastes for few items are found in small and large catalogues, because λ scales with the catalogue."""
    import scipy.sparse as sp

    rng, scores = np.random.default_rng(3), []
    for items in (40, 4000):
        had = np.zeros((80, items))
        # Two halves of users prefer two halves of the first 40 items; one user had all other items.
        for user in range(80):
            had[user, 20 * (user % 2) + rng.permutation(20)[:15]] = 1
        had[0, 40:] = 1
        matrix, settings = sp.csr_matrix(had), ALS(dimension=4)
        strength, vectors = settings.strength(matrix), rng.normal(size=(items, 4))
        for _ in range(8):
            users = settings.solve(matrix, vectors, strength)
            vectors = settings.solve(matrix.T.tocsr(), users, strength)
        scores.append(float(np.mean(users[1::2] @ vectors[20:40].T)))
    assert min(scores) > 0.4


@pytest.mark.parametrize("settings", EACH)
def test_nothing_to_learn_is_told(world: Any, settings: Any) -> None:
    packed, pairs, had = world
    with pytest.raises(TrainingError, match="mf: there are no interactions"):
        fit((packed, pairs.select(np.zeros(len(pairs), bool)), had), settings)


@pytest.mark.slow
@pytest.mark.parametrize("settings", EACH)
def test_trained_exported_and_verified(settings: Any, tmp_path: Path) -> None:
    base = load_recipe("synthetic")
    recipe = replace(
        base,
        retrieval=settings,
        ranking=None,
        serving=replace(base.serving, candidates=30, kept=20, k_max=20, sources=()),
    )
    dataset = load_dataset(Synthetic(users=120, items=80, interactions=2_500))
    release = export_run(train_recipe(recipe, dataset, tmp_path / "run"), tmp_path / "release")
    assert release.manifest.queries[settings.name].dimension == 8
