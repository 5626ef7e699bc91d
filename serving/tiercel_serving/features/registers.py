"""Registers, the values that the steps of a feature program read and write.

A register has four arrays:

``x``
    ``[C, n]``: C columns that share an operator chain, n rows. dtype int64, float32, float64, or object
    for ``bytes``. A list column is ``[1, m]``, its m elements.
    If only vocabularies read a text column (``packed`` in the JSON of its load), ``x`` may be packed
    :class:`~tiercel_serving.lookups.strings.Strings` instead, with the C columns of n one after the other.
``valid``
    ``[C, n]`` boolean, False for a null; or None if there is none. None in a float register, where a null is
    NaN.
``offsets``, ``row_valid``
    For a list column, as in :class:`~tiercel_serving.columns.Column`; None otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..spec import Array


class Register(NamedTuple):
    """The columns that a step writes; see the module's docstring."""

    x: Array
    valid: npt.NDArray[np.bool_] | None = None
    offsets: npt.NDArray[np.int64] | None = None
    row_valid: npt.NDArray[np.bool_] | None = None


Registers = list[Register]
Columns = Mapping[str, Column]


class Step(Protocol):
    """One vectorised step."""

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Compute the step's register from earlier ones and the request's columns."""
        ...


def nan_where_null(x: Array, valid: Array | None) -> Array:
    """Return a float array with NaN in place of nulls."""
    if valid is None or valid.all():
        return x
    return np.where(valid, x, x.dtype.type(np.nan))


def where_all_valid(
    first: npt.NDArray[np.bool_] | None, second: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.bool_] | None:
    """Return which values are valid in both; None means all."""
    given = [valid for valid in (first, second) if valid is not None]
    valid = given[0] & given[-1] if given else None
    return None if valid is None or valid.all() else valid


class Elementwise:
    """Base of the steps that map each element; lists keep their offsets and null rows."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Apply :meth:`apply` to the source register."""
        source = registers[self._source]
        x, valid = self.apply(source.x, source.valid)
        return Register(x, valid, source.offsets, source.row_valid)

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Return the new ``x`` and ``valid``."""
        raise NotImplementedError
