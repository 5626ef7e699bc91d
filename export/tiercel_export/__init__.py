"""Compilers: fitted workflow, towers, rankers and indexes in, a release for Triton out.

>>> from tiercel_export import build_release  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .release.build import build_release

__all__ = ["build_release"]


def __getattr__(name: str) -> Any:
    """Import ``build_release`` when it is asked for: it brings torch and NVTabular along."""
    if name == "build_release":
        from .release.build import build_release

        return build_release
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
