"""One check of a recipe: its settings judge themselves, and its graph and columns are held to its data."""

from __future__ import annotations

from ..data import Dataset
from ..errors import RecipeError
from .check_data import data_problems
from .check_graph import graph_problems
from .recipe import Recipe


def check_recipe(recipe: Recipe, dataset: Dataset | None = None) -> Recipe:
    """Return the recipe itself if it makes sense; with its data set, columns and their types are checked too.

    Raises
    ------
    RecipeError
        With every problem that was found.
    """
    problems = recipe.shape_problems()
    if not problems:
        problems = [*recipe.problems(), *graph_problems(recipe, dataset)]
        problems += [] if dataset is None else data_problems(recipe, dataset)
    if problems:
        raise RecipeError(recipe.title, problems)
    return recipe
