"""A recipe: one Python module that describes one recommender, from its data to its serving limits.

A recipe module ends with ``RECIPE = Recipe(...)``. ``docs/recipes.md`` explains every field;
``tiercel_pipelines/recipes/movielens.py`` is the one to copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from tiercel_serving.errors import KindUnavailable
from tiercel_serving.mistyped import mistyped
from tiercel_serving.problems import (
    AT_LEAST_0,
    BELOW_1,
    COUNT,
    SEED,
    Problem,
    Range,
    choose,
    named_twice,
    out_of_range,
)
from tiercel_serving.reorder.table import place_tasks, unknown_tasks
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.table import FitsModel, default_sources

from ..data import DATASETS, DatasetSpec
from ..families.table import RANKING_FAMILIES, RETRIEVAL_FAMILIES, RankingFamily, RetrievalFamily
from ..tasks.table import RANKING_TASKS, score_names
from .old_names import old_name

__all__ = ["Recipe", "SplitSettings", "TrainingSettings"]


class SplitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How interactions become training, validation and test parts.

    Parameters
    ----------
    train
        Share of the interactions that is not the test part.
    validation
        Share of ``train`` that is used for early stopping; 0 is none.
    seed
        Random seed: the same seed gives the same split.
    by
        ``random`` splits each user's interactions at random; with ``time``, the test part is the latest share
        of all interactions; with ``leave_one_out``, each user's latest interaction is the test part and the
        one before it the validation part, regardless of the shares (a ``validation`` of 0 still means none).
    """

    train: float = 0.75
    validation: float = 0.1
    seed: int = 42
    by: Literal["random", "time", "leave_one_out"] = "random"

    def problems(self) -> list[Problem]:
        """Return problems of numbers out of their ranges, and of an unknown way to split."""
        train = Range(0, 1, open_low=True, open_high=True)
        ranges = {"train": train, "validation": BELOW_1, "seed": SEED}
        return list(mistyped(self)) or list(out_of_range(self, ranges))


class TrainingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Samples of users that bound the cost of training, checkpoints, and the choice of blend weights.

    Each number of users is the size of a fixed sample, chosen by the seed (all users if there are fewer).

    Parameters
    ----------
    judged_users
        Users on whom early stopping measures the model after each epoch.
    listed_users
        Users for whom each fold makes a list that the ranker learns from.
    measured_users
        Users on whom the figures of the test part are measured.
    checkpoint_s
        Minimum time between two checkpoints, in seconds; each is written after an epoch. See
        ``tiercel train --resume``.
    choose_blend
        Whether to tune the weights of ``serving.blend`` on the validation part, starting from those given,
        and serve the result.
    """

    judged_users: int = 4_000
    listed_users: int = 10_000
    measured_users: int = 20_000
    checkpoint_s: float = 60.0
    choose_blend: bool = False

    def problems(self) -> list[Problem]:
        """Return problems of numbers out of their ranges."""
        counts = dict.fromkeys(("judged_users", "listed_users", "measured_users"), COUNT)
        return list(out_of_range(self, {**counts, "checkpoint_s": AT_LEAST_0}))


class Recipe(msgspec.Struct, frozen=True):
    """One recommender.

    Parameters
    ----------
    name
        Name of runs and releases: letters, digits, ``-`` and ``_``, beginning with a letter or digit.
    dataset
        Where users, items and interactions come from.
    features
        A function without arguments that returns a new NVTabular graph. Each of its output columns
        has one of the tags USER, ITEM and CONTEXT; one has ITEM_ID.
    retrieval
        The models that find candidates: settings of one family, or a tuple of several.
    ranking
        The model that orders them; None keeps the order of retrieval.
    serving
        Limits, sources, rules and reorder steps. Without sources there is one for each retrieval model,
        and popular items for users of whom nothing is known.
    split
        How interactions are split into training, validation and test part.
    training
        Sample sizes, checkpoints, and whether blend weights are tuned.
    rows
        With ``keep``, the graph's ``Filter`` and ``Dropna`` drop no rows, in training and serving; a row that
        they would drop passes unchanged. None refuses these operators, except where they drop events of a
        session.
    seed
        Random seed of initial weights, batches and negatives.
    origin
        The module or file it was loaded from; set by :func:`~tiercel_pipelines.recipe.load.load_recipe`.
    """

    name: str
    dataset: DatasetSpec
    features: Callable[[], Any]
    retrieval: RetrievalFamily | tuple[RetrievalFamily, ...]
    ranking: RankingFamily | None = None
    serving: ServingSettings = ServingSettings()
    split: SplitSettings = SplitSettings()
    training: TrainingSettings = TrainingSettings()
    rows: Literal["keep"] | None = None
    seed: int = 42
    origin: str = ""

    @property
    def title(self) -> str:
        """The recipe's name in messages, with its origin if known."""
        return f"{self.name!r} ({self.origin})" if str(self.origin) else repr(self.name)

    @property
    def models(self) -> tuple[RetrievalFamily, ...]:
        """The retrieval models, always as a tuple."""
        return tuple(self.retrieval) if isinstance(self.retrieval, tuple | list) else (self.retrieval,)

    @property
    def served(self) -> ServingSettings:
        """The serving settings with default sources, and with task names in steps resolved to positions."""
        serving = self.serving
        if not serving.sources:
            sources = default_sources({family.name: family.form for family in self.models})
            serving = msgspec.structs.replace(serving, sources=sources)
        if self.ranking is None:
            return serving
        steps = place_tasks(serving.reorder, score_names(self.ranking.task))
        return msgspec.structs.replace(serving, reorder=steps)

    def shape_problems(self) -> list[Problem]:
        """Return the problems of fields with the wrong type, which rule out any other check."""
        return list(mistyped(self)) or list(_misfits(self))

    def problems(self) -> list[Problem]:
        """Return every problem of the recipe, except those of its graph and its data."""
        wrong = self.shape_problems()
        if wrong:
            return wrong
        wrong = list(_own(self))
        for field, family in self.places():
            wrong += [problem.within(field) for problem in family.problems()]
        if self.ranking is not None:
            wrong += [problem.within("ranking") for problem in self.ranking.problems()]
        try:
            served = self.served
        except KindUnavailable as error:
            return [*wrong, Problem("serving.sources", str(error), "name the sources")]
        wrong += [problem.within("serving") for problem in served.problems()]
        wrong += [problem.within("split") for problem in self.split.problems()]
        wrong += [problem.within("training") for problem in self.training.problems()]
        wrong += _choice(self)
        return [*wrong, *_sources(self, served), *_steps(self, served), *_needs(self, served)]

    def places(self) -> list[tuple[str, RetrievalFamily]]:
        """Return each retrieval model with its field in the recipe, such as ``retrieval[0]``."""
        several = isinstance(self.retrieval, tuple | list)
        return [
            (f"retrieval[{place}]" if several else "retrieval", family)
            for place, family in enumerate(self.models)
        ]


def _misfits(recipe: Recipe) -> Iterator[Problem]:
    """Find values that are not the model, task, function, data set, source, rule or step expected there."""
    for field, family in recipe.places():
        yield from RETRIEVAL_FAMILIES.misfit(family, field)
    if not recipe.models:
        yield Problem("retrieval", "there is no model", "write retrieval=TwoTower()")
    if recipe.ranking is not None:
        wrong = RANKING_FAMILIES.misfit(recipe.ranking, "ranking")
        yield from wrong or RANKING_TASKS.misfit(recipe.ranking.task, "ranking.task")
    features: object = recipe.features
    if not callable(features):
        remedy = "give the function itself, without calling it: features=features"
        yield Problem("features", f"expected a function, got {type(features).__name__}", remedy)
    yield from (problem.within("serving") for problem in recipe.serving.shape_problems())
    wrong = DATASETS.misfit(recipe.dataset, "dataset")
    yield from wrong or (problem.within("dataset") for problem in recipe.dataset.problems())


def _own(recipe: Recipe) -> Iterator[Problem]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", recipe.name):
        problem = f"{recipe.name!r} cannot name a folder or a served model"
        yield Problem("name", problem, "use letters, digits, - and _, and begin with a letter or digit")
    yield from out_of_range(recipe, {"seed": SEED})
    yield from named_twice((family.name for family in recipe.models), "retrieval", "models")


def _choice(recipe: Recipe) -> Iterator[Problem]:
    """Find that ``choose_blend`` is set without two sources to blend, or without a validation part."""
    if not recipe.training.choose_blend:
        return
    if len(recipe.serving.blend) < 2:
        problem = "serving.blend names no two sources, so there is nothing to choose"
        yield Problem("training.choose_blend", problem, "name them, or leave choose_blend out")
    if recipe.split.validation == 0 and recipe.split.by != "leave_one_out":
        problem = "there is no validation part to choose the weights by (split.validation is 0)"
        yield Problem("training.choose_blend", problem, "raise it, or leave choose_blend out")


def _sources(recipe: Recipe, served: ServingSettings) -> Iterator[Problem]:
    """Find sources without their model, models without a source, and those that do not fit each other."""
    models = {family.name: family for family in recipe.models}
    fed = set()
    for place, source in enumerate(served.sources):
        where = f"serving.sources[{place}]"
        if source.form is None:
            continue
        fed.add(source.name)
        family = models.get(source.name)
        if family is None:
            problem = f"no retrieval model is called {source.name!r}, which would feed this source"
            yield Problem(f"{where}.name", problem, choose(source.name, models))
        elif family.form != source.form:
            problem = f"it takes {source.form}, but the model {source.name!r} gives {family.form}"
            yield Problem(where, problem, "name a model of that form, or another kind of source")
        elif isinstance(source, FitsModel) and family.dimension is not None and COUNT.holds(family.dimension):
            yield from (problem.within(where) for problem in source.misfits(family.dimension))
    for field, family in recipe.places():
        if family.name not in fed:
            problem = f"no source is called {family.name!r}, so the model would give nothing"
            yield Problem(field, problem, "add such a source to serving.sources, or leave the model out")


def _steps(recipe: Recipe, served: ServingSettings) -> Iterator[Problem]:
    task = None if recipe.ranking is None else recipe.ranking.task
    tasks = 0 if task is None else task.tasks
    wrong = list(unknown_tasks(recipe.serving.reorder, score_names(task)))
    if wrong:
        yield from (problem.within("serving") for problem in wrong)
        return
    for place, step in enumerate(served.reorder):
        yield from (problem.within(f"serving.reorder[{place}]") for problem in step.misfits(tasks))


def _needs(recipe: Recipe, served: ServingSettings) -> Iterator[Problem]:
    families: list[tuple[str, RetrievalFamily | RankingFamily]] = [*recipe.places()]
    if recipe.ranking is not None:
        families.append(("ranking", recipe.ranking))
    found = {}
    for place, family in families:
        for field, remedy in family.needs().items():
            if not getattr(served, field):
                problem = f"empty, but {place} needs it ({type(family).__name__})"
                found[field] = Problem(f"serving.{field}", problem, remedy)
    yield from found.values()


def __getattr__(name: str) -> Any:
    """Raise an error; for a name of older recipes, it says what to write instead."""
    raise old_name(name, __name__)
