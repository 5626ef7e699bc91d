"""Membership tests in the conditions of filters; they return 0 or 1 and never null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..spec import Array
from .registers import Elementwise


def _flags(true: Any, valid: Array | None) -> Array:
    flags: Array = np.asarray(true if valid is None else true & valid).astype(np.int64)
    return flags


class Contained(Elementwise):
    """Whether a number is in the step's list; a null is not."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._values = arrays["values"]

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Test each number."""
        return _flags(np.isin(x, self._values), valid), None


class ContainedText(Elementwise):
    """Whether a text is in the step's list; a null is not."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._values = [value.encode("utf-8", "surrogatepass") for value in step["values"]]

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compare with each text of the list."""
        found = np.zeros(x.shape, np.bool_)
        for value in self._values:
            found |= (x == value).astype(np.bool_)
        return _flags(found, valid), None
