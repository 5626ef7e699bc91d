"""Problems of a recipe's feature graph: names, tags, operators, and columns that do not fit."""

from __future__ import annotations

import itertools
import numbers
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tiercel_export.errors import WorkflowError
from tiercel_export.lowering.table import TABLE, key_of
from tiercel_export.operators.base import OwnOperator
from tiercel_serving.machine_faults import fault_of
from tiercel_serving.problems import Problem, choose

from ..data import Dataset
from ..families.table import FitsFeatures
from ..features.graph_columns import (
    STRUCTURE,
    FeatureColumn,
    blank_schema,
    describe_graph,
    given_nothing,
    home_of,
    is_graph,
    operator_name,
    placed,
    raised_by,
    root_columns,
    table_schema,
)
from ..tasks.table import NamedScores
from .check_fit import problem_of
from .recipe import Recipe

#: Operators that need numbers, those that need lists, and those that NVTabular cannot use on lists.
_NUMERIC = frozenset({"Clip", "LogOp", "Normalize", "NormalizeMinMax", "Bucketize", "FillMedian"})
_LISTS_ONLY = frozenset({"ListSlice", "ValueCount"})
_SCALAR_ONLY = frozenset({"Clip", "Bucketize", "FillMissing", "FillMedian", "NormalizeMinMax"})
#: Operator → remedy, where NVTabular's own message does not help.
_REMEDIES = {
    "DropLowCardinality": "put ops.Categorify() or ops.Bucketize() before it, for every column that it is "
    "given: NVTabular finds the number of categories there, and fails on a column that has none",
}


def graph_problems(recipe: Recipe, dataset: Dataset | None) -> Iterator[Problem]:
    """Yield the problems of the graph; with the data set, also those of its columns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = recipe.features()
    except Exception as error:
        fault = fault_of(error, doing="making the graph")
        if fault is not None:
            raise fault from error
        problem = f"the function failed with {type(error).__name__}: {error}"
        yield Problem("features", problem, "correct the graph; docs/recipes.md shows how chains are written")
        return
    if not is_graph(graph):
        problem = f"the function returned {type(graph).__name__}, not an NVTabular graph"
        yield Problem("features", problem, "return chains such as ['age'] >> ops.Normalize(), joined by +")
        return
    empty = given_nothing(graph)
    for operator in empty:
        problem = f"{operator} is given an empty list of columns, or a group without any"
        yield Problem("features", problem, "name a column there, or leave that operator out")
    if empty:
        return
    roots = root_columns(graph)
    if dataset is not None:
        unknown = list(_unknown_columns(roots, dataset))
        yield from unknown
        if unknown:
            return
    schema = _schema(roots, dataset)
    try:
        columns, doubled = describe_graph(graph, schema)
    except WorkflowError as error:
        yield problem_of(error)
        return
    except Exception as error:
        culprit = raised_by(error) or ""
        words = f"NVTabular refuses {culprit or 'the graph'} ({type(error).__name__}: {error})"
        yield Problem("features", words, _REMEDIES.get(culprit, "correct the graph"))
        return
    if dataset is not None:
        columns = tuple(placed(column, dataset) for column in columns)
    for name in doubled:
        problem = f"two features are called {name!r}, and NVTabular would silently keep one"
        yield Problem("features", problem, "rename one with ops.Rename(postfix=…)")
    columns = tuple(column for column in columns if not column.is_label)
    yield from _check_tags(columns, dataset)
    yield from _check_history(recipe, columns)
    yield from _check_operators(columns)
    if dataset is not None:
        yield from _check_origins(recipe, columns, dataset)
        yield from _check_models(recipe, columns, dataset)


def _schema(names: Iterable[str], dataset: Dataset | None) -> Any:
    if dataset is None:
        return blank_schema(names)
    # A column has one type in all its rows, so a few rows are enough.
    return table_schema(dataset.joined(dataset.interactions.head(100)))


def _unknown_columns(names: Iterable[str], dataset: Dataset) -> Iterator[Problem]:
    known = [*dataset.users.columns, *dataset.items.columns, *dataset.context_columns]
    if dataset.timestamp is not None:
        known.append(dataset.timestamp)
    for name in names:
        if name not in known:
            problem = f"the data set {dataset.name} has no column {name!r}"
            yield Problem("features", problem, choose(name, known))


def _check_tags(columns: Sequence[FeatureColumn], dataset: Dataset | None) -> Iterator[Problem]:
    item_ids = 0
    mixed = [column for column in columns if not column.parts and dataset is not None and column.inputs]
    for column in mixed:
        problem = f"{column.name!r} is made of {', '.join(map(repr, column.inputs))}, of several tables"
        yield Problem("features", problem, "make a feature of one table's columns; the models combine them")
    untagged = [column.name for column in columns if not column.parts and column not in mixed]
    if untagged:
        needs, has = ("needs", "has") if len(untagged) == 1 else ("need", "have")
        problem = (
            f"{', '.join(map(repr, untagged))} {needs} exactly one of the tags USER, ITEM and CONTEXT, "
            f"and {has} none of them"
        )
        yield Problem("features", problem, f"write graph[{untagged}] >> TagAsUserFeatures(), or the like")
    for column in columns:
        if len(column.parts) > 1:
            found = " and ".join(part.upper() for part in column.parts)
            problem = f"{column.name!r} needs exactly one of the tags USER, ITEM and CONTEXT, and has {found}"
            remedy = "end its chain with TagAsUserFeatures(), TagAsItemFeatures() or AddTags([Tags.CONTEXT])"
            yield Problem("features", problem, remedy)
        if column.is_id and column.parts == ("item",):
            item_ids += 1
            steps = [step.operator for step in column.operators]
            if steps[-1:] != ["Categorify"] or column.is_list:
                problem = f"the item id {column.name!r} is not categorical"
                remedy = "write ['item_id'] >> ops.Categorify() >> ops.TagAsItemID()"
                yield Problem("features", problem, remedy)
    if item_ids != 1:
        problem = f"expected exactly one feature tagged ITEM_ID, found {item_ids}"
        remedy = "write ['item_id'] >> ops.Categorify() >> ops.TagAsItemID(), once"
        yield Problem("features", problem, remedy)


def _check_history(recipe: Recipe, columns: Iterable[FeatureColumn]) -> Iterator[Problem]:
    by_name = {column.name: column for column in columns}
    usable = [
        column.name
        for column in by_name.values()
        if column.parts == ("item",) and column.kind == "cat" and not column.is_list
    ]
    for position, name in enumerate(recipe.serving.history_columns):
        where = f"serving.history_columns[{position}]"
        column = by_name.get(name)
        if column is None:
            yield Problem(where, f"there is no feature {name!r}", choose(name, usable))
        elif name not in usable:
            kind = (
                "a list" if column.is_list else "a number" if column.kind == "num" else "not an item feature"
            )
            problem = f"{name!r} is {kind}; a history is made of categorical item features"
            yield Problem(where, problem, choose(name, usable))


def _check_operators(columns: Iterable[FeatureColumn]) -> Iterator[Problem]:
    """Find operators that cannot be served, and parameters that NVTabular accepts but cannot fit."""
    for column in columns:
        for step in column.operators:
            refusal = why_unsupported(step.op)
            if refusal is not None:
                name = operator_name(step.op)
                problem = f"{column.name!r} uses {name}, which Tiercel cannot serve: {refusal[0]}"
                yield Problem("features", problem, refusal[1][:1].lower() + refusal[1][1:])
            if step.operator == "Bucketize":
                boundaries = list(step.op.boundaries(step.column))
                if not all(isinstance(bound, numbers.Real) for bound in boundaries):
                    problem = f"the boundaries of {column.name!r} are not all numbers: {boundaries}"
                    yield Problem("features", problem, "give ops.Bucketize numbers that rise")
                elif boundaries != sorted(set(boundaries)):
                    problem = f"the boundaries of {column.name!r} do not rise: {boundaries}"
                    yield Problem("features", problem, "sort them and drop repeated ones")
            if step.operator == "JoinGroupby" and all(stat in ("min", "max") for stat in step.op.stats):
                problem = f"{column.name!r}: NVTabular can't fit JoinGroupby for minima and maxima alone"
                yield Problem("features", problem, "add 'count' or 'mean' to its stats")


def why_unsupported(op: Any) -> tuple[str, str] | None:
    """Return why an operator cannot be served and what to do instead; None if it can."""
    key = key_of(op)
    entry = TABLE.get(key)
    if key == "nvtabular.TargetEncoding" and op.kfold > 1:
        # Models are trained on NVTabular's output, which depends on the fold; serving could not reproduce it.
        return "its folds depend on the row's position", "fit it with kfold=1"
    if entry is not None and entry.lower is not None:
        return None
    known = {key.partition(".")[2] for key, entry in TABLE.items() if entry.lower is not None} - STRUCTURE
    served = f"use {', '.join(sorted(known))}"
    if entry is None:
        return "it is not an operator of NVTabular 23.08", served
    remedy = entry.remedy if entry.advise is None else entry.advise(op, entry.remedy)
    return entry.note, remedy or served


def _check_origins(recipe: Recipe, columns: Iterable[FeatureColumn], dataset: Dataset) -> Iterator[Problem]:
    tables = {"user": dataset.users, "item": dataset.items}
    for column in columns:
        yield from _check_events(column)
        for name in column.inputs:
            home = home_of(name, dataset)
            if len(column.parts) == 1 and home != column.part:
                wrong = column.part.upper()
                problem = f"{column.name!r} is tagged {wrong}, but its column {name!r} is in {_TABLES[home]}"
                yield Problem("features", problem, f"tag it {home.upper()}")
            if home == "context" and name in _targets(recipe):
                problem = f"{column.name!r} shows the models their target {name!r}"
                yield Problem("features", problem, "take it out: it is not known when a request comes")
            values = tables.get(home, dataset.interactions)[name]
            yield from _check_types(column, name, values)
        if column.is_id and column.parts == ("item",) and column.inputs != (dataset.item_id,):
            problem = f"the item id is made of {', '.join(column.inputs)}, not of {dataset.item_id!r}"
            yield Problem(
                "features", problem, f"tag the feature of {dataset.item_id!r} as the item id, and only that"
            )


def _check_events(column: FeatureColumn) -> Iterator[Problem]:
    """Find operators that group interactions into sessions; training packs each interaction by itself."""
    makers = (step for step in column.operators if (entry := TABLE.get(key_of(step.op))) and entry.keys)
    for step in makers:
        problem = f"{column.name!r}: {step.operator} makes a session of several interactions, and a recipe's "
        problem += "models learn from each by itself"
        remedy = "give the models the history (use_history), or train a model of sessions yourself and call "
        yield Problem("features", problem, f"{remedy}build_release (docs/bring-your-own.md)")


def _targets(recipe: Recipe) -> tuple[str, ...]:
    """Return the target columns of the ranker."""
    task: Any = None if recipe.ranking is None else recipe.ranking.task
    if isinstance(task, NamedScores):
        return task.target_columns
    return () if task is None else (task.target,)


def _check_models(recipe: Recipe, columns: Iterable[FeatureColumn], dataset: Dataset) -> Iterator[Problem]:
    """Yield what each model needs and the features or the data do not provide."""
    sides: dict[str, dict[str, Any]] = {"user": {}, "item": {}}
    for column in columns:
        if len(column.parts) == 1:
            side = sides["item" if column.part == "item" else "user"]
            one, many = ("category", "categories") if column.kind == "cat" else ("number", "numbers")
            side[column.name] = many if column.is_list else one
    models: list[tuple[str, Any]] = [(f"retrieval {model.name!r}", model) for model in recipe.models]
    for where, model in [*models, ("ranking", recipe.ranking)]:
        if isinstance(model, FitsFeatures):
            for problem in model.misfits(sides["user"], sides["item"], dataset.timestamp is not None):
                yield problem.within(where)


_TABLES = {"user": "users", "item": "items", "context": "interactions"}


def _check_types(column: FeatureColumn, name: str, values: Any) -> Iterator[Problem]:
    kind = held_in(values)
    on_values = itertools.takewhile(lambda step: not step.looks_up, column.operators)
    for operator in (step.operator for step in on_values if step.operator in _LISTS_ONLY):
        if not kind.startswith("lists"):
            problem = f"{column.name!r}: {operator} is for lists, but {name!r} holds {kind}"
            yield Problem("features", problem, "name a column of lists, or leave the operator out")
            return
    for step in column.operators if kind.startswith("lists") else ():
        if step.looks_up or getattr(step.op, "encode_type", None) == "combo":
            problem = (
                f"{column.name!r}: {step.operator} takes one value a row here, but {name!r} holds {kind}"
            )
            yield Problem("features", problem, "name a column with one value a row")
            return
    for step in column.operators:
        if step.operator == "Categorify" or step.looks_up or isinstance(step.op, OwnOperator):
            return  # from here on values are ids or table columns, or have a type known only after the fit
        if step.operator in _NUMERIC and kind in ("strings", "lists of strings"):
            problem = f"{column.name!r}: {step.operator} needs numbers, but {name!r} holds {kind}"
            yield Problem("features", problem, "use ops.Categorify() for strings")
        elif step.operator in _SCALAR_ONLY and kind.startswith("lists"):
            problem = f"{column.name!r}: {step.operator} does not work on lists, which {name!r} holds"
            yield Problem("features", problem, "use Categorify, LogOp or Normalize for lists")
    if kind.endswith("strings"):
        problem = f"{column.name!r} reaches the models as {kind}"
        yield Problem("features", problem, "put ops.Categorify() into its chain")


def held_in(values: Any) -> str:
    """Return what a plain column holds: ``numbers`` or ``strings``, or ``lists of`` them."""
    if values.dtype != object:
        return "numbers"
    present = [value for value in values if value is not None]
    if present and isinstance(present[0], list | np.ndarray):
        element = next((value for row in present for value in row if value is not None), None)
        return "lists of strings" if isinstance(element, str) else "lists of numbers"
    return "strings"
