"""The schema of a store: user columns with their types, in the order of their numbers, and types of raw ids.

The schema is stored under a key of its own, and columns are only ever added to it. So releases with different
schemas can share a store, as long as no column changes its type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from tiercel_client.errors import InvalidInput
from tiercel_client.values import convert_column, sequence
from tiercel_client.wire.moments import ticks

from ..errors import StoreDamaged, StoreMismatch
from ..problems import choose
from ..release.manifest import Catalogue, ColumnDtype, IdDtype, Manifest, RequestColumn
from ..spec import DTYPES
from .record_batch import read_texts, write_texts
from .records import INLINE, NULL, PAYLOAD, Slot
from .sealed import SCHEMA_KEY, seal, unseal

SCHEMA_FORMAT = 1


class StoredColumn(msgspec.Struct, frozen=True):
    """A column of users."""

    name: str
    dtype: ColumnDtype
    is_list: bool

    def __str__(self) -> str:
        return f"{'lists of ' if self.is_list else ''}{self.dtype}"


class Schema(msgspec.Struct, frozen=True):
    """The schema of a store; column number j is ``columns[j]``."""

    format: int
    user_id: IdDtype
    item_id: IdDtype
    columns: tuple[StoredColumn, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> Schema:
        """Return the schema that a release would write."""
        catalogue: Catalogue = manifest.catalogue
        columns = (StoredColumn(c.name, c.dtype, c.is_list) for c in user_columns(manifest).values())
        return cls(SCHEMA_FORMAT, catalogue.user_id_dtype, catalogue.item_id_dtype, tuple(columns))

    @classmethod
    def read(cls, data: bytes) -> Schema:
        """Read the schema of a store.

        Raises
        ------
        StoreDamaged, StoreMismatch
            It is not readable, or was written by a newer Tiercel.
        """
        value = unseal(SCHEMA_KEY, data)
        try:
            if value is None:
                raise ValueError("it is not what was written")
            schema = msgspec.json.decode(value, type=cls)
        except ValueError as error:
            raise StoreDamaged(
                f"store: its schema is not readable ({error}); is this a store of Tiercel's? Choose another "
                "place or prefix, and load what was exported"
            ) from error
        if schema.format > SCHEMA_FORMAT:
            raise StoreMismatch(
                f"store: format {schema.format}, but this Tiercel reads format "
                f"{SCHEMA_FORMAT}; upgrade Tiercel"
            )
        return schema

    def __bytes__(self) -> bytes:
        return seal(SCHEMA_KEY, msgspec.json.encode(self))

    def numbers(self) -> dict[str, int]:
        """Return column name → number."""
        return {column.name: number for number, column in enumerate(self.columns)}

    def with_columns_of(self, other: Schema) -> Schema:
        """Return the schema with the columns of another added.

        Raises
        ------
        StoreMismatch
            An id or a column of the same name has another type in ``other``.
        """
        for what in ("user_id", "item_id"):
            ours, theirs = getattr(self, what), getattr(other, what)
            if ours != theirs:
                raise StoreMismatch(
                    f"store: holds {what} as {ours}, but the release as {theirs}; choose another store for it"
                )
        held = {column.name: column for column in self.columns}
        for column in other.columns:
            before = held.setdefault(column.name, column)
            if before != column:
                raise StoreMismatch(
                    f"store: holds the column {column.name!r} as {before}, but the release reads {column}; "
                    "choose another store, or export this one, change the column, and load it into another"
                )
        return msgspec.structs.replace(self, columns=tuple(held.values()))


def user_columns(manifest: Manifest) -> dict[str, RequestColumn]:
    """Return the user columns that a store may hold: those that a request may send."""
    return {column.name: column for column in manifest.request_columns if column.part == "user"}


def find_column(columns: Mapping[str, RequestColumn], name: object) -> RequestColumn:
    """Return a column by its name.

    Raises
    ------
    InvalidInput
        The release has no such user column.
    """
    column = columns.get(name) if isinstance(name, str) else None
    if column is None:
        raise InvalidInput(f"the release has no user column {name!r}; {choose(name, columns)}")
    return column


def to_slot(column: RequestColumn, value: Any, expires: int) -> Slot:
    """Return the slot of a value; None is null.

    Raises
    ------
    InvalidInput
        The value is not of the column's type.
    """
    if value is None:
        return Slot(expires, NULL, b"")
    what = f"values[{column.name!r}]"
    values = list(sequence(value, what)) if column.is_list else [value]

    def place(position: int) -> str:
        return f"{what}[{position}]" if column.is_list else what

    if column.unit is not None:
        values = list(ticks(values, column.unit, place))
    array, valid = convert_column(values, column.dtype, place, nullable=not column.is_list)
    if column.dtype == "bytes":
        check_utf8(array, what)
    if column.is_list:
        written = write_texts(array.tolist()) if column.dtype == "bytes" else array.tobytes()
        return Slot(expires, PAYLOAD, written)
    if valid is not None or (array.dtype.kind == "f" and np.isnan(array[0])):
        return Slot(expires, NULL, b"")
    if column.dtype == "bytes":
        return Slot(expires, PAYLOAD, array[0])
    wide = np.float64 if array.dtype.kind == "f" else np.int64
    return Slot(expires, INLINE, array.astype(wide).tobytes())


def from_slot(column: StoredColumn, slot: Slot) -> Any:
    """Return the value of a slot as a Python object."""
    if slot.state == NULL:
        return None
    kind = DTYPES[column.dtype]
    if column.is_list:
        if column.dtype == "bytes":
            return [text.decode() for text in read_texts(slot.value)]
        return np.frombuffer(slot.value, kind).tolist()
    if column.dtype == "bytes":
        return slot.value.decode()
    return np.frombuffer(slot.value, np.float64 if kind.kind == "f" else np.int64).astype(kind)[0].item()


def check_utf8(texts: Iterable[Any], what: str) -> None:
    """Check that texts are UTF-8, since an export could not write others.

    Raises
    ------
    InvalidInput
        A text is not UTF-8.
    """
    wrong = next((text for text in texts if text.decode(errors="ignore").encode() != text), None)
    if wrong is not None:
        raise InvalidInput(f"{what}: expected UTF-8, got {wrong!r}; encode it anew")
