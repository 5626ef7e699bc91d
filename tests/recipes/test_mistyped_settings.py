"""A value of the wrong type, anywhere in a recipe, is reported as a mistake that names the setting."""

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from nvtabular import ops

import tiercel_pipelines.recipe as written
from tiercel_pipelines.errors import RecipeError
from tiercel_pipelines.families.table import RANKING_FAMILIES, RETRIEVAL_FAMILIES
from tiercel_pipelines.recipe import (
    DIN,
    BoostItems,
    Compare,
    Index,
    MultiTask,
    Popular,
    Recipe,
    SeenFilter,
    Target,
    WeightedSum,
    load_recipe,
    replace,
)
from tiercel_pipelines.recipe.check import check_recipe
from tiercel_pipelines.recipe.names import names
from tiercel_pipelines.tasks.table import RANKING_TASKS, RETRIEVAL_TASKS
from tiercel_serving.mistyped import mistyped
from tiercel_serving.problems import COUNT, out_of_range
from tiercel_serving.reorder.table import REORDER
from tiercel_serving.rules.table import RULES
from tiercel_serving.sources.table import SOURCES
from tiercel_serving.stores.table import STORES


def features() -> Any:
    """Return features of ids alone: they are described anew for each recipe, and are not under test."""
    user = ["user_id"] >> ops.Categorify() >> ops.TagAsUserID()
    return user + (["item_id"] >> ops.Categorify() >> ops.TagAsItemID())


RECIPE = replace(load_recipe("synthetic"), features=features)

#: Values that no setting accepts, except those with a described contract.
NEVER = (np.array([1, 2]), np.array(3), object(), pd.DataFrame({"a": [1]}), {1: 2}, {3}, 1 + 2j, len, b"1")
#: Values that some settings accept.
SOMETIMES = (None, True, 3, 0.5, -1, 2**70, float("nan"), float("inf"), "x", "", (1,), [], ("x", 1.0))

#: Class → the required arguments of its constructor.
NEEDED: dict[str, dict[str, Any]] = {
    "Recipe": {name: getattr(RECIPE, name) for name in ("name", "dataset", "features", "retrieval")},
    "Parquet": {"users": "u", "items": "i", "interactions": "x"},
    "Sequences": {"path": "p"},
    "Target": {"name": "t"},
    "MultiTask": {"targets": (Target("t"),)},
    "PerRequest": {"name": "p", "default": 0.5, "low": 0.0, "high": 1.0},
    "SeenFilter": {"beyond": 100},
    "Redis": {"url": "redis://127.0.0.1"},
    "Expression": {"name": "r", "expression": "item['year'] > 1990"},
    "WeightedSum": {"weights": (1.0,)},
    "Freshness": {"column": "released", "half_life": 30.0},
    "BoostItems": {"column": "year", "values": (1990,), "by": 1.0},
    "PinItems": {"column": "year", "values": (1990,), "place": 1},
    "ScoreFloor": {"least": 0.5},
    "FairShares": {"column": "year", "shares": ((1990, 0.5),)},
    "Compare": {"name": "r", "column": "year", "operator": ">", "value": 1990},
}


def made(name: str) -> msgspec.Struct:
    kind = getattr(written, name)
    given = dict(NEEDED.get(name, {}))
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in given:
            given[field.name] = {"name": "n", "column": "year", "quota": 0}.get(field.name, "year")
    settings: msgspec.Struct = kind(**given)
    return settings


STRUCTS = [
    name
    for name in names()
    if isinstance(kind := getattr(written, name), type) and issubclass(kind, msgspec.Struct)
]


def placed(settings: Any) -> Recipe:
    """Return a recipe that has these settings in their place."""
    serving, ranking, retrieval = RECIPE.serving, RECIPE.ranking, RECIPE.retrieval
    places: tuple[tuple[Any, Any], ...] = (
        (RETRIEVAL_FAMILIES, lambda: replace(RECIPE, retrieval=settings)),
        (RANKING_FAMILIES, lambda: replace(RECIPE, ranking=settings)),
        (RETRIEVAL_TASKS, lambda: replace(RECIPE, retrieval=replace(retrieval, task=settings))),
        (RANKING_TASKS, lambda: replace(RECIPE, ranking=replace(ranking, task=settings))),
        (SOURCES, lambda: replace(RECIPE, serving=replace(serving, sources=(settings,)))),
        (RULES, lambda: replace(RECIPE, serving=replace(serving, rules=(settings,)))),
        (REORDER, lambda: replace(RECIPE, serving=replace(serving, reorder=(settings,)))),
        (STORES, lambda: replace(RECIPE, serving=replace(serving, store=settings))),
    )
    for table, place in places:
        if table.row_of(settings) is not None:
            return place()
    if isinstance(settings, Recipe):
        return settings
    if isinstance(settings, Target):
        task = replace(made("MultiTask"), targets=(settings,))
        return placed(task)
    if isinstance(settings, SeenFilter):
        return replace(RECIPE, serving=replace(serving, seen_filter=settings))
    kinds = {"SplitSettings": "split", "TrainingSettings": "training", "ServingSettings": "serving"}
    if type(settings).__name__ in kinds:
        return replace(RECIPE, **{kinds[type(settings).__name__]: settings})
    if type(settings).__name__ in ("Negatives", "Debiasing"):
        field = type(settings).__name__.lower()
        return replace(
            RECIPE, retrieval=replace(retrieval, task=replace(retrieval.task, **{field: settings}))
        )
    if type(settings).__name__ == "PerRequest":
        return placed(BoostItems("year", (1990,), settings))
    return replace(RECIPE, dataset=settings)


def wrong(settings: msgspec.Struct, values: tuple[Any, ...]) -> Iterator[tuple[str, Any, msgspec.Struct]]:
    for field in msgspec.structs.fields(settings):
        for value in values:
            yield field.name, value, msgspec.structs.replace(settings, **{field.name: value})


def mistakes(recipe: Recipe) -> list[str]:
    """Return the fields with mistakes; any other exception fails the test."""
    try:
        check_recipe(recipe)
    except RecipeError as error:
        return [problem.field for problem in error.problems if problem.problem and problem.remedy]
    return []


@pytest.mark.parametrize("name", STRUCTS)
def test_what_is_no_setting_at_all_is_a_mistake_that_names_the_setting(name: str) -> None:
    settings = made(name)
    assert not list(mistyped(settings))
    drawn = random.Random(name)
    for field, value, changed in wrong(settings, NEVER):
        if (callable(value) and field == "features") or (field, type(value)) == ("parameters", dict):
            continue
        if drawn.random() < 0.1:
            assert any(field in found for found in mistakes(placed(changed))), (field, value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STRUCTS if getattr(written, name).__struct_fields__])
def test_any_value_is_right_or_a_mistake(name: str) -> None:
    tried = [mistakes(placed(changed)) for _, _, changed in wrong(made(name), NEVER + SOMETIMES)]
    assert any(tried)


@pytest.mark.parametrize("name", STRUCTS)
def test_numpy_scalars_are_the_numbers_that_they_equal(name: str) -> None:
    settings = made(name)
    scalars = {bool: np.bool_, int: np.int32, float: np.float32}
    changes = {
        field: scalars[type(value)](value)
        for field in settings.__struct_fields__
        if type(value := getattr(settings, field)) in scalars
    }
    assert mistakes(placed(replace(settings, **changes))) == mistakes(placed(settings))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            replace(RECIPE, serving=replace(RECIPE.serving, kept=np.array([3]))),
            r"serving.kept: expected a whole number, got array([3])",
        ),
        (
            replace(RECIPE, serving=replace(RECIPE.serving, reorder=(WeightedSum((1.0, "2")),))),
            "serving.reorder[0].weights[1]: expected a number, got '2'",
        ),
        (
            replace(RECIPE, serving=replace(RECIPE.serving, sources=(Popular("popular", quota="1"),))),
            "serving.sources[0].quota: expected a whole number or None, got '1'",
        ),
        (
            replace(RECIPE, ranking=replace(RECIPE.ranking, use_history=1)),
            "ranking.use_history: expected True or False, got 1",
        ),
        (replace(RECIPE, retrieval=(RECIPE.retrieval, 3)), "retrieval[1]: expected a retrieval"),
        (
            replace(RECIPE, split=replace(RECIPE.split, by="tim")),
            "split.by: expected one of 'random', 'time', 'leave_one_out', got 'tim'; use 'random', 'time'",
        ),
        (
            replace(RECIPE, serving={}),
            "serving: expected ServingSettings(…), got {}; write ServingSettings(…)",
        ),
        (
            replace(
                RECIPE, retrieval=replace(RECIPE.retrieval, task=replace(RECIPE.retrieval.task, negatives=3))
            ),
            "retrieval.task.negatives: expected Negatives(…), got 3; write Negatives(…)",
        ),
        (
            replace(RECIPE, ranking=replace(RECIPE.ranking, task=MultiTask(("liked",)))),
            "ranking.task.targets[0]: expected Target(…), got 'liked'; write Target(…)",
        ),
        (replace(RECIPE, ranking="dlmr"), "ranking: expected a ranking family, got 'dlmr'; write DLRM(…)"),
        (replace(RECIPE, ranking=DIN), "families.din.DIN'>; write DIN(…)"),
        (replace(RECIPE, seed=True), "seed: expected a whole number, got True"),
        (
            replace(RECIPE, retrieval=replace(RECIPE.retrieval, max_epochs=2**70)),
            f"retrieval.max_epochs: expected a whole number of at least 1, got {2**70}; "
            "give such a number, at most 2147483647",
        ),
        (
            replace(RECIPE, retrieval=replace(RECIPE.retrieval, embedding_dimension=100_000_000)),
            "retrieval.embedding_dimension: expected a whole number of at least 1 and at most 8192, got 1000",
        ),
    ],
)
def test_the_words(recipe: Recipe, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    assert said in str(caught.value)


def test_a_kind_that_nobody_mentions_names_what_it_has() -> None:
    index = Index("two_tower", parameters={"nprobe": np.array([4])})
    assert [problem.field for problem in mistyped(index)] == ["parameters"]
    assert [problem.field for problem in mistyped(Compare("r", "year", "in", np.array([1, 2])))] == ["value"]
    assert not list(out_of_range(SeenFilter(beyond=np.int64(5)), {"beyond": COUNT}))
