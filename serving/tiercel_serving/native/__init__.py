"""Loops in C. If they were not built, slower NumPy code, or ONNX Runtime for models, takes their place.

Installing the package builds the functions (``*.c`` beside this file) if there is a C compiler. They are
plain C; ``calls.c`` makes them callable from Python without Python's headers. Those that take long run
without the GIL.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

#: Function → its arguments: p is a contiguous array or None, t a tuple of arrays, n an integer.
ARGUMENTS: Mapping[str, str] = {
    "mark": "pnpnn",
    "draw_uniform": "nnnppp",
    "sort_by_score": "nnppppp",
    "best_by_score": "nnnnnn" + "ppppp",
    "put_in_place": "nnnpppp",
    "put_by_draw": "nnppppp",
    "put_pinned": "nnnnppppp",
    "find_texts": "pnpnn" + "pnpppp",
    "split_texts": "pnnp",
    "place_by_vectors": "nnnnnn" + "ppppppp",
    "place_by_mix": "nnnnn" + "pppppp",
    "place_under_caps": "nnnnn" + "ppppp",
    "place_in_shares": "nnnn" + "pppp",
    "run_loops": "nnnptp",
    "take_rows": "nnnppp",
    "take_from": "nntpp",
    "latest_rows": "nnnn" + "ppppp",
    "keep_first": "nnnn" + "ppppppppp",
    "blank_scores": "nnppp",
    "inner_products": "nnnn" + "pppp",
    "put_in_blocks": "nnpp",
    "best_of_all": "nnnnnn" + "pppppp",
}


@cache
def library() -> Any | None:
    """Return the built functions; None if they were not built, or not for this machine or version."""
    found = sorted(Path(__file__).parent.glob("libtiercel_native*.so"))
    if not found or sys.byteorder != "little":
        return None
    try:
        return open_library(found[0])
    except (OSError, AttributeError):  # AttributeError: built from the sources of another version
        return None


def open_library(file: Path) -> Any:
    """Open the functions in a shared library.

    Raises
    ------
    OSError, AttributeError
        The file can't be loaded, or lacks a function.
    """
    opened = ctypes.PyDLL(str(file))
    bind = opened.bind_function
    bind.argtypes, bind.restype = [ctypes.py_object], ctypes.py_object
    bound = SimpleNamespace()
    for name, arguments in ARGUMENTS.items():
        place = ctypes.cast(getattr(opened, name), ctypes.c_void_p).value
        about = place, arguments.encode(), np.ndarray, object.__basicsize__, np.zeros(1, np.int64)
        setattr(bound, name, bind(about))
    return bound
