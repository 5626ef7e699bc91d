"""Run a feature program over a whole table, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ..columns import Column, take_rows
from ..spec import Array

#: Rows per block, which bounds the temporaries of a feature program but not its results.
_BLOCK = 65_536


class Program(Protocol):
    """The part of a feature program that :func:`transform` uses."""

    def packed(self, columns: Mapping[str, Column], n: int) -> dict[str, Array]:
        """Return the packed tensors of ``n`` rows."""
        ...


def transform(program: Program, columns: Mapping[str, Column], n: int) -> dict[str, Array]:
    """Run a feature program over all rows, block by block.

    Parameters
    ----------
    program
        The compiled program.
    columns
        Its inputs, ``n`` rows each.
    n
        Number of rows, at least 1.

    Returns
    -------
    Packed tensors ``[n, …]``, as :meth:`.FeatureProgram.packed` returns them.
    """
    blocks = []
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(n, start + _BLOCK))
        part = dict(columns) if n <= _BLOCK else {name: take_rows(c, rows) for name, c in columns.items()}
        blocks.append(program.packed(part, len(rows)))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
