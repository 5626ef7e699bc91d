"""A data set in memory: three pandas tables with plain dtypes, whose ids join."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataCorrupt

#: Called as ``progress(what, done, total)`` during long work; ``total`` is None where it is not known.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Dataset:
    """Users, items and the interactions between them.

    The columns have plain dtypes: integers, floats (NaN is null), booleans, objects of ``str`` (None
    is null), and objects of lists. An integer column with nulls is a float column, and a point in
    time is whole seconds since 1970 (UTC).

    Parameters
    ----------
    name
        What the data set is called.
    users
        One row a user; has the column ``user_id``.
    items
        One row an item; has the column ``item_id``. The row's position is the catalogue row.
    interactions
        One row an interaction; has the columns ``user_id``, ``item_id`` and, if it is not None,
        ``timestamp``.
    user_id, item_id, timestamp
        Names of those columns. ``timestamp`` is None if the interactions carry no time.
    source
        Where the tables came from, for people.
    """

    name: str
    users: pd.DataFrame
    items: pd.DataFrame
    interactions: pd.DataFrame
    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = "timestamp"
    source: str = ""

    @property
    def context_columns(self) -> tuple[str, ...]:
        """Columns of the interactions other than ids and time: what a request can tell."""
        known = {self.user_id, self.item_id, self.timestamp}
        return tuple(name for name in self.interactions.columns if name not in known)

    def joined(self, interactions: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return interactions with the columns of their user and item, in the order of the interactions.

        Parameters
        ----------
        interactions
            Some of the interactions; None takes all.
        """
        left = self.interactions if interactions is None else interactions
        frame = left.merge(self.users, on=self.user_id, how="left", validate="many_to_one")
        return frame.merge(self.items, on=self.item_id, how="left", validate="many_to_one")

    def check(self) -> Dataset:
        """Return the data set with plain dtypes, after checking that the tables fit together.

        Raises
        ------
        DataCorrupt
            If a column is missing or has no supported type, an id is null or repeated, or an
            interaction names a user or an item that the tables do not have.
        """
        users = plain_frame(self.users, f"{self.name}: users")
        items = plain_frame(self.items, f"{self.name}: items")
        interactions = plain_frame(self.interactions, f"{self.name}: interactions")
        _check_ids(self.name, "users", users, self.user_id)
        _check_ids(self.name, "items", items, self.item_id)
        _check_join(self.name, "users", users, interactions, self.user_id)
        _check_join(self.name, "items", items, interactions, self.item_id)
        _check_time(self.name, interactions, self.timestamp)
        _check_shared_names(self, users, items, interactions)
        return Dataset(
            self.name, users, items, interactions, self.user_id, self.item_id, self.timestamp, self.source
        )


def plain_frame(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a frame with a fresh index and plain dtypes only (see :class:`Dataset`).

    Raises
    ------
    DataCorrupt
        If a column has a type that no plain dtype stands for.
    """
    if frame.columns.duplicated().any():
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataCorrupt(f"{where}: the column {twice!r} is there twice; rename or drop one")
    plain = {str(name): plain_column(frame[name], f"{where}, column {name!r}") for name in frame.columns}
    return pd.DataFrame(plain, index=pd.RangeIndex(len(frame)), columns=list(plain))


def plain_column(column: pd.Series, where: str) -> np.ndarray:  # type: ignore[type-arg]
    """Return a column's values in a plain dtype."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return plain_column(column.astype(dtype.categories.dtype), where)
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return _seconds(column)
    if pd.api.types.is_bool_dtype(dtype) and not column.isna().any():
        return np.asarray(column.to_numpy(dtype=bool))
    if pd.api.types.is_integer_dtype(dtype) or pd.api.types.is_bool_dtype(dtype):
        return _integers(column)
    if pd.api.types.is_float_dtype(dtype):
        single = str(dtype) in ("float32", "Float32", "float16")
        return np.asarray(column.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan))
    if pd.api.types.is_object_dtype(dtype) or pd.api.types.is_string_dtype(dtype):
        return _objects(column, where)
    raise DataCorrupt(
        f"{where}: expected integers, floats, booleans, strings, dates or lists, found {dtype}; "
        "convert or drop the column"
    )


def _seconds(column: pd.Series) -> np.ndarray:  # type: ignore[type-arg]
    if column.dt.tz is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    nanoseconds = column.to_numpy(dtype="datetime64[ns]")
    null = np.isnat(nanoseconds)
    seconds = nanoseconds.astype("datetime64[s]").astype(np.int64)
    return np.where(null, np.nan, seconds.astype(np.float64)) if null.any() else seconds


def _integers(column: pd.Series) -> np.ndarray:  # type: ignore[type-arg]
    if column.isna().any():
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(column.to_numpy(dtype=np.int64))


def _objects(column: pd.Series, where: str) -> np.ndarray:  # type: ignore[type-arg]
    values = column.to_numpy(dtype=object)
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind in ("string", "empty"):
        strings: np.ndarray[Any, Any] = values.copy()
        strings[column.isna().to_numpy()] = None
        return strings
    if kind in ("date", "datetime"):
        return _seconds(pd.to_datetime(column))
    if kind == "boolean":
        return _integers(column.astype("boolean"))
    first = next((value for value in values if value is not None), None)
    if isinstance(first, list | tuple | np.ndarray):
        return _lists(values, where)
    raise DataCorrupt(
        f"{where}: expected one of integers, floats, booleans, strings, dates or lists in all its rows, "
        f"found {kind}, such as {first!r}; convert or drop the column"
    )


def _lists(values: np.ndarray, where: str) -> np.ndarray:  # type: ignore[type-arg]
    """Return lists of Python values; a null list becomes an empty one, as NVTabular needs."""
    rows = np.empty(len(values), dtype=object)
    kinds: set[str] = set()
    for position, value in enumerate(values):
        if value is None or (isinstance(value, float) and np.isnan(value)):
            rows[position] = []
            continue
        if not isinstance(value, list | tuple | np.ndarray):
            raise DataCorrupt(f"{where}, row {position}: expected a list as in other rows, found {value!r}")
        rows[position] = list(value) if not isinstance(value, np.ndarray) else value.tolist()
        kinds.update(type(element).__name__ for element in rows[position])
    if len(kinds - {"NoneType"}) > 1 or not kinds <= {"str", "int", "float", "bool", "NoneType"}:
        raise DataCorrupt(
            f"{where}: the lists must hold one of strings, integers or floats, found "
            f"{', '.join(sorted(kinds))}"
        )
    return rows


def _check_ids(name: str, table: str, frame: pd.DataFrame, column: str) -> None:
    if column not in frame.columns:
        raise DataCorrupt(
            f"{name}: {table} has no column {column!r} for the ids; it has {', '.join(frame.columns)}"
        )
    _check_id_dtype(name, table, frame[column])
    if not len(frame):
        raise DataCorrupt(f"{name}: {table} is empty; expected at least one row")
    repeated = frame[column][frame[column].duplicated()]
    if len(repeated):
        raise DataCorrupt(
            f"{name}: {table}.{column} must be unique, but {repeated.iloc[0]!r} is there more than once "
            f"({len(repeated)} rows too many); keep one row an id"
        )


def _check_id_dtype(name: str, table: str, column: pd.Series) -> None:
    if column.isna().any():
        raise DataCorrupt(
            f"{name}: {table}.{column.name} has {int(column.isna().sum())} null ids; drop those rows"
        )
    strings = column.dtype == object and pd.api.types.infer_dtype(column) in ("string", "empty")
    if column.dtype != np.int64 and not strings:
        raise DataCorrupt(
            f"{name}: {table}.{column.name} must hold 64-bit integers or strings, found {column.dtype}; "
            "convert the ids"
        )


def _check_join(name: str, table: str, frame: pd.DataFrame, interactions: pd.DataFrame, column: str) -> None:
    if column not in interactions.columns:
        raise DataCorrupt(
            f"{name}: interactions has no column {column!r}; it has {', '.join(interactions.columns)}"
        )
    if not len(interactions):
        raise DataCorrupt(f"{name}: interactions is empty; expected at least one row")
    _check_id_dtype(name, "interactions", interactions[column])
    if interactions[column].dtype != frame[column].dtype:
        raise DataCorrupt(
            f"{name}: {column} is {_kind(frame[column])} in {table} but {_kind(interactions[column])} in "
            "interactions; give both the same type"
        )
    unknown = interactions[column][~interactions[column].isin(frame[column])]
    if len(unknown):
        raise DataCorrupt(
            f"{name}: {len(unknown)} interactions have a {column} that {table} does not have, such as "
            f"{unknown.iloc[0]!r}; add those {table} or drop those interactions"
        )


def _kind(column: pd.Series) -> str:
    return "string" if column.dtype == object else str(column.dtype)


def _check_time(name: str, interactions: pd.DataFrame, timestamp: str | None) -> None:
    if timestamp is None:
        return
    if timestamp not in interactions.columns:
        raise DataCorrupt(
            f"{name}: interactions has no column {timestamp!r} for the time; it has "
            f"{', '.join(interactions.columns)}; name the right one, or None if there is none"
        )
    column = interactions[timestamp]
    if column.dtype.kind not in "if" or column.isna().any():
        raise DataCorrupt(
            f"{name}: interactions.{timestamp} must be dates or numbers without nulls, found "
            f"{_kind(column)} with {int(column.isna().sum())} nulls"
        )


def _check_shared_names(
    dataset: Dataset, users: pd.DataFrame, items: pd.DataFrame, interactions: pd.DataFrame
) -> None:
    """Refuse two tables with a column of one name: a feature names its column without its table."""
    tables = {"users": set(users.columns), "items": set(items.columns)}
    tables["interactions"] = set(interactions.columns) - {dataset.user_id, dataset.item_id}
    for first, second in (("users", "items"), ("users", "interactions"), ("items", "interactions")):
        shared = sorted(tables[first] & tables[second])
        if shared:
            raise DataCorrupt(
                f"{dataset.name}: the column {shared[0]!r} is in {first} and in {second}; rename one, since "
                "a feature names its column without its table"
            )
