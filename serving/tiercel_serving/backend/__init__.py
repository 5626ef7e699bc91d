"""The ``tiercel`` backend: Tiercel's stages in Triton's own process (``tiercel_backend.c``), if it was built.

Installing the package builds it where there is a C compiler; where there is none, Triton's own Python
backend serves.
"""

from __future__ import annotations

from pathlib import Path

#: What Triton expects in ``<backends>/tiercel/``.
NAME = "libtriton_tiercel.so"


def library() -> Path | None:
    """Return the built backend, or None."""
    found = sorted(Path(__file__).parent.glob("libtriton_tiercel*.so"))
    return found[0] if found else None
