"""The check of a recipe: its settings check themselves; its graph and columns are compared with its data."""

from __future__ import annotations

from tiercel_serving.mistyped import plain

from ..data import Dataset
from ..errors import RecipeError
from .check_data import data_problems
from .check_graph import graph_problems
from .recipe import Recipe


def check_recipe(recipe: Recipe, dataset: Dataset | None = None) -> Recipe:
    """Return the recipe if it makes sense; with its data set, columns and their types are checked too.

    NumPy's scalars among its settings have become Python's numbers.

    Raises
    ------
    RecipeError
        With every problem that was found.
    """
    problems = recipe.shape_problems()
    if not problems:
        recipe = plain(recipe)
        problems = [*recipe.problems(), *graph_problems(recipe, dataset)]
        problems += [] if dataset is None else data_problems(recipe, dataset)
    if problems:
        raise RecipeError(recipe.title, problems)
    return recipe
