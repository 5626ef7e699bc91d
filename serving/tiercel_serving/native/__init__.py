"""What is done in C where it was built; elsewhere NumPy, or ONNX Runtime for models, does the same, slower.

Installing the package builds the functions (``*.c`` beside this file) where there is a C compiler. They are
plain C, which ``calls.c`` lets Python call without Python's headers; while they run, other threads do too.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

#: Function → its arguments: p is an array in one piece or None, t a tuple of arrays, n a whole number.
ARGUMENTS: Mapping[str, str] = {
    "mark": "pnpn",
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
    "inner_products": "nnnn" + "pppp",
    "put_in_blocks": "nnpp",
    "best_of_all": "nnnnnn" + "pppppp",
}


@cache
def library() -> Any | None:
    """Return the built functions, or None: they were not built, or for another kind of machine."""
    found = sorted(Path(__file__).parent.glob("libtiercel_native*.so"))
    if not found or sys.byteorder != "little":
        return None
    try:
        return open_library(found[0])
    except (OSError, AttributeError):  # AttributeError: built from another version's sources
        return None


def open_library(file: Path) -> Any:
    """Open the functions in a file.

    Raises
    ------
    OSError, AttributeError
        It can't be loaded, or lacks one.
    """
    opened = ctypes.PyDLL(str(file))
    bind = opened.bind_function
    bind.argtypes, bind.restype = [ctypes.py_object], ctypes.py_object
    bound = SimpleNamespace()
    for name, arguments in ARGUMENTS.items():
        place = ctypes.cast(getattr(opened, name), ctypes.c_void_p).value
        setattr(bound, name, bind((place, arguments.encode())))
    return bound
