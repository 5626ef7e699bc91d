"""Parts of a recipe's serving settings and targets that do not fit the columns of its data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from tiercel_serving.problems import COUNT, Problem, choose
from tiercel_serving.reorder.inputs import FitsItems
from tiercel_serving.rules.table import asked
from tiercel_serving.sources.table import FitsModel

from ..arrays.lists import IMPLICIT
from ..arrays.pairs import Array
from ..data import Dataset
from ..families.table import LearnsFromColumns, LimitsItems
from ..features.raw_columns import raw_columns
from ..tasks.table import NamedScores
from .check_graph import held_in
from .recipe import Recipe

#: The end of the year 9999, in seconds since 1970; present-day times in milliseconds lie beyond it.
_LAST_SECOND = 253_402_300_799


def data_problems(recipe: Recipe, dataset: Dataset) -> Iterator[Problem]:
    """Yield problems of the data, and of columns that sources, rules, steps, models and targets name."""
    items, served = dataset.items, recipe.served
    yield from _no_negatives(recipe, dataset)
    for section in ("sources", "rules", "reorder"):
        for place, kind in enumerate(getattr(served, section)):
            where = f"serving.{section}[{place}]"
            missing = [name for name in kind.columns() if name not in items.columns]
            for name in missing:
                problem = f"the items have no column {name!r}"
                yield Problem(f"{where}{_field(kind, name)}", problem, choose(name, items.columns))
            if section == "rules" and not missing and not kind.problems():
                columns = raw_columns(items, kind.columns())
                yield from (problem.within(where) for problem in kind.misfits(columns))
            elif isinstance(kind, FitsItems) and not missing and not kind.problems():
                columns = raw_columns(items, kind.columns())
                yield from (problem.within(where) for problem in kind.unfit(columns))
    if dataset.timestamp is None:
        yield from (problem.within("serving") for problem in served.timeless())
    else:
        yield from _no_seconds(recipe, dataset.timestamp, dataset.interactions[dataset.timestamp])
    for where, family in recipe.places():
        if isinstance(family, LimitsItems) and not family.problems():
            yield from (problem.within(where) for problem in family.too_large(len(items)))
        if isinstance(family, LearnsFromColumns):
            for name in family.interaction_columns():
                yield from _learned(f"{where}{_field(family, name)}", name, dataset)
    yield from _unknown_user_columns(recipe, dataset)
    yield from _too_few_items(recipe, dataset)
    if recipe.split.by != "random" and dataset.timestamp is None:
        problem = f"a split by {recipe.split.by!r} needs the time of the interactions, and there is none"
        yield Problem("split.by", problem, "name the data set's timestamp, or write by='random'")
    yield from _title(recipe.serving.title_column, dataset)
    if recipe.ranking is not None and recipe.ranking.task.target not in ("", IMPLICIT):
        yield from _target(recipe.ranking.task.target, dataset)
    if recipe.ranking is not None and isinstance(recipe.ranking.task, NamedScores):
        numbers = {name: _numbers(dataset.interactions[name]) for name in dataset.context_columns}
        yield from (problem.within("ranking.task") for problem in recipe.ranking.task.unfit(numbers))


def _no_seconds(recipe: Recipe, name: str, times: pd.Series) -> Iterator[Problem]:
    """Find times that are not seconds if a setting depends on durations; otherwise only order matters."""
    latest = times.max()
    if latest > _LAST_SECOND and any(True for _ in recipe.served.timeless()):
        problem = f"{name!r} goes up to {latest}, which as seconds since 1970 is after the year 9999"
        yield Problem("dataset.timestamp", problem, "write it in seconds, or as dates and times")


def _no_negatives(recipe: Recipe, dataset: Dataset) -> Iterator[Problem]:
    """Find data without negatives (every user had every item) if a model learns from interactions alone."""
    ids, frame = [dataset.user_id, dataset.item_id], dataset.interactions
    if not len(frame) or all(isinstance(family, LearnsFromColumns) for family in recipe.models):
        return
    users, items = frame[dataset.user_id].nunique(), len(dataset.items)
    # Almost all data has fewer interactions than pairs, which settles it without the costly deduplication.
    if len(frame) >= users * items and len(frame[ids].drop_duplicates()) == users * items:
        problem = f"each of its {users} users had each of the {items} items, so there are no negatives"
        remedy = "give interactions of more items, or a family that learns from ratings (BiasedMF)"
        yield Problem("dataset", problem, remedy)


def _unknown_user_columns(recipe: Recipe, dataset: Dataset) -> Iterator[Problem]:
    """Find user columns that rules ask for and the users do not have."""
    known = [dataset.user_id, *dataset.users.columns]
    for place, rule in enumerate(recipe.served.rules):
        for name in asked([rule]).users:
            if name not in known:
                problem = f"the users have no column {name!r}"
                yield Problem(f"serving.rules[{place}]", problem, choose(name, known))


def _too_few_items(recipe: Recipe, dataset: Dataset) -> Iterator[Problem]:
    """Find sources that can't be built over so few items."""
    allowed = None
    dimensions = {family.name: family.dimension for family in recipe.models}
    for place, source in enumerate(recipe.served.sources):
        dimension = dimensions.get(source.name)
        if isinstance(source, FitsModel) and dimension is not None and COUNT.holds(dimension):
            known = source.misfits(dimension)
            allowed = _allowed(recipe, dataset) if allowed is None else allowed
            for problem in [] if known else source.misfits(dimension, len(dataset.items), allowed):
                yield problem.within(f"serving.sources[{place}]")


def _allowed(recipe: Recipe, dataset: Dataset) -> int:
    """Return how many items pass the rules, ignoring rules that have problems of their own."""
    passing = np.ones(len(dataset.items), np.bool_)
    for rule in recipe.served.rules:
        if not rule.problems() and set(rule.columns()) <= set(dataset.items.columns):
            columns = raw_columns(dataset.items, rule.columns())
            passing &= True if rule.misfits(columns) else rule.passes(columns)
    return int(np.count_nonzero(passing))


def _field(kind: Any, value: str) -> str:
    """Return the field of a kind's settings that holds a value, as the suffix ``.name``; "" if none does."""
    fields = (field.name for field in msgspec.structs.fields(kind))
    return next((f".{name}" for name in fields if getattr(kind, name) == value), "")


def _learned(where: str, name: str, dataset: Dataset) -> Iterator[Problem]:
    """Find what is wrong with a column of the interactions that a model learns from."""
    if name not in dataset.context_columns:
        remedy = choose(name, dataset.context_columns)
        yield Problem(where, f"the interactions have no column {name!r}", remedy)
        return
    values = dataset.interactions[name]
    if values.dtype.kind not in "iufb":
        yield Problem(where, f"{name!r} holds {held_in(values)}, not numbers", "name a column of numbers")
    elif values.isna().any():
        problem = f"{int(values.isna().sum())} of {len(values)} interactions have no {name!r}"
        yield Problem(where, problem, "drop those interactions, or name another column")
    elif (infinite := int(np.isinf(values.to_numpy(np.float64)).sum())) > 0:
        problem = f"{infinite} of {len(values)} interactions have an infinite {name!r}"
        yield Problem(where, problem, "drop those interactions, or name another column")
    elif values.nunique() < 2:
        problem = f"every {name!r} is {values.iloc[0]}, so there is nothing to learn from it"
        yield Problem(where, problem, "name another column, or a family that learns from who had what")


def _title(title: str | None, dataset: Dataset) -> Iterator[Problem]:
    items, where = dataset.items, "serving.title_column"
    if title is None:
        return
    if title not in items.columns:
        yield Problem(where, f"the items have no column {title!r}", choose(title, items.columns))
    elif held_in(items[title]) != "strings":
        problem = f"{title!r} holds {held_in(items[title])}, not strings"
        yield Problem(where, problem, "name a column that people can read, or None")


def _target(target: str, dataset: Dataset) -> Iterator[Problem]:
    where = "ranking.task.target"
    if target not in dataset.context_columns:
        problem = f"the interactions have no column {target!r}"
        yield Problem(where, problem, choose(target, [IMPLICIT, *dataset.context_columns]))
        return
    values = dataset.interactions[target]
    if values.dtype == object or not values.between(0, 1).all():
        problem = f"{target!r} is not everywhere a number between 0 and 1"
        yield Problem(where, problem, f"prepare such a column, or use {IMPLICIT!r}")
    elif values.nunique() < 2:
        problem = f"{target!r} is constant: {values.iloc[0]} for every interaction"
        yield Problem(where, problem, f"name a column that differs, or use {IMPLICIT!r}")


def _numbers(values: pd.Series) -> Array | None:
    """Return a column of numbers or truth values as float64, null as NaN; None for anything else."""
    if not pd.api.types.is_numeric_dtype(values.dtype):
        return None
    return np.asarray(values.to_numpy(np.float64, na_value=np.nan))
