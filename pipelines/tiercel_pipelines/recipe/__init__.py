"""Everything that a recipe uses; each name is imported on first use.

::

    from tiercel_pipelines.recipe import DLRM, Index, MovieLens100K, Popular, Recipe, TwoTower

Every kind is here under the name of its class: model families, tasks, sources, rules, reorder steps, stores.
"""

from __future__ import annotations

from typing import Any

from .names import find_name, names


def __getattr__(name: str) -> Any:
    return find_name(name)


def __dir__() -> list[str]:
    return sorted(names())
