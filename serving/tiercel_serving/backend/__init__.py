"""The ``tiercel`` backend: Tiercel's stages in Triton's own process (``tiercel_backend.c``), if it was built.

Installing the package builds it if a C compiler is available. Otherwise Triton's stock Python backend runs
the stages.
"""

from __future__ import annotations

from pathlib import Path

#: The file name that Triton expects in ``<backends>/tiercel/``.
NAME = "libtriton_tiercel.so"


def library() -> Path | None:
    """Return the path of the built backend, or None."""
    found = sorted(Path(__file__).parent.glob("libtriton_tiercel*.so"))
    return found[0] if found else None
