"""The steps on sessions: a row is a session, and its events are list columns with one length per row.

Earlier steps treat the events of all rows as elements. Each step here states its result for a row without
events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..errors import InvalidRequest
from ..lookups.strings import Strings
from ..spec import Array
from .load import LoadList, checked_column
from .registers import Columns, Register, Registers, nan_where_null

Offsets = npt.NDArray[np.int64]

#: Up to this many events of a single row are added in plain Python, in a tenth of NumPy's time.
FEW_EVENTS = 64


class LoadEvents(LoadList):
    """Load a column of a session's events.

    A row that is null here, but has events in other columns of the session, gets a null for each event. A row
    that is null in all of them is a session without events.
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._session: list[str] = step["session"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Load: ``[1, m]``, the m events of all rows; InvalidRequest if columns differ in length."""
        loaded = super().run(registers, columns, n)
        first = columns.get(self._session[0])
        if loaded.row_valid is None and first is not None and first is columns[self._name]:
            return loaded
        if loaded.row_valid is None and first is not None and _same(first, loaded.offsets):
            return loaded
        lengths = session_lengths(columns, self._session, n)
        return loaded if loaded.row_valid is None else self._with_nulls(loaded, lengths, n)

    def _with_nulls(self, loaded: Register, lengths: Offsets, n: int) -> Register:
        """Return the register with null events in the rows that lack the column."""
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        known = np.repeat(loaded.row_valid, lengths)  # type: ignore[arg-type]
        given: Any = loaded.x
        if isinstance(given, Strings):
            given = given.objects().reshape(1, -1)
        x = np.empty((1, int(offsets[-1])), given.dtype)
        x[:] = b"" if given.dtype == np.object_ else 0
        x[:, known] = given
        valid = known.reshape(1, -1).copy()
        if loaded.valid is not None:
            valid[:, known] = loaded.valid
        if given.dtype.kind == "f":
            return Register(nan_where_null(x, valid), None, offsets)
        return Register(x, None if valid.all() else valid, offsets)


def _same(first: Column, offsets: Array | None) -> bool:
    """Return whether another column of the session has no null rows and the same length in each row."""
    own, valid = first.offsets, first.row_valid
    return own is not None and valid is None and np.array_equal(own, offsets)  # type: ignore[arg-type]


def session_lengths(columns: Columns, session: list[str], n: int) -> Offsets:
    """Return the number of events in each row, ``[n]``.

    Raises
    ------
    InvalidRequest
        Columns of one row differ in length.
    """
    lengths = np.full(n, -1, np.int64)
    for name in session:
        column = checked_column(columns, name, n, True)
        own = np.diff(column.offsets)  # type: ignore[arg-type]
        if column.row_valid is not None:
            own = np.where(column.row_valid, own, -1)
        differs = (own != lengths) & (own >= 0) & (lengths >= 0)
        if differs.any():
            row = int(differs.argmax())
            raise InvalidRequest(
                f"features: row {row} is a session whose columns must have one value for each event, but "
                f"{name!r} has {own[row]} and those before it in {session} have {lengths[row]}; send as many "
                "in each, or leave a column out for nulls"
            )
        lengths = np.maximum(lengths, own)
    return np.maximum(lengths, 0)


class KeepEvents:
    """The events for which a condition holds."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        (self._source, _), (self._condition, self._row) = step["in"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Select: ``[1, m]``."""
        given = registers[self._source]
        kept = registers[self._condition].x[self._row] != 0
        ends = np.concatenate([[0], np.cumsum(kept)])
        valid = None if given.valid is None else given.valid[:, kept]
        return Register(given.x[:, kept], valid, ends[given.offsets])


class OrderEvents:
    """The positions of all events, stably sorted within each row by some columns.

    Nulls come last in either direction, as in pandas.
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        source = step["in"]
        self._sources: list[int] = [source] if isinstance(source, int) else [number for number, _ in source]
        self._ascending: list[bool] = step["ascending"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Sort: ``[1, m]`` int64."""
        offsets = registers[self._sources[0]].offsets
        assert offsets is not None
        keys: list[Array] = []
        for number, ascending in zip(self._sources, self._ascending, strict=True):
            keys.extend(_sort_keys(registers[number], ascending))
        if n != 1:
            keys.insert(0, np.repeat(np.arange(n), np.diff(offsets)))
        # lexsort is stable, and its last key is the primary one.
        return Register(np.lexsort(keys[::-1]).reshape(1, -1), None, offsets)


def _sort_keys(register: Register, ascending: bool) -> list[Array]:
    """Return the sort keys of one column, the primary one first."""
    x = register.x[0]
    if x.dtype == np.object_:
        x = np.unique(x, return_inverse=True)[1] if len(x) else np.zeros(0, np.int64)
    if not ascending:
        # The complement reverses the order of integers without overflow. NaN stays last.
        x = -x if x.dtype.kind == "f" else ~x
    return [x] if register.valid is None else [~register.valid[0], np.where(register.valid[0], x, 0)]


class TakeEvents:
    """The events of each row in the order that :class:`OrderEvents` returned."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        (self._source, _), (self._order, _) = step["in"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Take: ``[1, m]``."""
        given, order = registers[self._source], registers[self._order].x[0]
        valid = None if given.valid is None else given.valid[:, order]
        return Register(given.x[:, order], valid, given.offsets)


class CollectEvents:
    """The events of a row as a list; empty for a row without events."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Return the register, which holds a list column already."""
        return registers[self._source]


class EdgeEvent:
    """The first or last event of a row, which may be null; null for a row without events."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]
        self._last: bool = step["last"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Pick: ``[1, n]``."""
        given = registers[self._source]
        assert given.offsets is not None
        some = np.diff(given.offsets) > 0
        at = given.offsets[1:] - 1 if self._last else given.offsets[:-1]
        if some.all():
            return Register(given.x[:, at], None if given.valid is None else given.valid[:, at])
        x = np.empty((1, n), given.x.dtype)
        x[:] = b"" if x.dtype == np.object_ else 0
        x[:, some] = given.x[:, at[some]]
        valid = some.reshape(1, n).copy()
        if given.valid is not None:
            valid[:, some] = given.valid[:, at[some]]
        return _nullable(x, valid)


def _nullable(x: Array, valid: npt.NDArray[np.bool_]) -> Register:
    if x.dtype.kind == "f":
        return Register(nan_where_null(x, valid))
    return Register(x, None if valid.all() else valid)


def _real(register: Register) -> tuple[Array, Offsets]:
    """Return the non-null events of all rows, and the offsets of the rows among them."""
    x, offsets = register.x[0], register.offsets
    assert offsets is not None
    real = ~np.isnan(x) if x.dtype.kind == "f" else None if register.valid is None else register.valid[0]
    if real is None or real.all():
        return x, offsets
    return x[real], np.concatenate([[0], np.cumsum(real)])[offsets]


class CountEvents:
    """The number of non-null events of a row."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Count: ``[1, n]`` int64."""
        given = registers[self._source]
        if given.x.dtype == np.object_:
            given = given._replace(x=np.zeros(given.x.shape, np.int64))
        return Register(np.diff(_real(given)[1]).reshape(1, n))


class SumEvents:
    """The sum or mean of a row's non-null events, in their order by Kahan's summation, as in pandas.

    ``compute`` is the dtype of the summation; the result is float32. Without a non-null event the sum is 0
    and the mean null.
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]
        self._mean: bool = step["mean"]
        self._dtype = np.dtype(step["compute"])

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Add up: ``[1, n]`` float32."""
        x, offsets = _real(registers[self._source])
        sums = summed(x.astype(self._dtype, copy=False), offsets)
        if self._mean:
            sums = sums / np.diff(offsets).astype(self._dtype)
        return Register(sums.astype(np.float32).reshape(1, n))


def summed(x: Array, offsets: Offsets) -> Array:
    """Return the sum of each row ``[n]``, by Kahan's summation in the order of its elements.

    This is ``group_sum`` of pandas 1.5 (``pandas/_libs/groupby.pyx``); Kahan 1965, "Further remarks on
    reducing truncation errors". All rows advance together, one element at a time. They are sorted by length,
    the longest first, so that the rows with a next element are always a prefix.

    Parameters
    ----------
    x
        ``[m]`` integers, which wrap on overflow, or floats without NaN.
    offsets
        ``[n + 1]``: row ``i`` is ``x[offsets[i]:offsets[i + 1]]``.
    """
    lengths = np.diff(offsets)
    sums = np.zeros(len(lengths), x.dtype)
    if x.dtype.kind != "f":
        some = lengths > 0
        if some.any():
            sums[some] = np.add.reduceat(x, offsets[:-1][some])
        return sums
    if len(lengths) == 1 and len(x) <= FEW_EVENTS:
        return _summed_alone(x, sums)
    order = np.argsort(-lengths, kind="stable")
    begins = offsets[:-1][order]
    # The number of rows that have an element at each position.
    going = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)), side="left")
    total, lost = np.zeros_like(sums), np.zeros_like(sums)
    for place, rows in enumerate(going.tolist()):
        y = x[begins[:rows] + place] - lost[:rows]
        t = total[:rows] + y
        lost[:rows] = t - total[:rows] - y
        total[:rows] = t
    sums[order] = total
    return sums


def _summed_alone(x: Array, sums: Array) -> Array:
    """Return the sum of a single row, in Python's float for float64, else in NumPy scalars."""
    values = x.tolist() if x.dtype == np.float64 else list(x)
    total = lost = sums.dtype.type(0)
    for value in values:
        y = value - lost
        t = total + y
        lost = t - total - y
        total = t
    sums[0] = total
    return sums


class ExtremeEvent:
    """The least or greatest non-null event of a row; null if there is none."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]
        self._best = np.maximum if step["greatest"] else np.minimum

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Compare: ``[1, n]``."""
        x, offsets = _real(registers[self._source])
        out, some = np.zeros(n, x.dtype), np.diff(offsets) > 0
        if some.any():
            out[some] = self._best.reduceat(x, offsets[:-1][some])
            if x.dtype.kind == "f":
                _first_zeros(out, x, offsets)
        return _nullable(out.reshape(1, n), some.reshape(1, n))


def _first_zeros(out: Array, x: Array, offsets: Offsets) -> None:
    """Give a zero result the sign of the first zero in its row, pandas' choice among equal values."""
    zeros = np.flatnonzero(x == 0)
    if not np.signbit(x[zeros]).any():
        return
    rows, first = np.unique(np.searchsorted(offsets, zeros, side="right") - 1, return_index=True)
    mine = out[rows] == 0
    out[rows[mine]] = x[zeros[first[mine]]]
