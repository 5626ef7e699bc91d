"""Switch off NumPy's floating-point warnings, at a tenth of the cost of ``numpy.errstate`` before NumPy 2."""

from __future__ import annotations

from typing import Any

import numpy as np

# The functions that errstate calls. NumPy 2 no longer has them, but its errstate is fast.
_GET: Any = getattr(np, "geterrobj", None)
_SET: Any = getattr(np, "seterrobj", None)


class Quiet:
    """``numpy.errstate(all="ignore")`` for a ``with`` block, in this thread."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before: Any
        if _GET is None:
            self._before = np.errstate(all="ignore")
            self._before.__enter__()
        else:
            self._before = _GET()
            # Buffer size, error mask and callback: mask 0 ignores every kind of error.
            _SET([self._before[0], 0, None])

    def __exit__(self, *error: Any) -> None:
        if _GET is None:
            self._before.__exit__(*error)
        else:
            _SET(self._before)
