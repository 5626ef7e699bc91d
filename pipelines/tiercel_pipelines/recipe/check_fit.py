"""Problems that appear only when the workflow is fitted: NVTabular's errors, and export refusals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from tiercel_export.errors import ExportError, UnsupportedOperator, WorkflowError
from tiercel_export.lowering.expressions import RAW, REFUSED
from tiercel_export.workflow.cut import WorkflowParts, cut_workflow, trace_part
from tiercel_export.workflow.trace import raw_column
from tiercel_serving.errors import MachineFault
from tiercel_serving.machine_faults import fault_of
from tiercel_serving.problems import Problem
from tiercel_serving.reorder.per_request import name_problems
from tiercel_serving.rules.expressions.types import Schema, Type, type_of, type_of_dtype
from tiercel_serving.rules.table import AskingRule, asked
from tiercel_serving.stages.specs import FACE

from ..data import Dataset
from ..errors import RecipeError
from ..features.graph_columns import feature_columns, passed_on
from ..features.raw_columns import raw_columns
from ..features.workflow import first_unfit, fit_workflow
from .recipe import Recipe

#: Names that NVTabular's Categorify reserves.
_TAKEN = ("labels", "order")
#: Most bytes of a column's name. NVTabular makes longer file names of it, and a file name holds 255 bytes.
_LONGEST = 220


def fit_checked(
    recipe: Recipe, dataset: Dataset, interactions: pd.DataFrame, directory: Path, client: Any = None
) -> Any:
    """Fit a recipe's workflow, on the Dask cluster of ``client`` if given, and check that it can be exported.

    Raises
    ------
    RecipeError
        NVTabular can't fit it, or the fitted workflow can't be compiled; every column is named.
    MachineFault, OSError, MemoryError
        The machine is at fault; such errors pass unchanged, and the caller names the directory.
    """
    try:
        workflow = fit_workflow(recipe, dataset, interactions, directory, client=client)
    except ExportError as error:
        raise RecipeError(recipe.title, [problem_of(error)]) from error
    except Exception as error:
        if isinstance(error, MachineFault) or fault_of(error, directory) is not None:
            raise
        raise RecipeError(recipe.title, [_unfit(recipe, dataset, interactions, error)]) from error
    problems = list(workflow_problems(workflow, recipe.rows)) or list(
        request_problems(recipe, dataset, cut_workflow(workflow, rows=recipe.rows))
    )
    if problems:
        raise RecipeError(recipe.title, problems)
    return workflow


def workflow_problems(workflow: Any, rows: str | None = None) -> Iterator[Problem]:
    """Yield each output of a fitted workflow that can't be compiled or that no model can read."""
    try:
        cut = cut_workflow(workflow, rows=rows)
        columns = {part: trace_part(cut, part) for part in ("user", "item")}
    except WorkflowError as error:
        yield problem_of(error)
        return
    combined = passed_on(workflow)
    worked_on = {column.name for column in feature_columns(workflow) if column.operators}
    for part, traced in columns.items():
        for name in cut.output_names(part):
            column = traced.get(name)
            if column is None:
                yield Problem("features", f"no operator makes {name!r}", "take it out of the graph")
            elif column.op == REFUSED:
                yield problem_of(dict(column.own)["error"], name)
            elif column.op in RAW and name in combined and name in worked_on:
                whole = combined[name]
                problem = (
                    f"{name!r} comes out as it went in: {whole!r} after it gives its columns on as they came"
                )
                remedy = f"take the combination alone, combined[{whole!r}], or write it before {name!r}"
                yield Problem("features", problem, remedy)
            elif column.is_text:
                problem = f"{name!r} reaches the models as {'lists of ' if column.is_list else ''}strings"
                yield Problem("features", problem, "put ops.Categorify() into its chain")


def request_problems(recipe: Recipe, dataset: Dataset, cut: WorkflowParts) -> Iterator[Problem]:
    """Yield request values and user columns of rules and steps that conflict with the features."""
    served, asks = recipe.served, asked(recipe.served.rules)
    read = {name: raw_column(cut.workflow, name) for name in cut.input_names("user")}
    types = {
        name: type_of_dtype("bytes" if of.is_text else of.dtype, of.is_list) for name, of in read.items()
    }
    context = {name for name in read if cut.input_part(name, "user") == "context"}
    users = {str(name): Type("bytes") for name in dataset.users.columns}  # kept only where nothing reads it
    wanted = [name for name in asks.users if name in dataset.users and name not in types]
    users |= {name: type_of(column) for name, column in raw_columns(dataset.users, wanted, "users").items()}
    users |= {name: of for name, of in types.items() if name not in context}
    for place, rule in enumerate(served.rules):
        if isinstance(rule, AskingRule):
            columns = raw_columns(dataset.items, rule.columns())
            items = {name: type_of(column) for name, column in columns.items()}
            known = Schema(items, users, {name: types[name] for name in context})
            yield from (problem.within(f"serving.rules[{place}]") for problem in rule.unfit(known))
    carried = {*read, *asks.users, *asks.requests}
    for taken, whose in ((carried, "a request column"), (FACE, "a tensor of every request or answer")):
        yield from (problem.within("serving") for problem in name_problems(served.placed(), taken, whose))


def problem_of(error: ExportError, output: str | None = None) -> Problem:
    """Return an export's refusal as a problem of the recipe, about ``output`` if one is named."""
    about = "" if output is None else f"{output!r} can't be served: "
    if isinstance(error, UnsupportedOperator):
        problem = f"{about}{error.operator} on column {error.column!r}: {error.reason}"
        return Problem("features", problem, error.remedy[:1].lower() + error.remedy[1:])
    problem, _, remedy = str(error).rpartition("; ")
    return Problem("features", about + (problem or remedy), remedy if problem else "correct the graph")


def _unfit(recipe: Recipe, dataset: Dataset, interactions: pd.DataFrame, error: Exception) -> Problem:
    """Return the problem of the operator and columns that NVTabular can't fit."""
    found = first_unfit(recipe, dataset, interactions)
    if found is None:
        problem = f"NVTabular can't fit the graph ({type(error).__name__}: {error})"
        return Problem("features", problem, "correct the graph, or the columns that it reads")
    operator, columns, reason = found
    unwritable = [name for name in columns if {"/", "\0"} & set(name) or len(name.encode()) > _LONGEST]
    problem = (
        f"NVTabular can't fit {operator} on {', '.join(map(repr, unwritable or columns))} "
        f"({type(reason).__name__}: {reason})"
    )
    if unwritable:
        remedy = f"NVTabular can't name a file by {unwritable[0]!r}: put ops.Rename(…) before the operator"
        return Problem("features", problem, remedy)
    taken = [name for name in columns if name in _TAKEN]
    if taken:
        remedy = f"NVTabular needs the name {taken[0]!r} for itself: put ops.Rename(…) before the operator"
        return Problem("features", problem, remedy)
    empty = [name for name in columns if _holds_nothing(dataset, interactions, name)]
    if empty:
        remedy = f"{empty[0]!r} holds no value at all in what is fitted: fill it in its table, give more "
        remedy += "interactions, or leave the column out"
        return Problem("features", problem, remedy)
    return Problem("features", problem, "correct that chain, or the values of its columns")


def _holds_nothing(dataset: Dataset, interactions: pd.DataFrame, name: str) -> bool:
    """Return whether a column holds only nulls, empty lists and lists of nulls, in the interactions' rows."""
    homes = ((dataset.users, dataset.user_id), (dataset.items, dataset.item_id), (interactions, None))
    found = next((home for home in homes if name in home[0].columns), None)
    if found is None:
        return False
    table, key = found
    column = table[name] if key is None else table[name][table[key].isin(interactions[key])]
    return all(
        isinstance(value, Iterable) and not isinstance(value, str) and all(one is None for one in value)
        for value in column.dropna()
    )
