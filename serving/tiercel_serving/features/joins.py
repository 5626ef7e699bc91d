"""The steps that join a fitted table: they look a row up by its keys, and gather its columns.

The steps of ``encode.py`` encode each key column, with a dense code for each of its values in the table, one
for null and one for unseen values. ``combine_keys`` combines the codes to one number and looks it up. The
``gather`` steps read columns of the table at the row found. Unseen keys get the table's last row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..lookups.lookup import open_lookup
from ..lookups.strings import Strings
from ..spec import Array
from .registers import Columns, Register, Registers

#: A text column with up to this many rows is held as Python objects, which are gathered at once. Longer ones
#: stay memory-mapped, and only the gathered texts become objects.
TEXTS_IN_MEMORY = 4096


class CombineKeys:
    """Combine the codes of several key columns to one mixed-radix number, and look it up.

    ``radix`` is the number of codes of each column; the last column is the least significant digit.
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._sources: list[tuple[int, int]] = [(register, row) for register, row in step["in"]]
        self._radix: list[int] = step["radix"]
        self._lookup = open_lookup(arrays, "lookup0")

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Combine and look up: ``[1, n]`` int64 row numbers, never null."""
        register, row = self._sources[0]
        offsets = registers[register].offsets
        keys = registers[register].x[row]
        for (register, row), radix in zip(self._sources[1:], self._radix[1:], strict=True):
            keys = keys * radix + registers[register].x[row]
        return Register(self._lookup.find(keys).reshape(1, -1), None, offsets)


class Gather:
    """Gather numeric columns of fitted tables, stored end to end; an integer column may have nulls."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]
        rows: list[int] = step["rows"]
        # Columns of one table share their row numbers, so these need not be copied for each column.
        self._rows: Any = slice(rows[0], rows[0] + 1) if len(set(rows)) == 1 else np.array(rows)
        self._table, self._valid = arrays["table"], arrays.get("valid")
        self._base = arrays["base"] if len(rows) > 1 else None

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Gather: ``[C, n]``."""
        given = registers[self._source]
        index = given.x[self._rows]
        if self._base is not None:
            index = index + self._base
        if self._valid is None:
            return Register(self._table[index], None, given.offsets)
        valid = self._valid[index]
        return Register(self._table[index], None if valid.all() else valid, given.offsets)


class _Texts:
    """Texts stored end to end: ``offsets [R + 1]`` and ``blob``."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._strings = Strings(arrays["blob"], arrays["offsets"])
        self._objects = self._strings.objects() if len(self._strings) <= TEXTS_IN_MEMORY else None

    def take(self, index: npt.NDArray[np.int64]) -> Array:
        """Return the texts at these positions as an object array of ``bytes``."""
        return self._strings.take(index).objects() if self._objects is None else self._objects[index]


class GatherText:
    """Gather a text column of a fitted table."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]
        self._row: int = step["rows"][0]
        self._texts, self._valid = _Texts(arrays), arrays["valid"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Gather: ``[1, n]`` objects."""
        given = registers[self._source]
        index = given.x[self._row]
        valid = self._valid[index].reshape(1, -1)
        texts = self._texts.take(index).reshape(1, -1)
        return Register(texts, None if valid.all() else valid, given.offsets)


class GatherList:
    """Gather a list column of a fitted table; an unseen key gives a null list.

    ``row_offsets [R + 1]`` bounds the elements of each row, which are ``values`` or texts. ``row_valid [R]``
    marks the rows that are not null, and ``valid`` the elements (absent if none is null).
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]
        self._row: int = step["rows"][0]
        self._offsets, self._row_valid = arrays["row_offsets"], arrays["row_valid"]
        self._values, self._valid = arrays.get("values"), arrays.get("valid")
        self._texts = None if self._values is not None else _Texts(arrays)

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Gather: ``[1, m]``, the m elements of all rows."""
        index = registers[self._source].x[self._row]
        begins = self._offsets[index]
        lengths = self._offsets[index + 1] - begins
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        within = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
        x = self._values[within] if self._texts is None else self._texts.take(within)  # type: ignore[index]
        valid = None if self._valid is None else self._valid[within].reshape(1, -1)
        row_valid = self._row_valid[index]
        return Register(
            x.reshape(1, -1),
            None if valid is None or valid.all() else valid,
            offsets,
            None if row_valid.all() else row_valid,
        )
