"""Keys of fitted tables: from the key columns of a row to an integer that the table has for them.

The shared ground of Categorify, JoinGroupby, TargetEncoding and JoinExternal. One key column is one lookup.
Several are each encoded to a dense code (null and unseen have codes of their own), and the codes, read as
the digits of one number, are looked up together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tiercel_serving.lookup import is_dense, packed_strings

from ..errors import WorkflowError
from .expressions import Expression, Where, apply, combine

#: The product of the numbers of codes that one int64 key may have.
_KEY_LIMIT = 2**62


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Fitted values and what stands for each.

    Parameters
    ----------
    source
        What it was read from; names it in errors, and two with the same source are the same.
    kind
        ``text``, ``bool``, or the NumPy name of its integer or float dtype.
    values
        ``[V]`` distinct values: objects that are ``bytes``, or numbers of that dtype.
    ids
        ``[V]`` int64.
    first
        The id of the file's first row (also if that row is null).
    null_element
        The id that a null inside a list gets: that of a null row of the file, of False in a vocabulary of
        booleans, else None (unseen).
    """

    source: str
    kind: str
    values: Any
    ids: Any
    first: int = 0
    null_element: int | None = None


class TextTable:
    """The table of a vocabulary of strings. Equal if it comes from the same source."""

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
    """The table of a vocabulary of int64 keys."""

    def __init__(self, vocabulary: Vocabulary, keys: Any) -> None:
        super().__init__(vocabulary)
        self.keys: Any = keys

    @property
    def is_direct(self) -> bool:
        """Whether the keys lie close enough for a table indexed by the key."""
        return is_dense(self.keys)


@dataclass(frozen=True, eq=False)
class KeyTable:
    """The table of combined keys. Equal if it comes from the same source.

    Parameters
    ----------
    source
        As in :class:`Vocabulary`.
    keys, answers
        ``[R]`` int64: the combined codes of each row, and what a lookup answers.
    missing
        What it answers for any other key.
    """

    source: str
    keys: Any
    answers: Any
    missing: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyTable) and other.source == self.source

    def __hash__(self) -> int:
        return hash(self.source)


# ------------------------------------------------------------------------------------- fitted columns


def plain_values(series: Any, source: str) -> tuple[str, Any]:
    """Return the kind (see :class:`Vocabulary`) and the plain values of a fitted column without nulls."""
    dtype = getattr(series.dtype, "numpy_dtype", series.dtype)  # Int64 and its like are as int64
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
    """Return a text as the bytes that programs compare."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    raise WorkflowError(f"{source}: expected text, found {value!r}; cast the column before the workflow")


def check_type(source: Expression, kind: str, name: str, where: Where) -> None:
    """Refuse text against fitted numbers, and numbers against fitted text."""
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
    """Return the column as ids of a vocabulary.

    Parameters
    ----------
    source
        The column: text for a vocabulary of text, else numbers.
    vocabulary
        The values that have ids.
    null, unseen
        The ids of nulls (also inside lists) and of any other value.
    dtype
        Integer dtype of the output.
    cast
        Whether values are cast to the vocabulary's dtype first, as Categorify does (5.5 becomes 5), or
        compared as numbers, as a pandas merge does (which compares a float with an integer exactly).
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
    """Encode the text column of a fitted table here, so that the program takes ids from it, and no text."""
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
    """Return the vocabulary as int64 keys, and the runtime's name for how inputs become such keys."""
    values = vocabulary.values
    if values.dtype.kind in "iub":
        as_is = values.dtype == np.int64 and not source.is_float
        return values.astype(np.int64), "int64" if as_is else f"cast:{values.dtype.name}"
    if values.dtype == np.float32 and source.physical != "float32":
        # The cast rounds: 3.00000001 becomes 3. An integer below 2**24 it leaves alone.
        return _float_keys(values, 0.0 if source.is_float else 2.0**24)
    return _float_keys(values, 2.0**53)


def _float_keys(values: npt.NDArray[Any], limit: float) -> tuple[Any, str]:
    """Return whole numbers below the limit as such, any others by their bits."""
    if np.all(np.abs(values) < limit) and np.all(values == np.floor(values)):
        return values.astype(np.int64), "whole"
    # Adding 0.0 makes -0.0 the same key as 0.0, which it equals.
    bits = (values + values.dtype.type(0)).view(f"i{values.dtype.itemsize}")
    return bits.astype(np.int64), f"bits:{values.dtype.name}"


def _equal_keys(vocabulary: Vocabulary, source: Expression) -> tuple[Vocabulary, Any, str]:
    """Return keys that are equal if the numbers are, without the values that no input can equal."""
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
    """Return which numbers are int64 numbers, and all of them as such (the others as 0)."""
    if values.dtype.kind == "f":
        fits = (values == np.floor(values)) & (values >= -(2.0**63)) & (values < 2.0**63)
    else:
        fits = values <= np.iinfo(np.int64).max
    return fits, np.where(fits, values, values.dtype.type(0)).astype(np.int64)


def _kept(vocabulary: Vocabulary, keep: npt.NDArray[np.bool_]) -> Vocabulary:
    if keep.all():
        return vocabulary
    return Vocabulary(vocabulary.source, vocabulary.kind, vocabulary.values[keep], vocabulary.ids[keep])


# ------------------------------------------------------------------------------------- several columns


def find_row(
    sources: Sequence[Expression],
    keys: Any,
    answers: npt.NDArray[np.int64],
    *,
    missing: int,
    source: str,
    cast: bool,
    where: Where,
    all_null: int | None = None,
) -> Expression:
    """Return what a fitted table answers for the keys of each row.

    Nulls equal nulls, column by column, as they do in a pandas merge.

    Parameters
    ----------
    sources
        One column for each column of ``keys``.
    keys
        Data frame of the fitted keys, ``[R]`` distinct rows.
    answers
        ``[R]`` the answer for each.
    missing
        The answer for any other key.
    source
        Names the table: two with the same source are the same.
    cast
        As for :func:`encode`.
    where
        Names the operator in a refusal.
    all_null
        If given, the answer where all keys are null, whatever the table has there.

    Returns
    -------
    int64 column, never null.
    """
    series = [keys.iloc[:, i] for i in range(len(sources))]
    if all_null is not None:
        some = ~keys.isna().all(axis=1).to_numpy()
        series, answers = [column[some] for column in series], answers[some]
    nulls = [column.isna().to_numpy() for column in series]
    parts = zip(series, nulls, strict=True)
    kinds = [plain_values(column[~null], f"{source}, column {column.name!r}") for column, null in parts]
    for column, (kind, _), expression in zip(series, kinds, sources, strict=True):
        if expression.is_list:
            raise where.refuse(str(column.name), "lists are not keys", "Leave list columns out of the keys")
        check_type(expression, kind, str(column.name), where)
        if not cast and kind not in ("text", "bool") and column.dtype.kind != "f" and column.isna().any():
            raise where.refuse(
                str(column.name),
                f"its fitted keys are {column.dtype} with a null, and NVTabular's own merge raises on those",
                "Fit the column as float64, or as int64 without nulls",
            )
    if len(sources) == 1:
        (kind, values), null = kinds[0], nulls[0]
        vocabulary = Vocabulary(f"{source}#", kind, values, answers[~null])
        of_null = int(answers[null][0]) if null.any() else missing
        of_null = of_null if all_null is None else all_null
        return encode(sources[0], vocabulary, of_null, missing, "int64", cast=cast)
    digits = []
    for i, (expression, (kind, values), null) in enumerate(zip(sources, kinds, nulls, strict=True)):
        digits.append(_digit(expression, kind, values, null, f"{source}#{i}", cast))
    if all_null is not None:
        digits = [(expression, np.append(codes, size - 2), size) for expression, codes, size in digits]
        answers = np.append(answers, all_null)
    return _combined(digits, answers, missing, source)


def _digit(
    source: Expression, kind: str, values: Any, null: npt.NDArray[np.bool_], name: str, cast: bool
) -> tuple[Expression, npt.NDArray[np.int64], int]:
    """Return a key column as codes: the expression, the codes of the table's rows, and how many codes."""
    import pandas as pd

    of_values, distinct = pd.factorize(values)
    count = len(distinct)
    codes = np.full(len(null), count, np.int64)
    codes[~null] = of_values
    vocabulary = Vocabulary(name, kind, distinct, np.arange(count, dtype=np.int64))
    return encode(source, vocabulary, count, count + 1, "int64", cast=cast), codes, count + 2


def _combined(
    digits: list[tuple[Expression, npt.NDArray[np.int64], int]],
    answers: npt.NDArray[np.int64],
    missing: int,
    source: str,
) -> Expression:
    """Combine codes; where their number would outgrow int64, the first columns become one code first."""
    expressions, codes, radix = [digits[0][0]], digits[0][1], [digits[0][2]]
    span = radix[0]
    for number, (expression, more, size) in enumerate(digits[1:], 1):
        if span * size > _KEY_LIMIT:
            prefixes, codes = np.unique(codes, return_inverse=True)
            table = KeyTable(
                f"{source}#:{number}", prefixes, np.arange(len(prefixes), dtype=np.int64), len(prefixes)
            )
            expressions, radix = [_combine(expressions, radix, table)], [len(prefixes) + 1]
            span = radix[0]
        codes = codes * size + more
        span *= size
        expressions.append(expression)
        radix.append(size)
    return _combine(expressions, radix, KeyTable(source, codes, answers, missing))


def _combine(expressions: Sequence[Expression], radix: Sequence[int], table: KeyTable) -> Expression:
    own, shared = {"table": table}, {"radix": tuple(radix)}
    return combine("combine_keys", expressions, own=own, shared=shared, physical="int64", dtype="int64")
