"""What an operator that can't be compiled leaves in its frame: which columns it stops, and which pass on.

Each function is ``frame(operator, names, columns, stop)``: the columns that the operator is applied to, those
of its input frame, and ``stop(name)``, which gives what stands for a column that is stopped. Its own outputs
are stopped elsewhere. :data:`ANYTHING` stands for columns of whatever name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from .expressions import Columns, Expression

#: The key of a frame that may have columns of any name, each of which would be this one.
ANYTHING = ""

Stop: TypeAlias = Callable[[str], Expression]
Frame: TypeAlias = Callable[[Any, Sequence[str], Mapping[str, Expression], Stop], Columns]


def own_columns(op: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return nothing: it gives back the columns that it makes, and no others."""
    return {}


def named_columns(op: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the columns that it is applied to: LambdaOp gives back its dependencies, too, if they are."""
    return {name: stop(name) for name in names}


def grouped_columns(op: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the keys that it groups by, whether it is applied to them or not."""
    return {name: stop(name) for name in op.groupby_cols}


def hashed_frame(op: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the whole frame: HashBucket changes the columns that its ``num_buckets`` name."""
    changed = op.num_buckets if isinstance(op.num_buckets, dict) else names
    return {name: stop(name) if name in changed else column for name, column in columns.items()}


def fewer_rows(op: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return the whole frame, every column with rows missing."""
    return {name: stop(name) for name in columns}


def any_columns(op: Any, names: Sequence[str], columns: Mapping[str, Expression], stop: Stop) -> Columns:
    """Return what arbitrary Python may return."""
    return {name: stop(name) for name in (*columns, ANYTHING)}
