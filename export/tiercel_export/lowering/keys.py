"""Keys of fitted tables: look up the integer that a table holds for the key columns of a row.

Categorify, JoinGroupby, TargetEncoding and JoinExternal share this module. A single key column is one lookup.
Several are each encoded to a dense code (null and unseen have codes of their own); the codes are the digits
of one mixed-radix number, which is looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .expressions import Expression, Where, combine
from .vocabulary import Vocabulary, check_type, encode, plain_values

#: Limit on the product of the key columns' code counts, so that a combined key fits int64.
_KEY_LIMIT = 2**62


@dataclass(frozen=True, eq=False)
class KeyTable:
    """The lookup table of combined keys. Tables from the same source are equal.

    Parameters
    ----------
    source
        As in :class:`~.vocabulary.Vocabulary`.
    keys, answers
        ``[R]`` int64: the combined codes of each row, and the answer of a lookup.
    missing
        The answer for any other key.
    """

    source: str
    keys: Any
    answers: Any
    missing: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyTable) and other.source == self.source

    def __hash__(self) -> int:
        return hash(self.source)


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
    """Return a fitted table's answer for the keys of each row.

    Nulls equal nulls, column by column, as they do in a pandas merge.

    Parameters
    ----------
    sources
        One column for each column of ``keys``.
    keys
        Data frame of the fitted keys, ``[R]`` distinct rows.
    answers
        ``[R]`` the answer for each row of ``keys``.
    missing
        The answer for any other key.
    source
        Identifies the table: equal sources mean equal tables.
    cast
        As for :func:`~.vocabulary.encode`.
    where
        Names the operator in a refusal.
    all_null
        If given, the answer where all keys are null, which overrides the table's.

    Returns
    -------
    int64 column, never null.
    """
    columns = [
        _KeyColumn.of(keys.iloc[:, i], expression, source, cast, where)
        for i, expression in enumerate(sources)
    ]
    if len(columns) == 1:
        return columns[0].find(answers, missing, f"{source}#", all_null)
    codes = np.stack([column.codes() for column in columns])
    for i, column in enumerate(columns):
        if column.null_is_true:
            again = codes[:, codes[i] == column.true_code]
            answers = np.append(answers, answers[codes[i] == column.true_code])
            again[i] = column.size - 2
            codes = np.concatenate([codes, again], axis=1)
    if all_null is not None:
        nulls = np.array([[column.size - 2] for column in columns])
        some = (codes != nulls).any(axis=0)
        codes, answers = np.append(codes[:, some], nulls, axis=1), np.append(answers[some], all_null)
    digits = [(column.encoded(f"{source}#{i}"), codes[i], column.size) for i, column in enumerate(columns)]
    return _combined(digits, answers, missing, source)


@dataclass(frozen=True)
class _KeyColumn:
    """A fitted key column, and the column that is looked up in it.

    Parameters
    ----------
    expression
        The column that is looked up.
    kind, distinct
        Kind of the fitted values (see :class:`~.vocabulary.Vocabulary`), and the distinct values.
    positions
        ``[R]`` int64: index into ``distinct`` of each row of the table; -1 is null.
    cast
        As for :func:`~.vocabulary.encode`.
    null_is_true
        Whether a null is looked up as True, because NumPy casts NaN to True.
    """

    expression: Expression
    kind: str
    distinct: Any
    positions: npt.NDArray[np.int64]
    cast: bool
    null_is_true: bool

    @classmethod
    def of(cls, series: Any, expression: Expression, source: str, cast: bool, where: Where) -> _KeyColumn:
        """Check a fitted key column, and factorize it."""
        import pandas as pd

        name, null = str(series.name), series.isna().to_numpy()
        kind, values = plain_values(series[~null], f"{source}, column {name!r}")
        if expression.is_list:
            raise where.refuse(name, "lists are not keys", "Leave list columns out of the keys")
        check_type(expression, kind, name, where)
        if not cast and kind not in ("text", "bool") and series.dtype.kind != "f" and null.any():
            raise where.refuse(
                name,
                f"its fitted keys are {series.dtype} with a null, and NVTabular's own merge raises on those",
                "Fit the column as float64, or as int64 without nulls",
            )
        positions = np.full(len(null), -1, np.int64)
        positions[~null], distinct = pd.factorize(values)
        return cls(expression, kind, distinct, positions, cast, cast and series.dtype == np.bool_)

    @property
    def size(self) -> int:
        """Number of codes: one for each value, one for null, one for unseen."""
        return len(self.distinct) + 2

    @property
    def true_code(self) -> int:
        """The code of True, or that of unseen if the table does not contain True."""
        return next((code for code, value in enumerate(self.distinct) if value), self.size - 1)

    def codes(self) -> npt.NDArray[np.int64]:
        """Return the code of each row of the table."""
        return np.where(self.positions < 0, self.size - 2, self.positions)

    def encoded(self, source: str) -> Expression:
        """Return the column that is looked up, encoded as codes."""
        count = len(self.distinct)
        vocabulary = Vocabulary(source, self.kind, self.distinct, np.arange(count, dtype=np.int64))
        return encode(self.expression, vocabulary, count, count + 1, "int64", cast=self.cast)

    def find(
        self, answers: npt.NDArray[np.int64], missing: int, source: str, all_null: int | None
    ) -> Expression:
        """Return the answer for each row where this is the table's only key column."""
        null = self.positions < 0
        of_null = int(answers[null][0]) if null.any() else missing
        ids = np.empty(len(self.distinct), np.int64)
        ids[self.positions[~null]] = answers[~null]
        vocabulary = Vocabulary(source, self.kind, self.distinct, ids)
        of_null = of_null if all_null is None else all_null
        return encode(self.expression, vocabulary, of_null, missing, "int64", cast=self.cast)


def _combined(
    digits: list[tuple[Expression, npt.NDArray[np.int64], int]],
    answers: npt.NDArray[np.int64],
    missing: int,
    source: str,
) -> Expression:
    """Combine codes; if a combined key could exceed int64, the columns so far are reduced to one code."""
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
