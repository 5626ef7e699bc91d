"""A vocabulary: the fitted values of one column, and how a column is encoded by it.

Categorify, IsIn, and the operators that join statistics or tables by keys share this module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tiercel_serving.lookups.build import is_dense
from tiercel_serving.lookups.strings import packed_strings

from ..errors import WorkflowError
from .expressions import Expression, Where, apply


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Fitted values and the id of each.

    Parameters
    ----------
    source
        Where it was read from. Errors name it, and tables of vocabularies with equal sources are equal.
    kind
        ``text``, ``bool``, or the NumPy name of its integer or float dtype.
    values
        ``[V]`` distinct values: objects that are ``bytes``, or numbers of that dtype.
    ids
        ``[V]`` int64.
    first
        The id of the file's first row (also if that row is null).
    null_element
        The id of a null inside a list: that of the file's null row, or of False in a boolean vocabulary;
        None if the vocabulary has no such value, so that a null counts as unseen.
    """

    source: str
    kind: str
    values: Any
    ids: Any
    first: int = 0
    null_element: int | None = None


class TextTable:
    """The lookup table of a text vocabulary. Tables from the same source are equal."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @cached_property
    def keys(self) -> Any:
        """The keys as packed strings."""
        return packed_strings(self.vocabulary.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other.vocabulary.source == self.vocabulary.source

    def __hash__(self) -> int:
        return hash(self.vocabulary.source)


class IntTable(TextTable):
    """The lookup table of a vocabulary with int64 keys."""

    def __init__(self, vocabulary: Vocabulary, keys: Any) -> None:
        super().__init__(vocabulary)
        self.keys: Any = keys

    @property
    def is_direct(self) -> bool:
        """Whether the keys are dense enough for a table that is indexed by the key."""
        return is_dense(self.keys)


# ------------------------------------------------------------------------------------- fitted columns


def plain_values(series: Any, source: str) -> tuple[str, Any]:
    """Return the kind (see :class:`Vocabulary`) and the plain values of a fitted column without nulls."""
    dtype = getattr(series.dtype, "numpy_dtype", series.dtype)  # pandas' nullable Int64 becomes int64
    if dtype.kind in "iufb" and dtype.name != "float16":
        return dtype.name, series.to_numpy(dtype)
    if dtype.kind == "O":
        values = np.empty(len(series), np.object_)
        values[:] = [utf8(value, source) for value in series.tolist()]
        return "text", values
    raise WorkflowError(
        f"{source}: a vocabulary of {series.dtype} is not supported; cast the column to an integer, a float "
        "or text before the workflow"
    )


def utf8(value: Any, source: str) -> bytes:
    """Return text as the UTF-8 bytes that programs compare."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    raise WorkflowError(f"{source}: expected text, found {value!r}; cast the column before the workflow")


def check_type(source: Expression, kind: str, name: str, where: Where) -> None:
    """Refuse a text column with a vocabulary of numbers, and numbers with a vocabulary of text."""
    if source.is_text != (kind == "text"):
        raise where.refuse(
            name,
            f"the column holds {source.dtype}, but its fitted vocabulary {kind}",
            "Give the column the type that it had at fit",
        )


# ------------------------------------------------------------------------------------------- encoding


def encode(
    source: Expression, vocabulary: Vocabulary, null: int, unseen: int, dtype: str, *, cast: bool
) -> Expression:
    """Return the column encoded as ids of a vocabulary.

    Parameters
    ----------
    source
        The column: text for a vocabulary of text, else numbers.
    vocabulary
        The values that have ids.
    null, unseen
        The ids of nulls (also inside lists) and of values that are not in the vocabulary.
    dtype
        dtype of the output as NVTabular names it: an integer dtype or ``bool``.
    cast
        Whether to cast values to the vocabulary's dtype first, as Categorify does (5.5 becomes 5). Otherwise
        they are compared as numbers, as a pandas merge does (a float and an integer exactly).
    """
    if source.op in ("gather_text", "gather_list") and source.is_text:
        return _encoded_table(source, vocabulary, null, unseen, dtype)
    if source.is_text:
        own = {"vocabulary": TextTable(vocabulary), "null": null, "unseen": unseen}
        return apply("encode_text", source, own=own, physical="int64", dtype=dtype)
    keys, kind = _cast_keys(vocabulary, source) if cast else (None, "")
    if keys is None:
        vocabulary, keys, kind = _equal_keys(vocabulary, source)
    table = IntTable(vocabulary, keys)
    return apply(
        "encode_direct" if table.is_direct else "encode_hash",
        source,
        shared={"keys": kind},
        own={"vocabulary": table, "null": null, "unseen": unseen},
        physical="int64",
        dtype=dtype,
    )


def _encoded_table(
    source: Expression, vocabulary: Vocabulary, null: int, unseen: int, dtype: str
) -> Expression:
    """Encode a fitted table's text column at compile time, so that the program gathers ids, not text."""
    column = dict(source.own)["column"]
    ids = dict(zip(vocabulary.values.tolist(), vocabulary.ids.tolist(), strict=True))
    values = np.array([ids.get(value, unseen) for value in column.values.tolist()], np.int64)
    if column.valid is not None:
        values[~column.valid] = null
    name = f"{column.source} in {vocabulary.source} with {null} and {unseen}"
    encoded = replace(column, source=name, values=values, valid=None)
    op = "gather_list" if source.is_list else "gather"
    return replace(source, op=op, own=(("column", encoded),), physical="int64", dtype=dtype)


def _cast_keys(vocabulary: Vocabulary, source: Expression) -> tuple[Any, str]:
    """Return the vocabulary as int64 keys, and the runtime's name for converting inputs to such keys."""
    values = vocabulary.values
    if values.dtype.kind in "iub":
        as_is = values.dtype == np.int64 and not source.is_float
        return values.astype(np.int64), "int64" if as_is else f"cast:{values.dtype.name}"
    if values.dtype == np.float32 and source.physical != "float32":
        # The cast rounds floats (3.00000001 becomes 3) but leaves integers below 2**24 unchanged.
        return _float_keys(values, 0.0 if source.is_float else 2.0**24)
    return _float_keys(values, 2.0**53)


def _float_keys(values: npt.NDArray[Any], limit: float) -> tuple[Any, str]:
    """Return floats as int64 keys: as whole numbers if all are whole and below the limit, else their bits."""
    if np.all(np.abs(values) < limit) and np.all(values == np.floor(values)):
        return values.astype(np.int64), "whole"
    # Adding 0.0 turns -0.0 into 0.0: the two are equal and need one key.
    bits = (values + values.dtype.type(0)).view(f"i{values.dtype.itemsize}")
    return bits.astype(np.int64), f"bits:{values.dtype.name}"


def _equal_keys(vocabulary: Vocabulary, source: Expression) -> tuple[Vocabulary, Any, str]:
    """Return keys that compare as the numbers do, dropping values that no input can equal."""
    values = vocabulary.values
    if not source.is_float:
        whole, keys = _as_int64(values)
        return _kept(vocabulary, whole), keys[whole], "int64"
    floats, exact = values.astype(np.float64), np.ones(len(values), np.bool_)
    if values.dtype.kind != "f":
        whole, integers = _as_int64(values)
        fits, back = _as_int64(floats)
        exact = whole & fits & (back == integers)
    keys, kind = _float_keys(floats[exact], 2.0**53)
    return _kept(vocabulary, exact), keys, kind


def _as_int64(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return which numbers int64 holds exactly, and all numbers as int64 (the others as 0)."""
    if values.dtype.kind == "f":
        fits = (values == np.floor(values)) & (values >= -(2.0**63)) & (values < 2.0**63)
    else:
        fits = values <= np.iinfo(np.int64).max
    return fits, np.where(fits, values, values.dtype.type(0)).astype(np.int64)


def _kept(vocabulary: Vocabulary, keep: npt.NDArray[np.bool_]) -> Vocabulary:
    if keep.all():
        return vocabulary
    return Vocabulary(vocabulary.source, vocabulary.kind, vocabulary.values[keep], vocabulary.ids[keep])
