"""Compilers: they turn a fitted workflow, retrieval models and a ranker into a release for Triton.

>>> from tiercel_export import Vectors, build_release  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .forms import Given, ItemWeights, Vectors
    from .release.build import FeatureOptions, TableColumns, build_release

__all__ = ["FeatureOptions", "Given", "ItemWeights", "TableColumns", "Vectors", "build_release"]


def __getattr__(name: str) -> Any:
    """Import a name on use, because it loads torch and NVTabular."""
    if name in __all__:
        return getattr(
            import_module(
                ".forms" if name in ("Given", "ItemWeights", "Vectors") else ".release.build", __name__
            ),
            name,
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
