"""The names that a recipe can import, and where each is defined."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from tiercel_serving.kinds import Kinds
from tiercel_serving.problems import choose

from .old_names import NOW, old_name

#: Names that are in no table of kinds.
PLAIN: Mapping[str, str] = {
    "Recipe": "tiercel_pipelines.recipe.recipe",
    "SplitSettings": "tiercel_pipelines.recipe.recipe",
    "TrainingSettings": "tiercel_pipelines.recipe.recipe",
    "Target": "tiercel_pipelines.tasks.multi_task",
    "load_recipe": "tiercel_pipelines.recipe.load",
    "ServingSettings": "tiercel_serving.settings",
    "Negatives": "tiercel_pipelines.tasks.negatives",
    "Debiasing": "tiercel_pipelines.tasks.negatives",
    "PerRequest": "tiercel_serving.reorder.per_request",
    "SeenFilter": "tiercel_serving.stores.bloom",
    # The same settings with some fields changed.
    "replace": "msgspec.structs",
}


def tables() -> tuple[Kinds[Any], ...]:
    """Return the tables of all kinds that a recipe may use."""
    from tiercel_serving.reorder.table import REORDER
    from tiercel_serving.rules.table import RULES
    from tiercel_serving.sources.table import SOURCES
    from tiercel_serving.stores.table import STORES

    from ..data import DATASETS
    from ..families.table import RANKING_FAMILIES, RETRIEVAL_FAMILIES
    from ..tasks.table import RANKING_TASKS, RETRIEVAL_TASKS

    models = (RETRIEVAL_FAMILIES, RANKING_FAMILIES, RETRIEVAL_TASKS, RANKING_TASKS)
    return (DATASETS, *models, SOURCES, RULES, REORDER, STORES)


def names() -> Iterator[str]:
    """Yield all names."""
    yield from PLAIN
    for table in tables():
        yield from table.class_names()


def find_name(name: str) -> Any:
    """Import the object of a name.

    Raises
    ------
    ImportError
        If a capitalised name does not exist, or is of an older Tiercel; it says what to write instead.
    AttributeError
        If any other name does not exist.
    """
    if name in PLAIN:
        return getattr(importlib.import_module(PLAIN[name]), name)
    for table in tables():
        if name in table.class_names():
            return table.find(table.class_names()[name])
    if name[:1].isupper() and name not in NOW:
        close = choose(name, names())
        remedy = close if close.startswith("did") else "docs/models.md and docs/recipes.md list what there is"
        raise ImportError(f"there is no {name} to write in a recipe; {remedy}")
    raise old_name(name, "tiercel_pipelines.recipe")
