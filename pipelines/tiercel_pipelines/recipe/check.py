"""One check of a recipe: its settings judge themselves, and its graph and columns are held to its data."""

from __future__ import annotations

from tiercel_serving.problems import Problem

from ..data import Dataset
from ..errors import RecipeError
from .check_data import data_problems
from .check_graph import graph_problems
from .recipe import Recipe


def check_recipe(recipe: Recipe, dataset: Dataset | None = None) -> Recipe:
    """Return the recipe itself if it makes sense.

    Parameters
    ----------
    recipe
        The recipe.
    dataset
        The loaded data set; with it, columns and their types are checked too.

    Raises
    ------
    RecipeError
        With every problem that was found.
    """
    problems = find_problems(recipe, dataset)
    if problems:
        raise RecipeError(recipe.title, problems)
    return recipe


def find_problems(recipe: Recipe, dataset: Dataset | None = None) -> list[Problem]:
    """Return every problem of a recipe; with its data set, those about columns too."""
    if wrong := recipe.shape_problems():
        return wrong
    wrong = [*recipe.problems(), *graph_problems(recipe, dataset)]
    return wrong if dataset is None else [*wrong, *data_problems(recipe, dataset)]
