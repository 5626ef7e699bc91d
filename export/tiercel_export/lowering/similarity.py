"""ColumnSimilarity."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from .expressions import Columns, Expression, Where, combine


def lower_column_similarity(
    op: Any, names: list[str], columns: Mapping[str, Expression], where: Where
) -> Columns:
    """``<a>_<b>_sim``: inner product of the sparse feature matrix rows that two columns of ids select.

    The metrics differ only in how NVTabular weights the matrices beforehand; its own code for this runs here.
    """
    out = dict(columns)
    features = FeatureMatrices(op)
    for group in where.selector.subgroups:
        left, right = group.names
        name = f"{left}_{right}_sim"
        for side in (left, right):
            _check_ids(columns[side], side, where)
        dtype = features.dtype
        if dtype not in ("float32", "float64"):
            raise where.refuse(
                left,
                f"its feature matrix holds {dtype}, to which NVTabular rounds the similarity",
                "Give a matrix of float64",
            )
        sources = (columns[left], columns[right])
        own = {"features": features}
        out[name] = combine("similarity", sources, own=own, physical=dtype, dtype=dtype)
    return out


def _check_ids(source: Expression, name: str, where: Where) -> None:
    if source.is_list or source.physical != "int64" or source.dtype == "bool":
        kind = f"lists of {source.dtype}" if source.is_list else source.dtype
        raise where.refuse(
            name, f"rows of a matrix are named by integers, the column holds {kind}", "Categorify it first"
        )


class FeatureMatrices:
    """The weighted feature matrices of one operator. Equal if the operator is the same object.

    Parameters
    ----------
    op
        The ColumnSimilarity.
    """

    def __init__(self, op: Any) -> None:
        self._op = op
        ready = copy.copy(op)  # the operator itself weights its matrices at its first transform
        ready.on_device = False
        ready._initialize_features()
        self._matrices = {"left": ready.left_features, "right": ready.right_features}

    @property
    def dtype(self) -> str:
        """The dtype of the similarities, which is that of the left matrix."""
        return str(self._matrices["left"].data.dtype.name)

    def arrays(self) -> dict[str, Any]:
        """Return each side's CSR: ``<side>_ends [rows + 1]``, ``_columns`` and ``_data`` ``[entries]``."""
        out: dict[str, Any] = {}
        for side, matrix in self._matrices.items():
            out[f"{side}_ends"] = matrix.indptr.astype(np.int64)
            out[f"{side}_columns"] = matrix.indices.astype(np.int64)
            out[f"{side}_data"] = matrix.data
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureMatrices) and other._op is self._op

    def __hash__(self) -> int:
        return id(self._op)
