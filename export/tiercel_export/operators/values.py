"""Operators that test a value or change its type: membership, nulls, casts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from tiercel_serving.features.arithmetic import whole
from tiercel_serving.features.registers import where_all_valid
from tiercel_serving.features.texts import read, written
from tiercel_serving.spec import Array

from ..errors import WorkflowError
from .base import (
    OwnOperator,
    Valid,
    is_text,
    made,
    made_text,
    numbers,
    one_of,
    plain_number,
    text_objects,
    texts,
    wrong_column,
)
from .times import times

#: The dtypes that Cast accepts.
CASTS = ("int32", "int64", "float32", "float64", "bool", "str")


class IsNull(OwnOperator):
    """``["price"] >> IsNull()``: whether a value is null, as a boolean, for columns of any type but lists."""

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Look."""
        return made(series.isna().to_numpy(bool), None, series)


class IsIn(OwnOperator):
    """``["channel"] >> IsIn(["web", "app"])``: whether a value is one of these, as a boolean.

    Parameters
    ----------
    values
        All text, or all numbers. Numbers are compared as numbers, so that 1 equals 1.0.

    Notes
    -----
    The result for a null is False; use IsNull to find nulls.

    Raises
    ------
    WorkflowError
        ``values`` is empty, or neither all text nor all numbers; or, at fit, text is compared with numbers.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        super().__init__()
        given = [values] if isinstance(values, str) else list(values)
        if not given:
            raise WorkflowError("IsIn: expected at least one value, got none")
        if all(isinstance(value, str) for value in given):
            self.values: list[Any] = list(dict.fromkeys(given))
        elif any(isinstance(value, str) for value in given):
            raise WorkflowError(f"IsIn: expected all text or all numbers, got {given!r}")
        else:
            known = [plain_number(value, "IsIn") for value in given]
            floats = any(isinstance(value, float) for value in known)
            self.values = list(dict.fromkeys(map(float, known) if floats else known))

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Look up."""
        if isinstance(self.values[0], str):
            known, valid = text_objects(series, self)
        else:
            known, valid = numbers(series, self)
        is_one = np.array([value in self._set for value in known.tolist()], np.bool_)
        return made(is_one if valid is None else is_one & valid, None, series)

    @property
    def _set(self) -> frozenset[Any]:
        return frozenset(self.values)


class Cast(OwnOperator):
    """``["age"] >> Cast("float32")``.

    Parameters
    ----------
    dtype
        ``int32`` or ``int64``, rounded towards zero; ``float32`` or ``float64``; ``bool``, which is True for
        numbers other than 0; or ``str``, which is the number as Python writes it, without a fraction for
        whole numbers, and 1 or 0 for booleans.

    Notes
    -----
    A null stays null. A value that the dtype can't hold becomes null: an integer that is too large, infinity
    as an integer, and text that Python's ``float`` can't parse. A datetime column can only become int64, in
    its own unit since 1970 (pandas' nanoseconds). Text can become any dtype but ``bool``.

    Raises
    ------
    WorkflowError
        The dtype is unknown; or, at fit, a column can't be cast to it.
    """

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        self.dtype = one_of({"str": "str", "str_": "str"}.get(name, name), CASTS, "Cast")

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Cast."""
        if self.dtype == "str" and is_text(series):
            return made_text(*texts(series, self), series)
        x, valid = self._given(series)
        if self.dtype == "str":
            null = valid if x.dtype.kind != "f" else where_all_valid(valid, ~np.isnan(x))
            return made_text(written(x), null, series)
        if self.dtype.startswith("float"):
            return made(x.astype(self.dtype), valid, series).astype(self.dtype)
        if self.dtype == "bool":
            return made(x != 0, where_all_valid(valid, ~np.isnan(x)), series)
        y, held = whole(x, self.dtype)
        return made(y.astype(self.dtype), where_all_valid(valid, held), series)

    def _given(self, series: pd.Series) -> tuple[Array, Valid]:
        """Return the column as numbers, and which are valid (None if all)."""
        if getattr(series.dtype, "kind", "O") == "M" or isinstance(series.dtype, pd.DatetimeTZDtype):
            if self.dtype != "int64":
                raise wrong_column(self, series, "numbers, or Cast('int64') of times", str(series.dtype))
            return times(series, None, self)[:2]
        if is_text(series):
            if self.dtype == "bool":
                raise wrong_column(self, series, "numbers", "text, of which no boolean is made")
            values, valid = texts(series, self)
            x = read(values)
            return (x if valid is None else np.where(valid, x, np.nan)), valid
        x, valid = numbers(series, self)
        return (x.astype(np.float32) if series.dtype == np.float32 else x), valid
