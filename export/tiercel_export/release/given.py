"""Check the tables that the caller gives to an export, before any work: ids, interactions, columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tiercel_serving.features import InputColumn
from tiercel_serving.release.manifest import IdDtype
from tiercel_serving.settings import ServingSettings
from tiercel_serving.spec import Array
from tiercel_serving.stores.feature_store import ANONYMOUS_IDS

from ..errors import ExportInputError
from ..forms import ServedForm
from .fit import checked_settings, refuse
from .parts import Events, Inputs, TableColumns

#: How many offending values a message lists.
_SHOWN = 5


def raw_ids(frame: pd.DataFrame, column: str, what: str) -> Array:
    """Return a frame's id column as ``[n]`` int64, or as objects that are UTF-8 ``bytes``.

    Raises
    ------
    ExportInputError
        If the column is missing, holds nulls, or is neither integer nor text.
    """
    if column not in frame.columns:
        raise ExportInputError(f"{what}: no column {column!r}; it has {', '.join(map(str, frame.columns))}")
    series = frame[column]
    nulls = int(series.isna().sum())
    if nulls:
        raise ExportInputError(
            f"{what}: {nulls} of {len(series)} ids in {column!r} are null; drop those rows"
        )
    kind = getattr(series.dtype, "kind", "O")
    if kind in "iu":
        values = series.to_numpy(dtype=f"{kind}8")
        if kind == "u" and len(values) and values.max() >= 2**63:
            raise _wide_id(values.max(), column, what)
        return np.asarray(values, np.int64)
    values = series.to_numpy(dtype=object)
    return _as_bytes(values, set(map(type, values)), column, what, series.dtype)


def _as_bytes(values: Array, kinds: set[type], column: str, what: str, dtype: Any) -> Array:
    if kinds and all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        wide = next((value for value in values if not -(2**63) <= value < 2**63), None)
        if wide is not None:
            raise _wide_id(wide, column, what)
        return values.astype(np.int64)
    if not kinds <= {str, bytes}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ExportInputError(
            f"{what}: ids in {column!r} must be all integers or all strings; got {dtype} of {names}"
        )
    encoded = np.empty(len(values), object)
    try:
        encoded[:] = [value.encode() if isinstance(value, str) else value for value in values]
    except UnicodeEncodeError as error:
        raise ExportInputError(f"{what}: an id in {column!r} is not a valid text: {error}") from error
    return encoded


def _wide_id(value: Any, column: str, what: str) -> ExportInputError:
    return ExportInputError(
        f"{what}: ids in {column!r} must fit 64 bits with a sign, got {value}; write them as strings"
    )


def unique_ids(frame: pd.DataFrame, column: str, what: str) -> Array:
    """Return a frame's ids; refuse repeated ids and a frame without rows."""
    ids = raw_ids(frame, column, what)
    if len(ids) == 0:
        raise ExportInputError(f"{what}: no rows")
    repeated = pd.Index(ids).duplicated()
    if repeated.any():
        raise ExportInputError(
            f"{what}: {int(repeated.sum())} of {len(ids)} rows repeat an id in {column!r} "
            f"({shown(ids[repeated])}); keep one row for each"
        )
    return ids


def _user_ids(users: pd.DataFrame, column: str) -> Array:
    """Return the users' ids; refuse the id that requests use for anonymous users."""
    ids = unique_ids(users, column, "users")
    taken = ANONYMOUS_IDS[id_dtype(ids)]
    if taken in pd.Index(ids):
        raise ExportInputError(
            f"users: an id in {column!r} is {taken!r}, which stands for whoever has no id in requests; give "
            "that user another"
        )
    return ids


def id_dtype(ids: Array) -> IdDtype:
    """Return ``int64`` or ``bytes``."""
    return "bytes" if ids.dtype == np.object_ else "int64"


def shown(values: Array | Sequence[Any]) -> str:
    """Return the first few values as text for a message."""
    texts = [
        repr(value.decode(errors="replace") if isinstance(value, bytes) else value)
        for value in values[:_SHOWN]
    ]
    return ", ".join(texts) + (", …" if len(values) > _SHOWN else "")


def check_inputs(
    *,
    items: pd.DataFrame,
    users: pd.DataFrame | None,
    interactions: pd.DataFrame | None,
    columns: TableColumns,
    settings: ServingSettings,
    retrieval: Mapping[str, ServedForm],
    seed: int,
) -> Inputs:
    """Check the inputs by themselves and against each other.

    More candidates than items are allowed and noted. The extra slots stay empty, and a later catalogue may
    fill them with the same models.

    Raises
    ------
    ExportInputError
        An input is invalid, or inputs do not fit together.
    """
    notes: list[str] = []
    settings = checked_settings(settings, retrieval)
    if interactions is not None and columns.timestamp is None:
        refuse(settings.timeless())
    item_ids = unique_ids(items, columns.item_id, "items")
    empty = settings.candidates - len(item_ids)
    if empty > 0:
        notes.append(
            f"settings: {settings.candidates} candidates of {len(item_ids)} items; {empty} slots stay empty"
        )
    if users is not None:
        user_ids = _user_ids(users, columns.user_id)
    else:
        # The store has no users; the ids' type is that of the interactions, if there are any.
        like = None if interactions is None else _factorized(interactions, columns.user_id, "interactions")[1]
        user_ids = np.zeros(0, np.int64 if like is None else like.dtype)
    events = check_events(interactions, item_ids, None if users is None else user_ids, columns, notes)
    return Inputs(
        items=_numbered(items),
        users=None if users is None else _numbered(users),
        interactions=interactions,
        item_ids=item_ids,
        user_ids=user_ids,
        events=events,
        columns=columns,
        settings=settings,
        retrieval=retrieval,
        seed=seed,
        notes=notes,
    )


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with a new index from 0, without copying its columns."""
    numbered = frame.copy(deep=False)
    numbered.index = pd.RangeIndex(len(frame))
    return numbered


def check_events(
    interactions: pd.DataFrame | None,
    item_ids: Array,
    user_ids: Array | None,
    columns: TableColumns,
    notes: list[str],
) -> Events:
    """Return interactions as user and catalogue rows, in order of time (ties in the order of the frame).

    Interactions with items that are not in the catalogue are dropped. Those of users that are not in the
    store count for popularity only. Both are added to ``notes``.
    """
    if interactions is None:
        nobody = np.zeros(0, np.int64)
        return Events(nobody, nobody)
    items, distinct = _rows_of(interactions, columns.item_id, item_ids, "items")
    known = items >= 0
    dropped = len(known) - int(np.count_nonzero(known))
    if dropped:
        notes.append(
            f"interactions: {dropped} of {len(items)} name {len(distinct)} items that `items` does not hold "
            f"({shown(distinct)}); they were dropped"
        )
    users, distinct = _rows_of(interactions, columns.user_id, user_ids, "users")
    strangers = 0 if user_ids is None else int(np.count_nonzero(users < 0))
    if strangers:
        notes.append(
            f"interactions: {strangers} of {len(users)} belong to {len(distinct)} users that "
            f"`users` does not hold ({shown(distinct)}); they count for popularity only"
        )
    order, times = _time_order(interactions, columns.timestamp), _seconds(interactions, columns.timestamp)
    if order is not None:
        users, items, known = users[order], items[order], known[order]
        times = None if times is None else times[order]
    if not dropped:
        return Events(users, items, times)
    return Events(users[known], items[known], None if times is None else times[known])


def _rows_of(
    interactions: pd.DataFrame, column: str, ids: Array | None, where: str
) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the row in ``ids`` of each interaction (-1 for none), and the distinct ids without a row.

    Only distinct texts are encoded as bytes, because there are far fewer of them than interactions.
    """
    codes, distinct = _factorized(interactions, column, "interactions")
    if ids is None:
        return np.full(len(interactions), -1, np.int64), distinct[:0]
    _same_kind(distinct, ids, column, where)
    rows = pd.Index(ids).get_indexer(distinct).astype(np.int64)
    missing = distinct[rows < 0]
    return (rows, pd.unique(missing)) if codes is None else (rows.take(codes), missing)


def _factorized(frame: pd.DataFrame, column: str, what: str) -> tuple[npt.NDArray[np.intp] | None, Array]:
    """Return codes ``[n]`` and the distinct ids that they index; for integers, None and all ids."""
    if column not in frame.columns or getattr(frame[column].dtype, "kind", "O") in "iu":
        return None, raw_ids(frame, column, what)
    series = frame[column]
    # Only object columns hold Python objects to take types from; other dtypes yield them in factorize.
    kinds = set(map(type, series.to_numpy())) if series.dtype == object else None
    codes, distinct = pd.factorize(series)
    nulls = int(np.count_nonzero(codes < 0))
    if nulls:
        raise ExportInputError(
            f"{what}: {nulls} of {len(series)} ids in {column!r} are null; drop those rows"
        )
    values = np.asarray(distinct, dtype=object)
    kinds = set(map(type, values)) if kinds is None else kinds
    return codes, _as_bytes(values, kinds, column, what, series.dtype)


def _same_kind(ids: Array, others: Array, column: str, where: str) -> None:
    if len(ids) and len(others) and id_dtype(ids) != id_dtype(others):
        raise ExportInputError(
            f"interactions: {column!r} holds {id_dtype(ids)} ids, but {where} has {id_dtype(others)}; "
            "convert one of them"
        )


def _seconds(interactions: pd.DataFrame, timestamp: str | None) -> npt.NDArray[np.float64] | None:
    """Return the times ``[n]`` in seconds, dates since 1970; None if they are neither numbers nor dates."""
    if timestamp is None:
        return None
    times = interactions[timestamp]
    if pd.api.types.is_datetime64_any_dtype(times):
        utc = pd.to_datetime(times, utc=True).dt.tz_localize(None)
        return np.asarray(utc.to_numpy("datetime64[us]").astype(np.int64) / 1e6, np.float64)
    return times.to_numpy(np.float64) if pd.api.types.is_numeric_dtype(times) else None


def _time_order(interactions: pd.DataFrame, timestamp: str | None) -> npt.NDArray[np.intp] | None:
    """Return the permutation that sorts the interactions by time; None if they are sorted already."""
    if timestamp is None:
        return None
    if timestamp not in interactions.columns:
        raise ExportInputError(
            f"interactions: no column {timestamp!r} to order them by; name another one, or pass "
            "TableColumns(timestamp=None) if the rows are already in order of time"
        )
    times = interactions[timestamp]
    nulls = int(times.isna().sum())
    if nulls:
        raise ExportInputError(
            f"interactions: {nulls} of {len(times)} have no {timestamp!r}; fill or drop them"
        )
    values = times.to_numpy()
    if (values[1:] >= values[:-1]).all():
        return None
    return np.argsort(values, kind="stable")


def infer_column(series: pd.Series, name: str, what: str) -> InputColumn:
    """Return how to store a raw column that no program reads, by its own dtype.

    Raises
    ------
    ExportInputError
        If it contains anything but numbers, booleans, text, dates, or lists of the first three.
    """
    present = series[series.notna()] if series.dtype == object else series
    first = present.iloc[0] if len(present) else None
    is_list = isinstance(first, (list, tuple, np.ndarray))
    kind = getattr(series.dtype, "kind", "O")
    if kind == "M" or (
        series.dtype == object and pd.api.types.infer_dtype(series) in ("date", "datetime", "datetime64")
    ):
        # As in recipes, dates are stored as whole seconds since 1970.
        return InputColumn(name, "int64", False, "item", unit="s")
    if kind == "O":
        kinds = _kinds_in_lists(present) if is_list else set(map(type, present))
        dtype = next((text for text, types in _PYTHON_TYPES if kinds and kinds <= types), None)
        dtype = "bytes" if not kinds else dtype
    else:
        dtype = {"b": "bool", "i": "int64", "u": "int64", "f": "float64"}.get(kind)
    if dtype is None:
        raise ExportInputError(
            f"{what}: column {name!r} ({series.dtype}) holds something else than numbers, booleans, text or "
            "lists of these; convert it"
        )
    return InputColumn(name, dtype, is_list, "item")


def _kinds_in_lists(rows: pd.Series) -> set[type]:
    if set(map(type, rows)) == {np.ndarray} and all(row.dtype != object for row in rows):
        return {dtype.type for dtype in {row.dtype for row in rows if len(row)}}
    return set(map(type, chain.from_iterable(rows))) - {type(None)}


#: Whole numbers of Python, and of NumPy in every width.
_WHOLE: set[type] = {int, *(np.dtype(code).type for code in np.typecodes["AllInteger"])}

#: dtype → the types of its values.
_PYTHON_TYPES: tuple[tuple[str, set[type]], ...] = (
    ("bool", {bool, np.bool_}),
    ("int64", _WHOLE),
    ("float64", {*_WHOLE, float, np.float64, np.float32, np.float16}),
    ("bytes", {str, bytes}),
)
