"""A ranker of several targets: its losses, what it learns, what it refuses, and how it is served."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranking_contract import INPUTS, KEPT, world

from tiercel_client import Recommender
from tiercel_pipelines.arrays.lists import IMPLICIT, positive_targets
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.data import Dataset, load_dataset
from tiercel_pipelines.errors import RecipeError, TrainingError
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.families.table import Plan, RankingData
from tiercel_pipelines.recipe import (
    DLRM,
    EASE,
    GMF,
    ListwiseSoftmax,
    MMoE,
    MultiTask,
    Synthetic,
    Target,
    WeightedSum,
    load_recipe,
    replace,
)
from tiercel_pipelines.recipe.check import check_recipe
from tiercel_pipelines.tasks.multi_task import target_loss
from tiercel_pipelines.tasks.table import RANKING_TASKS, NamedScores, score_names
from tiercel_pipelines.training import train_recipe
from tiercel_serving.release.manifest import encode
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.runtime.local import LocalTransport

TARGETS = (
    Target("watched"),
    Target("liked", column="rating", at_least=4, weight=0.5),
    Target("rating", column="rating", loss="squared", weight=0.2),
)
TASK = MultiTask(TARGETS, folds=2)


def test_the_settings_travel_and_say_what_they_are() -> None:
    assert TASK.problems() == []
    assert RANKING_TASKS.read(json.loads(encode(TASK)), None) == TASK
    assert (TASK.tasks, TASK.target, score_names(TASK)) == (3, IMPLICIT, ("watched", "liked", "rating"))
    assert isinstance(TASK, NamedScores)
    assert TASK.ranks == (True, True, False)
    assert score_names(ListwiseSoftmax()) == ()


WRONG: list[tuple[Any, str]] = [
    (MultiTask(()), "targets: expected targets, got none"),
    (MultiTask((Target("a"), Target("a"))), "2 targets are called 'a'"),
    (MultiTask((Target("a", weight=0),)), r"targets\[0\].weight: expected .*above 0"),
    (MultiTask((Target("a", at_least=3),)), "is the same for everything that was picked"),
    (MultiTask((Target("a", loss="squared"),)), "is the same for everything that was picked"),
    (MultiTask((Target("a", column="r", at_least=3, loss="squared"),)), "learns the value itself"),
    (MultiTask((Target(""),)), "expected a name"),
    (replace(TASK, folds=1), "folds"),
]


@pytest.mark.parametrize(("task", "message"), WRONG)
def test_wrong_settings_are_told(task: MultiTask, message: str) -> None:
    import re

    problems = [str(problem) for problem in task.problems()]
    assert any(re.search(message, problem) for problem in problems), problems


def test_each_loss_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(4, 6)).astype(np.float32))
    labels = torch.tensor(rng.choice([0.0, 1.0, 0.5], (4, 6)).astype(np.float32))
    picked = torch.from_numpy(rng.random((4, 6)) < 0.5)
    real = torch.ones(4, 6, dtype=torch.bool)
    real[2, 3:] = False
    picked &= real
    labels[0, 1] = torch.nan
    picked[0, 1] = True
    known = picked & ~labels.isnan()

    wanted = [(float(scores[r, c]) - (float(labels[r, c]) - 2) / 3) ** 2 for r, c in known.nonzero().tolist()]
    squared = target_loss("squared", scores, labels, picked, real, (2.0, 3.0))
    assert float(squared) == pytest.approx(np.mean(wanted), rel=1e-5)

    labels = labels.nan_to_num()
    each = []
    for r, c in real.nonzero().tolist():
        p = 1 / (1 + np.exp(-float(scores[r, c])))
        y = float(labels[r, c]) if picked[r, c] else 0.0
        each.append(-y * np.log(p) - (1 - y) * np.log(1 - p))
    logistic = target_loss("logistic", scores, labels, picked, real, (0.0, 1.0))
    assert float(logistic) == pytest.approx(np.mean(each), rel=1e-5)

    lists = []
    for r in range(4):
        weight = {c: float(labels[r, c]) for c in range(6) if picked[r, c] and labels[r, c] > 0}
        rest = sum(np.exp(float(scores[r, c])) for c in range(6) if real[r, c] and c not in weight)
        if weight:
            losses = {
                c: -np.log(np.exp(float(scores[r, c])) / (np.exp(float(scores[r, c])) + rest)) for c in weight
            }
            lists.append(sum(w * losses[c] for c, w in weight.items()) / sum(weight.values()))
    softmax = target_loss("softmax", scores, labels, picked, real, (0.0, 1.0))
    assert float(softmax) == pytest.approx(np.mean(lists), rel=1e-4)


def test_targets_follow_their_interactions() -> None:
    users, items = np.array([0, 0, 2]), np.array([3, 1, 3])
    values = np.array([[1, 5], [1, np.nan], [1, 2]], np.float32)
    pairs = Pairs.build(users, items, users, np.ones(3), 3, targets=values)
    some = pairs.select(np.array([True, True, False]))
    assert np.array_equal(some.targets, values[:2], equal_nan=True)  # type: ignore[arg-type]
    rows = np.array([[1, 3, 4], [3, 1, 4]])
    found = positive_targets(pairs, np.array([0, 2]), rows, 4)
    assert found is not None
    expected = [[[1, np.nan], [1, 5], [0, 0]], [[1, 2], [0, 0], [0, 0]]]
    assert np.array_equal(found, expected, equal_nan=True)
    nothing = positive_targets(pairs.select(np.zeros(3, bool)), np.array([0]), rows[:1], 4)
    assert nothing is not None
    assert nothing.shape == (1, 3, 2)
    assert positive_targets(Pairs.build(users, items, users, np.ones(3), 3), users, rows, 4) is None


def _data(rating: np.ndarray | None = None) -> tuple[RankingData, np.ndarray]:
    """Return the contract's world, where users rate picked odd items 5 and picked even ones 1 to 3."""
    packed, lists = world(from_history=False)
    stars = np.where(lists.rows % 2 == 1, 5.0, 1.0 + lists.rows % 3) if rating is None else rating
    stars = np.broadcast_to(stars, lists.rows.shape)
    picked = lists.weights > 0
    targets = np.where(picked[..., None], np.stack([np.ones_like(stars), stars, stars], 2), 0.0)
    lists = dataclasses.replace(lists, targets=targets.astype(np.float32))
    return RankingData(packed, INPUTS, lists, KEPT, 1.0), stars


def test_each_score_learns_its_own_target() -> None:
    data, stars = _data()
    task = replace(TASK, negatives=KEPT, hard_negatives=1.0, batch_size=32)
    settings = MMoE(
        learning_rate=0.05,
        embedding_dimension=4,
        dropout=0.0,
        history_dropout=0.0,
        experts=3,
        expert_layers=(8,),
        tower_layers=(6,),
        task=task,
    )
    fitted, _ = settings.fit(data, Plan(0, "ranking", epochs=25))
    lists = data.lists
    tensors = data.packed.user_tensors(lists.contexts, lists.history)
    tensors |= {name: array[lists.rows] for name, array in data.packed.item.items()}
    scores = fitted.scores({**tensors, "kept_score": lists.scores, "kept_source": lists.sources})
    picked = lists.weights > 0
    assert scores.shape == (*picked.shape, 3)

    def first_is(wanted: np.ndarray, task: int) -> float:
        some = wanted.any(axis=1)
        best = scores[some, :, task].argmax(axis=1)
        return float(np.take_along_axis(wanted[some], best[:, None], 1).mean())

    assert first_is(picked, 0) > 0.9
    assert first_is(picked & (stars >= 4), 1) > 0.9
    expected = (stars[picked] - stars[picked].mean()) / stars[picked].std()
    assert np.corrcoef(scores[picked][:, 2], expected)[0, 1] > 0.9
    assert abs(float(scores[picked][:, 2].mean())) < 0.3


def test_a_target_that_is_constant_over_the_lists_is_named() -> None:
    data, _ = _data(np.array(2.0))
    message = r"ranking: the target 'liked' is 0 for all of the \d+ interactions that 64 lists .* at_least"
    with pytest.raises(TrainingError, match=message):
        MMoE(task=TASK).fit(data, Plan(0, "ranking", epochs=1))


BASE = load_recipe("synthetic")


def _recipe(task: Any = TASK, reorder: Any = (), ranking: Any = None) -> Any:
    ranking = MMoE(embedding_dimension=4, max_epochs=1, experts=2, task=task) if ranking is None else ranking
    serving = replace(BASE.serving, candidates=30, kept=20, k_max=20, sources=(), reorder=reorder)
    return replace(BASE, retrieval=EASE(), ranking=ranking, serving=serving, dataset=SMALL)


SMALL = Synthetic(users=60, items=50, interactions=1200)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    made = load_dataset(SMALL)
    stars = 1.0 + np.random.default_rng(0).integers(0, 5, len(made.interactions))
    stars[::10] = np.nan
    words = np.where(stars > 3, "good", "bad")
    endless = np.where(np.arange(len(stars)) == 3, np.inf, 1.0)
    more = made.interactions.assign(rating=stars, words=words, same=0.5, shares=stars / 5, endless=endless)
    return dataclasses.replace(made, interactions=more)


REFUSED: list[tuple[Any, Any, str]] = [
    (MultiTask((Target("a", column="ratings", at_least=4),)), (), "no column 'ratings'.*rating"),
    (MultiTask((Target("a", column="words"),)), (), "'words' holds no numbers"),
    (MultiTask((Target("a", column="rating"),)), (), r"not everywhere .*between 0 and 1; .*at_least=…"),
    (MultiTask((Target("a", column="rating", at_least=9),)), (), "'a' is constant: 0 for every interaction"),
    (MultiTask((Target("a", column="same", loss="squared"),)), (), "'a' is constant: 0.5 for every"),
    (MultiTask((Target("a", column="endless", loss="squared"),)), (), "1 of [0-9]+ 'endless' are infinite"),
    (ListwiseSoftmax(target="same"), (), "'same' is constant: 0.5 for every interaction"),
    (TASK, (WeightedSum((1.0,), tasks=("like",)),), r"serving\.reorder\[0\].*no task 'like'.*'liked'"),
    (TASK, (WeightedSum((1.0,)),), "1 weights, but the ranking model has 3 tasks"),
    (TASK, (WeightedSum((1.0, 2.0), tasks=("liked",)),), "1 names for 2 weights"),
    (ListwiseSoftmax(), (WeightedSum((1.0,), tasks=("liked",)),), "no scores of these names: 'liked'"),
]


@pytest.mark.parametrize(("task", "reorder", "message"), REFUSED)
def test_what_does_not_fit_is_refused_before_training(
    dataset: Dataset, task: Any, reorder: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(_recipe(task, reorder), dataset)


def test_shown_targets_are_refused(dataset: Dataset) -> None:
    from nvtabular import ops

    def features() -> Any:
        from merlin.schema import Tags

        return BASE.features() + (["rating"] >> ops.FillMissing(0) >> ops.AddTags([Tags.CONTEXT]))

    with pytest.raises(RecipeError, match="'rating' shows the models their target 'rating'"):
        check_recipe(replace(_recipe(), features=features), dataset)


@pytest.mark.parametrize(
    ("family", "layouts"),
    [
        pytest.param(GMF, ("fused",), marks=pytest.mark.slow),
        pytest.param(MMoE, ("fused", "staged"), marks=pytest.mark.slow),
        pytest.param(DLRM, ("fused",), marks=pytest.mark.slow),
    ],
)
def test_served_it_is_what_was_trained(
    dataset: Dataset, tmp_path: Path, family: Any, layouts: tuple[str, ...]
) -> None:
    """Export verifies itself; this compares the utility and the scores that a client gets."""
    weights = WeightedSum((0.5, 2.0), tasks=("rating", "liked"))
    ranking = family(embedding_dimension=4, max_epochs=1, task=TASK)
    recipe = _recipe(reorder=(weights,), ranking=ranking)
    run = train_recipe(recipe, dataset, tmp_path / "run")
    assert run.record.models.ranking == ranking
    assert run.record.recipe.serving.reorder == (WeightedSum((0.0, 2.0, 0.5)),)
    answers = []
    for layout in layouts:
        release = export_run(run, tmp_path / layout, layout=layout)
        model = release.manifest.ranking
        assert model is not None
        assert (model.tasks, model.task_names) == (3, ("watched", "liked", "rating"))
        users = run.users["user_id"].to_numpy()[:5, None]
        answers.append(Chain.open(release).run({"user_id": users})[0])
    for name in answers[0]:
        assert all(np.array_equal(answers[0][name], other[name]) for other in answers)
    with Recommender(transport=LocalTransport(release)) as recommender:
        assert recommender.server_info().task_names == ("watched", "liked", "rating")
        explained = recommender.explain(user_id=users[0, 0].item(), k=5)
    best = next(candidate for candidate in explained.candidates if candidate.rank == 1)
    assert list(best.task_scores) == ["watched", "liked", "rating"]
    assert tuple(best.task_scores.values()) == best.rank_scores
    utility = 2 * best.task_scores["liked"] + 0.5 * best.task_scores["rating"]
    assert best.score == pytest.approx(utility, rel=1e-5)
