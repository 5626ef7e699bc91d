"""A data set in memory: three pandas tables with plain dtypes, whose ids join."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from tiercel_client.request import ANONYMOUS_IDS

from ..errors import DataCorrupt
from .plain import plain_frame

#: Called as ``progress(what, done, total)`` during long work; ``total`` is None where it is not known.
Progress = Callable[[str, int, int | None], None]


#: The column that a run adds to each table: the row in the data set.
ROW = "__row__"


@dataclass(frozen=True)
class Dataset:
    """Users, items and the interactions between them.

    The columns have plain dtypes: integers, floats (NaN is null), booleans, objects of ``str`` (None
    is null), and objects of lists. An integer column with nulls is a float column, and a point in
    time is whole seconds since 1970 (UTC).

    Parameters
    ----------
    name
        Name of the data set.
    users, items, interactions
        One row per user, per item (its position is the catalogue row), and per interaction.
    user_id, item_id, timestamp
        Names of the columns of ids and time. ``timestamp`` is None if the interactions carry no time.
    source
        Where the tables came from, as text for people.
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
        """Columns of the interactions other than ids and time: the context that a request can send."""
        known = {self.user_id, self.item_id, self.timestamp}
        return tuple(name for name in self.interactions.columns if name not in known)

    def joined(self, interactions: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return interactions, all or some, with the columns of their user and item, in their order."""
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
        tables = {name: getattr(self, name) for name in ("users", "items", "interactions")}
        for name, frame in tables.items():
            if ROW in frame.columns:
                where = f"{self.name}: {name}"
                raise DataCorrupt(f"{where}: a run needs the name {ROW!r} for itself; rename that column")
        for table, column in (("users", self.user_id), ("items", self.item_id)):
            for name in (table, "interactions"):
                _check_no_dates(f"{self.name}: {name}", tables[name], column)
        plain = {name: plain_frame(frame, f"{self.name}: {name}") for name, frame in tables.items()}
        for table, column in (("users", self.user_id), ("items", self.item_id)):
            ids = _ids(f"{self.name}: {table}", plain[table], column)
            repeated = ids[ids.duplicated()]
            if len(repeated):
                raise DataCorrupt(
                    f"{self.name}: {table}.{column} must be unique, but {repeated.iloc[0]!r} is there more "
                    f"than once ({len(repeated)} rows too many); keep one row an id"
                )
            named = _ids(f"{self.name}: interactions", plain["interactions"], column)
            _check_join(self.name, table, ids, named)
        _check_users(self.name, plain["users"][self.user_id])
        _check_time(f"{self.name}: interactions", plain["interactions"], self.timestamp)
        checked = replace(self, **plain)
        _check_shared_names(checked)
        return checked


def _column(where: str, frame: pd.DataFrame, column: str, what: str) -> pd.Series:
    if column not in frame.columns:
        raise DataCorrupt(
            f"{where} has no column {column!r} for the {what}; it has {', '.join(frame.columns)}; name the "
            "right one in the recipe's data set, or add it"
        )
    return frame[column]


def _check_no_dates(where: str, frame: pd.DataFrame, column: str) -> None:
    ids = frame.get(column)
    if ids is not None and pd.api.types.infer_dtype(ids) in ("date", "datetime", "datetime64"):
        raise dates_as_ids(f"{where}.{column}")


def dates_as_ids(where: str) -> DataCorrupt:
    """Return the error of ids that are dates: converted to seconds, they would match no id of a request."""
    return DataCorrupt(
        f"{where} holds dates or times, and an id is a 64-bit integer or text; write the ids as text, such "
        "as 2024-05-01"
    )


def _ids(where: str, frame: pd.DataFrame, column: str) -> pd.Series:
    """Return a table's ids, which must exist, and be integers or strings without nulls."""
    ids = _column(where, frame, column, "ids")
    if not len(ids):
        raise DataCorrupt(f"{where} is empty; expected at least one row")
    if ids.isna().any():
        raise DataCorrupt(f"{where}.{column} has {int(ids.isna().sum())} null ids; drop those rows")
    if ids.dtype != np.int64 and not (ids.dtype == object and pd.api.types.infer_dtype(ids) == "string"):
        found = "lists" if ids.dtype == object else ids.dtype
        raise DataCorrupt(
            f"{where}.{column} must hold 64-bit integers or strings, found {found}; convert the ids"
        )
    return ids


def _check_join(name: str, table: str, ids: pd.Series, named: pd.Series) -> None:
    if named.dtype != ids.dtype:
        raise DataCorrupt(
            f"{name}: {ids.name} is {_kind(ids)} in {table} but {_kind(named)} in interactions; give "
            "both the same type"
        )
    unknown = named[~named.isin(ids)]
    if len(unknown):
        raise DataCorrupt(
            f"{name}: {len(unknown)} interactions have a {ids.name} that {table} does not have, such as "
            f"{unknown.iloc[0]!r}; add those {table} or drop those interactions"
        )


def _check_users(name: str, ids: pd.Series) -> None:
    """Refuse the id that stands for anonymous users in requests."""
    stand_in = ANONYMOUS_IDS["int64" if ids.dtype == np.int64 else "bytes"]
    taken = stand_in.decode() if isinstance(stand_in, bytes) else stand_in
    if (ids == taken).any():
        raise DataCorrupt(
            f"{name}: users.{ids.name} holds {taken!r}, which stands for whoever has no id in requests; give "
            "that user another id"
        )


def _kind(column: pd.Series) -> str:
    return "string" if column.dtype == object else str(column.dtype)


def _check_time(where: str, interactions: pd.DataFrame, timestamp: str | None) -> None:
    if timestamp is None:
        return
    column = _column(where, interactions, timestamp, "time (None if there is none)")
    nulls = int(column.isna().sum())
    if column.dtype.kind not in "if" or nulls:
        found = f"{nulls} nulls; drop those rows" if nulls else f"{_kind(column)}; convert the column"
        raise DataCorrupt(
            f"{where}.{timestamp} must be dates or numbers without nulls, found {found}, or name no time "
            "(timestamp=None)"
        )
    strays = column[~np.isfinite(column)]
    if len(strays):
        raise DataCorrupt(
            f"{where}.{timestamp} must be dates or finite numbers, found {strays.iloc[0]} in {len(strays)} "
            "rows; drop those rows"
        )


def _check_shared_names(dataset: Dataset) -> None:
    """Refuse a column name that two tables share, since a feature names its column without its table."""
    tables = {"users": set(dataset.users.columns), "items": set(dataset.items.columns)}
    tables["interactions"] = set(dataset.interactions.columns) - {dataset.user_id, dataset.item_id}
    for first, second in combinations(tables, 2):
        shared = sorted(tables[first] & tables[second])
        if shared:
            raise DataCorrupt(
                f"{dataset.name}: the column {shared[0]!r} is in {first} and in {second}; rename one, since "
                "a feature names its column without its table"
            )
