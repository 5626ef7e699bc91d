"""Checks of a whole recipe: its settings by themselves, and its graph and columns against its data."""

from __future__ import annotations

from tiercel_serving.mistyped import plain

from ..data import Dataset
from ..errors import RecipeError
from .check_data import data_problems
from .check_graph import graph_problems
from .recipe import Recipe


def check_recipe(recipe: Recipe, dataset: Dataset | None = None) -> Recipe:
    """Return the recipe if it is valid; with a data set, also check columns and their types.

    NumPy scalars among the settings are converted to Python numbers.

    Raises
    ------
    RecipeError
        If the recipe has problems; it lists all of them.
    """
    problems = recipe.shape_problems()
    if not problems:
        recipe = plain(recipe)
        problems = [*recipe.problems(), *graph_problems(recipe, dataset)]
        problems += [] if dataset is None else data_problems(recipe, dataset)
    if problems:
        raise RecipeError(recipe.title, problems)
    return recipe
