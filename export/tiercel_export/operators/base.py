"""The common base of the operators: frames, operands, errors, and conversion between pandas and arrays.

None, NaN, NaT and pandas' NA are nulls. A result without nulls has its own dtype, such as int64 or bool. A
result with a null is float64 with NaN, as in pandas; text has None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from merlin.dag import ColumnSelector, DataFormats
from nvtabular.ops import Operator

from tiercel_serving.spec import Array

from ..errors import WorkflowError

Valid = npt.NDArray[np.bool_] | None


class OwnOperator(Operator):  # type: ignore[misc]
    """Base class: computes one or several columns from each selected column, and returns no others."""

    #: The suffix of each output column's name.
    suffixes: tuple[str, ...] = ("",)
    #: Name of the second column's output at fit. ``remove_inputs`` removes that output before it asks which
    #: columns depend on it.
    _operand_at_fit: str | None = None

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Return the column ``<name><suffix>``; ``other`` is the operator's second column, if it has one."""
        raise NotImplementedError

    @property
    def operand(self) -> Any:
        """The second operand: the name of a column, or a node of one column; None if there is none."""
        return None

    @property
    def operand_name(self) -> str | None:
        """The name of the second column; None if there is none."""
        if self.operand is None or isinstance(self.operand, str):
            return self.operand
        names = self.operand.output_schema.column_names
        if not names and self._operand_at_fit is not None:
            return self._operand_at_fit
        if len(names) != 1:
            raise WorkflowError(
                f"{type(self).__name__}: column: expected a node of one column, got {names}; select one"
            )
        return str(names[0])

    @property
    def dependencies(self) -> list[Any]:
        """The second column, so that NVTabular adds it to the frame."""
        return [] if self.operand is None else [self.operand]

    def _names(self, selector: Any) -> list[str]:
        return [name for name in selector.names if name != self.operand_name]

    def compute_selector(self, input_schema: Any, selector: Any, *more: Any, **named: Any) -> Any:
        """Refuse a column that is its own operand."""
        resolved = super().compute_selector(input_schema, selector, *more, **named)
        self._operand_at_fit = self.operand_name
        if resolved.names and not self._names(resolved):
            raise WorkflowError(
                f"{type(self).__name__}: the column {self.operand_name!r} is both operands; Rename it first, "
                "or use a Function such as 'square'"
            )
        return resolved

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        """Return the columns that each output is computed from."""
        also = [] if self.operand_name is None else [self.operand_name]
        return {
            f"{name}{suffix}": [name, *also] for name in self._names(col_selector) for suffix in self.suffixes
        }

    def transform(self, col_selector: ColumnSelector, transformable: pd.DataFrame) -> pd.DataFrame:
        """Return the output columns, with the frame's index."""
        other = None if self.operand_name is None else plain(transformable[self.operand_name], self)
        made = {}
        with np.errstate(all="ignore"):
            for name in self._names(col_selector):
                series = plain(transformable[name], self)
                for suffix in self.suffixes:
                    made[f"{name}{suffix}"] = self.make(series, suffix, other)
        return pd.DataFrame(made, index=transformable.index)

    @property
    def dynamic_dtypes(self) -> bool:
        """True, because an output's dtype depends on the data."""
        return True

    @property
    def supported_formats(self) -> Any:
        """Data frames of pandas."""
        return DataFormats.PANDAS_DATAFRAME


def one_of(value: Any, known: Mapping[str, Any] | tuple[str, ...], what: str) -> str:
    """Return the value if it is one of the known texts, or refuse it."""
    if isinstance(value, str) and value in known:
        return value
    raise WorkflowError(f"{what}: expected one of {', '.join(map(repr, known))}, got {value!r}")


def plain_number(value: Any, what: str) -> int | float:
    """Return a constant as an int that fits int64, or as a float; refuse anything else, and NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and not np.isnan(value):
        return value
    raise WorkflowError(f"{what}: expected a number that fits 64 bits, got {value!r}")


def plain(series: pd.Series, operator: Any) -> pd.Series:
    """Return a column with any category dtype resolved; refuse lists."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype)
    if series.dtype == object:
        lists = next((v for v in series if isinstance(v, (list, tuple, np.ndarray))), None)
        if lists is not None:
            raise wrong_column(operator, series, "one value a row", f"a list, {lists!r}")
    elif getattr(series.dtype, "kind", "O") == "O" and hasattr(series.dtype, "element_type"):
        raise wrong_column(operator, series, "one value a row", str(series.dtype))
    return series


def wrong_column(
    operator: Any,
    series: pd.Series,
    expected: str,
    came: str,
    remedy: str = "leave the column out, or Cast it before",
) -> WorkflowError:
    """Return (not raise) the error for a column of the wrong type."""
    return WorkflowError(
        f"{type(operator).__name__} on column {series.name!r}: expected {expected}, got {came}; {remedy}"
    )


def is_text(series: pd.Series) -> bool:
    """Whether a column holds text; a column of only nulls does not, unless its dtype is a string's."""
    if series.dtype == object:
        return bool(pd.api.types.infer_dtype(series, skipna=True) in ("string", "mixed"))
    return isinstance(series.dtype, pd.StringDtype)


def numbers(series: pd.Series, operator: Any) -> tuple[Array, Valid]:
    """Return a column of numbers or booleans as int64 or float64, and which are valid (None if all)."""
    null = series.isna().to_numpy(bool)
    valid = ~null if null.any() else None
    kind = getattr(getattr(series.dtype, "numpy_dtype", series.dtype), "kind", "O")
    if kind == "O" and not is_text(series):
        # Floats, integers or booleans beside None, or only None.
        kind = "f" if pd.api.types.infer_dtype(series, skipna=True) in ("floating", "empty") else "i"
    if kind in "iub":
        return series.where(~null, 0).to_numpy().astype(np.int64), valid
    if kind == "f":
        return series.to_numpy(dtype=np.float64, na_value=np.nan), valid
    raise wrong_column(
        operator, series, "numbers or booleans", "text" if is_text(series) else str(series.dtype)
    )


def texts(series: pd.Series, operator: Any) -> tuple[list[str], Valid]:
    """Return a column of text, nulls as '', and which are valid (None if all)."""
    null = series.isna().to_numpy(bool)
    values: list[Any] = series.astype(object).where(~null, "").tolist()
    stray = next((value for value in values if not isinstance(value, str)), "")
    if not isinstance(stray, str):
        raise wrong_column(operator, series, "text", f"{type(stray).__name__} {stray!r}")
    return values, ~null if null.any() else None


def text_objects(series: pd.Series, operator: Any) -> tuple[Array, Valid]:
    """Return a column of text as an object array, and which are valid; see :func:`texts`."""
    values, valid = texts(series, operator)
    out = np.empty(len(values), object)
    out[:] = values
    return out, valid


def made(values: Any, valid: Valid, like: pd.Series) -> pd.Series:
    """Return values as a column, in float64 with NaN if ``valid`` has nulls."""
    if valid is None or valid.all():
        return pd.Series(values, index=like.index)
    return pd.Series(np.where(valid, np.asarray(values, np.float64), np.nan), index=like.index)


def made_text(values: Any, valid: Valid, like: pd.Series) -> pd.Series:
    """Return texts as a column, with None for nulls."""
    out = np.empty(len(like), object)
    out[:] = list(values)
    if valid is not None:
        out[~valid] = None
    return pd.Series(out, index=like.index)
