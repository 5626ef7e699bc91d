"""Raw columns of users and items as plain arrays that can be memory-mapped and gathered by row.

Strings are stored as dictionary codes, with offsets and bytes of the distinct strings. Nulls are marked by a
validity array, left out if nothing is null. Lists are offsets into the values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..lookups.strings import Strings
from ..release.artefacts import Artefact
from ..spec import Array


def raw_prefix(column: str) -> str:
    """Return the prefix under which a raw column of users or items is stored."""
    return f"raw.{column}"


def raw_column(artefact: Artefact, column: str) -> StoredColumn | None:
    """Open a raw column of users or items; None if the artefact does not hold it."""
    prefix = raw_prefix(column)
    if f"{prefix}.values" not in artefact.arrays and f"{prefix}.codes" not in artefact.arrays:
        return None
    return open_column(artefact.arrays, prefix)


def store_column(column: Column, prefix: str) -> dict[str, Array]:
    """Return a column as arrays for an artefact.

    Parameters
    ----------
    column
        The column, scalar or list; strings are ``bytes`` objects (any value at a null's place).
    prefix
        Array names become ``<prefix>.<part>``.

    Returns
    -------
    Arrays for :func:`open_column`: ``values``, or ``codes`` with ``offsets`` and ``blob`` for strings;
    ``valid``, ``list_offsets`` and ``row_valid`` where the column has them.
    """
    parts: dict[str, Array] = {}
    if column.values.dtype == np.object_:
        parts |= _store_strings(column.values, column.valid)
    else:
        parts["values"] = column.values
    if column.valid is not None and not column.valid.all():
        parts["valid"] = column.valid
    if column.offsets is not None:
        parts["list_offsets"] = column.offsets
        if column.row_valid is not None and not column.row_valid.all():
            parts["row_valid"] = column.row_valid
    return {f"{prefix}.{name}": array for name, array in parts.items()}


def open_column(arrays: Mapping[str, Array], prefix: str) -> StoredColumn:
    """Open a column from the arrays of :func:`store_column`, which may be memory-mapped."""
    codes = arrays.get(f"{prefix}.codes")
    return StoredColumn(
        values=arrays[f"{prefix}.values"] if codes is None else codes,
        valid=arrays.get(f"{prefix}.valid"),
        list_offsets=arrays.get(f"{prefix}.list_offsets"),
        row_valid=arrays.get(f"{prefix}.row_valid"),
        text_offsets=arrays.get(f"{prefix}.offsets"),
        blob=arrays.get(f"{prefix}.blob"),
    )


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """A column on disk.

    Parameters
    ----------
    values
        ``[m]`` elements, or int32 codes of strings (0 at a null's place).
    valid
        ``[m]`` boolean, False is null; None if nothing is null.
    list_offsets, row_valid
        ``[n + 1]`` int64 and ``[n]`` boolean for a list column, as in :class:`Column`.
    text_offsets, blob
        String ``c`` is ``blob[text_offsets[c]:text_offsets[c + 1]]``.
    """

    values: Array
    valid: Array | None
    list_offsets: Array | None
    row_valid: Array | None
    text_offsets: Array | None
    blob: Array | None

    def __len__(self) -> int:
        return len(self.values) if self.list_offsets is None else len(self.list_offsets) - 1

    @property
    def is_list(self) -> bool:
        """Whether each row is a list."""
        return self.list_offsets is not None

    @property
    def dtype(self) -> str:
        """The elements' dtype by name; ``bytes`` for strings."""
        return "bytes" if self.text_offsets is not None else self.values.dtype.name

    def take(self, rows: npt.NDArray[np.int64]) -> Column:
        """Gather rows.

        Parameters
        ----------
        rows
            ``[n]`` int64, each in ``[0, len(self))``.

        Returns
        -------
        Column of ``n`` rows.
        """
        if self.list_offsets is None:
            return self._elements(rows, None, None)
        begins = self.list_offsets[rows]
        lengths = self.list_offsets[rows + 1] - begins
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        index = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
        return self._elements(index, offsets, None if self.row_valid is None else self.row_valid[rows])

    def _elements(self, index: Array, offsets: Array | None, row_valid: Array | None) -> Column:
        values = self.values[index]
        if self.text_offsets is not None and self.blob is not None:
            values = _strings(values, self.text_offsets, self.blob)
        return Column(values, None if self.valid is None else self.valid[index], offsets, row_valid)


def _store_strings(values: Array, valid: Array | None) -> dict[str, Array]:
    # The value at a null's place is arbitrary, so only real ones are encoded.
    items = (values if valid is None else values[valid]).tolist()
    # Each distinct string is numbered by its first occurrence.
    code_of = dict(zip(dict.fromkeys(items), itertools.count(), strict=False))
    found = np.fromiter(map(code_of.__getitem__, items), np.int32, len(items))
    codes = found if valid is None else np.zeros(len(values), np.int32)
    if valid is not None:
        codes[valid] = found
    distinct = np.empty(len(code_of) or 1, np.object_)
    distinct[:] = list(code_of) or [b""]
    packed = Strings.of(distinct)
    return {"codes": codes, "offsets": packed.offsets, "blob": packed.blob}


def _strings(codes: Array, offsets: Array, blob: Array) -> Array:
    """Return the ``bytes`` objects of codes; each distinct code becomes one object."""
    out = np.empty(len(codes), np.object_)
    if len(codes) == 1:
        code = int(codes[0])
        out[0] = blob[offsets[code] : offsets[code + 1]].tobytes()
        return out
    distinct, where = np.unique(codes, return_inverse=True)
    texts = np.empty(len(distinct), np.object_)
    begins, ends = offsets[distinct].tolist(), offsets[distinct + 1].tolist()
    texts[:] = [blob[begin:end].tobytes() for begin, end in zip(begins, ends, strict=True)]
    out[:] = texts[where]
    return out
