"""Variants of recipes, trained in a second or two: no ranker, several retrieval models, interruptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from cached_fit import cached_fit
from tiercel_pipelines.data import load_dataset, split_dataset
from tiercel_pipelines.errors import RecipeError
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.families.dlrm import DLRM
from tiercel_pipelines.families.table import Plan, RetrievalData
from tiercel_pipelines.families.two_tower import TwoTower
from tiercel_pipelines.offline.evaluate import evaluate_served
from tiercel_pipelines.offline.evaluation_data import EvaluationData
from tiercel_pipelines.offline.in_memory import OfflineRetrieval
from tiercel_pipelines.offline.served_ensemble import LocalEnsemble
from tiercel_pipelines.recipe import (
    ALS,
    EASE,
    Index,
    ItemWeights,
    ListwiseSoftmax,
    PerRequest,
    Popular,
    ServingSettings,
    SplitSettings,
    Synthetic,
    TrainingSettings,
    load_recipe,
    replace,
)
from tiercel_pipelines.recipe.check_fit import fit_checked
from tiercel_pipelines.training import train as train_module
from tiercel_pipelines.training import train_recipe
from tiercel_pipelines.training.blend import FACTORS, chosen_blend
from tiercel_pipelines.training.judges import ndcg
from tiercel_pipelines.training.trainer import Trainer

RECIPE = load_recipe("synthetic")
TWO_TOWER = TwoTower(dimension=8, embedding_dimension=8, max_epochs=1)
SERVING = replace(RECIPE.serving, candidates=30, kept=20, k_max=20, history_length=10)


def quick(**changes):
    settings = {
        "dataset": Synthetic(users=80, items=60, interactions=1500),
        "retrieval": TWO_TOWER,
        "ranking": DLRM(embedding_dimension=4, max_epochs=1, task=ListwiseSoftmax(folds=2)),
        "serving": SERVING,
    }
    return replace(RECIPE, **{**settings, **changes})


@pytest.fixture(scope="module", autouse=True)
def _cached_fit() -> Iterator[None]:
    """Most of these trainings differ only after the fit of the workflow."""
    with cached_fit():
        yield


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(quick().dataset)


def test_without_a_validation_part(dataset, tmp_path):
    plain = quick(split=SplitSettings(validation=0.0))
    trained = train_recipe(plain, dataset, tmp_path / "r", replace=True)
    assert not len(trained.valid)
    assert trained.users.equals(dataset.users)
    assert trained.items.equals(dataset.items)
    assert trained.metrics["epochs"]["ranking"]["best"] == 0
    assert trained.metrics["ranking"]["ndcg"] == pytest.approx(trained.metrics["retrieval"]["ndcg"])


def test_without_a_ranker_retrievals_order_is_the_order_and_no_fold_is_trained(dataset, tmp_path):
    told = []
    trained = train_recipe(
        quick(ranking=None), dataset, tmp_path / "r", progress=lambda what, *_: told.append(what)
    )
    done = [what for what in told if "workflow" not in what]
    assert dict.fromkeys(done) == dict.fromkeys(("packing", "two_tower, fold 1 of 1", "two_tower", "figures"))
    assert trained.load_ranking() is None
    assert trained.metrics["ranking"] == trained.metrics["retrieval"]
    assert list(trained.metrics["epochs"]) == ["two_tower"]
    assert not (trained.path / "ranking").exists()


def test_users_with_one_interaction_or_none_and_items_nobody_has_are_trained_around(dataset, tmp_path):
    """Item-item weights, a factorisation and towers, with blended scores; every item keeps its row."""
    frame = dataset.interactions
    lonely, nobody = dataset.users["user_id"].iloc[:2]
    unwanted = dataset.items["item_id"].iloc[:3]
    kept = frame[~frame["item_id"].isin(unwanted) & (frame["user_id"] != nobody)]
    first = kept[kept["user_id"] == lonely].index[:1]
    kept = kept[(kept["user_id"] != lonely) | kept.index.isin(first)].reset_index(drop=True)
    models = EASE(l2=5.0, dropout=0.3), ALS(dimension=4, max_epochs=2), TWO_TOWER
    sources = ItemWeights("ease"), Index("als", quota=8), Index("two_tower", quota=8), Popular(quota=0)
    serving = replace(SERVING, sources=sources, blend=(("ease", 1.0), ("als", 0.5), ("two_tower", 0.1)))
    plain = quick(retrieval=models, ranking=None, serving=serving)
    trained = train_recipe(plain, dataclasses.replace(dataset, interactions=kept), tmp_path / "r")
    assert trained.items.equals(dataset.items)
    assert not {lonely, nobody} & set(trained.test["user_id"])
    assert 0 < trained.metrics["ranking"]["ndcg"] < 1


def test_where_nobody_has_two_interactions_the_run_says_that_nothing_was_judged(dataset, tmp_path):
    kept = dataset.interactions.drop_duplicates("user_id").reset_index(drop=True)
    sources = ItemWeights("ease"), Popular(quota=0)
    recipe = quick(retrieval=EASE(l2=5.0), ranking=None, serving=replace(SERVING, sources=sources))
    trained = train_recipe(recipe, dataclasses.replace(dataset, interactions=kept), tmp_path / "r")
    validation, test = trained.record.notes
    assert validation.startswith("the validation part is empty: by this split nothing of any user's")
    assert test.startswith("the test part is empty")
    assert "ranking" not in trained.metrics


BLENDED = {
    "retrieval": (EASE(l2=5.0), ALS(dimension=4, max_epochs=1)),
    "ranking": None,
    "serving": replace(
        SERVING,
        sources=(ItemWeights("ease"), Index("als", quota=8), Popular(quota=0)),
        # After one epoch ALS knows little, and would outweigh the other.
        blend=(("ease", 1.0), ("als", 16.0)),
    ),
    "training": TrainingSettings(choose_blend=True),
}


class Contrary:
    """A model with all scores negated."""

    def __init__(self, fitted):
        self.fitted, self.form = fitted, fitted.form

    def query(self, users):
        return -self.fitted.query(users)


def test_the_weights_of_a_blend_are_those_that_find_most_of_the_validation_part(dataset, tmp_path):
    recipe = quick(**BLENDED)
    split = split_dataset(dataset)
    trainer = Trainer.prepare(recipe, dataset, split, fit_checked(recipe, dataset, split.fit, tmp_path / "w"))
    rest, held_out = (trainer.pairs.select(part) for part in (trainer.folds != 0, trainer.folds == 0))
    users = np.flatnonzero(held_out.lengths > 0)
    models = {
        family.name: family.fit(RetrievalData(trainer.packed, rest, trainer.inputs), Plan(0, "m"))[0]
        for family in recipe.models
    }

    def found(models, blend):
        served = OfflineRetrieval(replace(trainer.settings, blend=blend), models, trainer.packed, rest)
        return ndcg(served.candidates(users)[1][1][:, :10], users, held_out, trainer.packed.n_items)

    good, _ = ALS(dimension=8).fit(RetrievalData(trainer.packed, rest, trainer.inputs), Plan(0, "als"))
    for als, left_out in ((models["als"], False), (Contrary(good), True)):
        mine = {**models, "als": als}
        chosen = chosen_blend(trainer.settings, mine, trainer.packed, rest, held_out, users).blend
        tried = {factor: found(mine, (("ease", 1.0), ("als", 16.0 * factor))) for factor in FACTORS if factor}
        tried[0.0] = found(mine, (("ease", 1.0),))
        assert found(mine, chosen) == max(tried.values()) > tried[1.0]
        assert (chosen == (("ease", 1.0),)) is left_out


@pytest.mark.slow
def test_the_chosen_weights_are_served(dataset, tmp_path):
    run = train_recipe(quick(**BLENDED), dataset, tmp_path / "run")
    blend = run.record.recipe.serving.blend
    assert run.metrics["blend"] == dict(blend)
    assert blend[0] == ("ease", 1.0)
    assert dict(blend).get("als", 0.0) in [16.0 * factor for factor in FACTORS]
    release = export_run(run, tmp_path / "release")
    assert release.settings.blend == blend
    figures = evaluate_served(LocalEnsemble(release.path), EvaluationData.from_run(run)).figures
    assert figures["ranking"].to_json() == pytest.approx(run.metrics["ranking"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"serving": SERVING}, "serving.blend names no two sources, so there is nothing to choose"),
        ({"split": SplitSettings(validation=0.0)}, "there is no validation part to choose the weights by"),
    ],
)
def test_nothing_to_choose_or_to_choose_by_is_told_before_training(changes, words):
    told = [str(problem) for problem in quick(**{**BLENDED, **changes}).problems()]
    assert any(text.startswith(f"training.choose_blend: {words}") for text in told)


@pytest.mark.parametrize("allow_seen", [False, True])
def test_what_users_came_back_to_is_split_as_it_is_served(dataset, tmp_path, allow_seen):
    once = dataset.interactions
    later = once.iloc[::2].assign(timestamp=once["timestamp"].iloc[::2] + 10**6)
    twice = dataclasses.replace(dataset, interactions=pd.concat([once, later], ignore_index=True))
    recipe = quick(ranking=None, serving=replace(SERVING, allow_seen=allow_seen))
    run = train_recipe(recipe, twice, tmp_path / "r")
    assert run.record.data.repeats == len(later)
    assert run.record.recipe.serving.allow_seen == allow_seen
    known, test = (
        set(part[["user_id", "item_id"]].itertuples(index=False)) for part in (run.interactions, run.test)
    )
    assert bool(known & test) == allow_seen
    data = EvaluationData.from_run(run)
    assert (data.allow_seen, data.left_out) == (allow_seen, 0)
    assert data.relevance.counts.sum() == len(test)


def test_several_retrieval_families_are_each_trained_judged_and_kept(dataset, tmp_path):
    wide = replace(TWO_TOWER, name="wide", dimension=12)
    both = quick(
        retrieval=(TWO_TOWER, wide),
        serving=replace(
            SERVING, sources=(Index("two_tower"), Index("wide", quota=15), Popular(quota=0)), candidates=30
        ),
    )
    told = []
    trained = train_recipe(both, dataset, tmp_path / "r", progress=lambda what, *_: told.append(what))
    assert [what for what in dict.fromkeys(told) if "fold 1" in what] == [
        "two_tower, fold 1 of 3",
        "wide, fold 1 of 3",
        "lists, fold 1 of 3",
    ]
    assert trained.record.inputs.sources == 3
    models = trained.load_retrieval()
    assert {name: len(model.user_tower.bias) for name, model in models.items()} == {
        "two_tower": 8,
        "wide": 12,
    }
    epochs = trained.metrics["epochs"]
    assert set(epochs) == {"two_tower", "wide", "ranking"}
    assert epochs["two_tower"]["validation_ndcg"] > 0
    assert epochs["wide"]["validation_ndcg"] > 0


def test_a_training_checks_its_recipe_once(dataset, tmp_path, monkeypatch):
    built, checked = [], []

    def features():
        built.append(1)
        return RECIPE.features()

    def check(*arguments):
        checked.append(1)
        return real(*arguments)

    real = train_module.check_recipe
    monkeypatch.setattr(train_module, "check_recipe", check)
    counted = quick(features=features, ranking=None)
    train_recipe(counted, dataset, tmp_path / "r")
    assert (len(checked), len(built)) == (1, 2)  # the graph is built for the check and for the fit
    wrong = replace(counted, serving=ServingSettings(kept=300))
    with pytest.raises(RecipeError, match=r"serving\.kept"):
        train_recipe(wrong, dataset, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


STOPS = {
    "workflow": (train_module, "fit_checked"),
    "retrieval": (TwoTower, "fit"),
    "ranking": (DLRM, "fit"),
    "writing": (train_module, "write_run"),
}


@pytest.mark.parametrize("stop_at", STOPS)
def test_an_interrupt_leaves_nothing(dataset, tmp_path, monkeypatch, stop_at):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(*STOPS[stop_at], interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(quick(), dataset, tmp_path / "runs" / "r")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("by", ["random", "time"])
def test_offline_figures_of_what_comes_again_are_those_of_the_served(dataset, tmp_path, by):
    """Each user's request sends the time of the test; another time, or none, would change the figures."""
    rng = np.random.default_rng(5)
    once = dataset.interactions
    later = once.assign(timestamp=once["timestamp"] + rng.integers(1, 200, len(once)) * 86_400)
    twice = dataclasses.replace(dataset, interactions=pd.concat([once, later], ignore_index=True))
    serving = replace(
        SERVING,
        sources=(ItemWeights("ease"), Popular(quota=0)),
        seen_again_days=PerRequest("again_days", 200.0, 0.0, 365.0),
    )
    recipe = quick(retrieval=EASE(l2=5.0), ranking=None, serving=serving, split=SplitSettings(by=by))
    run = train_recipe(recipe, twice, tmp_path / "run")
    data = EvaluationData.from_run(run)
    assert data.left_out > 0
    again = run.test.merge(run.interactions, on=["user_id", "item_id"])[
        ["user_id", "item_id"]
    ].drop_duplicates()
    assert len(again) > data.left_out  # some of the items to be found were consumed before
    export_run(run.path, tmp_path / "release", verify=False)
    ensemble = LocalEnsemble(tmp_path / "release")
    figures = evaluate_served(ensemble, data).figures
    assert figures["ranking"].to_json() == pytest.approx(run.metrics["ranking"])
    assert figures["popularity"].to_json() == pytest.approx(run.metrics["popularity"])
    clock = evaluate_served(ensemble, dataclasses.replace(data, now_s=None)).figures
    assert clock["ranking"].ndcg != pytest.approx(run.metrics["ranking"]["ndcg"])
