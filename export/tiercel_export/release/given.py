"""What a caller hands to an export, checked before any work: ids, frames, vectors, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tiercel_serving.columns import Column
from tiercel_serving.features import InputColumn
from tiercel_serving.settings import RULE_OPERATORS, Rule, ServingSettings
from tiercel_serving.spec import Array

from ..errors import ExportInputError

#: How many offending values a message lists.
_SHOWN = 5


@dataclass(frozen=True)
class Events:
    """Interactions by rows instead of raw ids, in order of time.

    Parameters
    ----------
    users
        ``[n]`` user rows; -1 for a user that the store does not hold.
    items
        ``[n]`` catalogue rows.
    """

    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]


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
        values = series.to_numpy()
        if kind == "u" and len(values) and int(values.max()) > np.iinfo(np.int64).max:
            raise ExportInputError(f"{what}: ids in {column!r} do not fit 64 bits with a sign")
        return np.asarray(values, np.int64)
    values = series.to_numpy(dtype=object)
    return _as_bytes(values, column, what, series.dtype)


def _as_bytes(values: Array, column: str, what: str, dtype: Any) -> Array:
    kinds = {type(value) for value in values}
    if kinds and all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        return values.astype(np.int64)
    if not kinds <= {str, bytes}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ExportInputError(
            f"{what}: ids in {column!r} must be all integers or all strings; came {dtype} of {names}"
        )
    encoded = np.empty(len(values), object)
    try:
        encoded[:] = [value.encode() if isinstance(value, str) else value for value in values]
    except UnicodeEncodeError as error:
        raise ExportInputError(f"{what}: an id in {column!r} is no valid text: {error}") from error
    return encoded


def unique_ids(frame: pd.DataFrame, column: str, what: str) -> Array:
    """Return a frame's ids, which must be distinct and at least one."""
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


def id_dtype(ids: Array) -> str:
    """Return ``int64`` or ``bytes``."""
    return "bytes" if ids.dtype == np.object_ else "int64"


def shown(values: Array | Sequence[Any]) -> str:
    """Return the first few values for a message."""
    texts = [
        repr(value.decode(errors="replace") if isinstance(value, bytes) else value)
        for value in values[:_SHOWN]
    ]
    return ", ".join(texts) + (", …" if len(values) > _SHOWN else "")


def check_events(
    interactions: pd.DataFrame | None,
    item_ids: Array,
    user_ids: Array | None,
    *,
    item_id: str,
    user_id: str,
    timestamp: str | None,
    notes: list[str],
) -> Events:
    """Turn interactions into rows, in order of time (ties in the order of the frame).

    Interactions with items that the catalogue lacks are dropped. Those of users that the store lacks
    count for popularity only. Both are said in ``notes``.
    """
    if interactions is None:
        nobody = np.zeros(0, np.int64)
        return Events(nobody, nobody)
    event_items = raw_ids(interactions, item_id, "interactions")
    _same_kind(event_items, item_ids, item_id, "items")
    items = pd.Index(item_ids).get_indexer(event_items)
    event_users = raw_ids(interactions, user_id, "interactions")
    users = np.full(len(items), -1, np.int64)
    if user_ids is not None:
        _same_kind(event_users, user_ids, user_id, "users")
        users = pd.Index(user_ids).get_indexer(event_users).astype(np.int64)
    order = _time_order(interactions, timestamp)
    known = items[order] >= 0
    dropped = int((~known).sum())
    if dropped:
        distinct = pd.unique(event_items[items < 0])
        notes.append(
            f"interactions: {dropped} of {len(items)} name {len(distinct)} items that `items` does not hold "
            f"({shown(distinct)}); they were dropped"
        )
    strangers = users < 0
    if user_ids is not None and strangers.any():
        distinct = pd.unique(event_users[strangers])
        notes.append(
            f"interactions: {int(strangers.sum())} of {len(users)} belong to {len(distinct)} users that "
            f"`users` does not hold ({shown(distinct)}); they count for popularity only"
        )
    return Events(users[order][known], items[order][known].astype(np.int64))


def _same_kind(ids: Array, others: Array, column: str, where: str) -> None:
    if len(ids) and len(others) and id_dtype(ids) != id_dtype(others):
        raise ExportInputError(
            f"interactions: {column!r} holds {id_dtype(ids)} ids, but {where} has {id_dtype(others)}; "
            "convert one of them"
        )


def _time_order(interactions: pd.DataFrame, timestamp: str | None) -> npt.NDArray[np.intp]:
    if timestamp is None:
        return np.arange(len(interactions))
    if timestamp not in interactions.columns:
        raise ExportInputError(
            f"interactions: no column {timestamp!r} to order them by; name another one, or pass "
            "timestamp=None if the rows are already in order of time"
        )
    times = interactions[timestamp]
    nulls = int(times.isna().sum())
    if nulls:
        raise ExportInputError(
            f"interactions: {nulls} of {len(times)} have no {timestamp!r}; fill or drop them"
        )
    return np.argsort(times.to_numpy(), kind="stable")


def check_vectors(vectors: Any, items: int, what: str = "item_vectors") -> Array:
    """Return item vectors as ``[I, D]`` float32, C-contiguous.

    Raises
    ------
    ExportInputError
        For another shape, a dtype that is no float, or values that are not finite.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or len(array) != items or array.shape[1] == 0:
        raise ExportInputError(
            f"{what}: expected [{items}, D], one row for each row of `items` in its order; "
            f"came {list(array.shape)}"
        )
    if array.dtype.kind != "f":
        raise ExportInputError(f"{what}: expected float32, came {array.dtype}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ExportInputError(
            f"{what}: {int(bad.sum())} of {items} vectors hold NaN or infinity, the first in row "
            f"{int(np.argmax(bad))}"
        )
    return np.ascontiguousarray(array, np.float32)


def check_settings(settings: ServingSettings, items: int, notes: list[str]) -> None:
    """Refuse settings that contradict themselves.

    More candidates than items is not refused: the slots stay empty, and a later catalogue may fill
    them with the same models. It is said in ``notes``.

    Raises
    ------
    ExportInputError
        One message with every contradiction.
    """
    wrong = [text for text in _limits(settings) if text] + _sources(settings)
    if wrong:
        raise ExportInputError("settings: " + "; ".join(wrong))
    if settings.candidates > items:
        notes.append(
            f"settings: {settings.candidates} candidates of {items} items; "
            f"{settings.candidates - items} slots stay empty"
        )


def _limits(settings: ServingSettings) -> list[str]:
    positive = ("candidates", "kept", "k_default", "k_max", "max_batch_size", "max_excluded", "instances")
    wrong = [
        f"{name} is {getattr(settings, name)}, at least 1 is needed"
        for name in (*positive, "engine_threads")
        if getattr(settings, name) < 1
    ]
    natural = ("history_length", "queue_delay_us", "max_queue_size")
    wrong += [
        f"{name} is {getattr(settings, name)}, below 0" for name in natural if getattr(settings, name) < 0
    ]
    for low, high in (("kept", "candidates"), ("k_max", "kept"), ("k_default", "k_max")):
        if getattr(settings, low) > getattr(settings, high):
            wrong.append(
                f"{low} ({getattr(settings, low)}) is above {high} ({getattr(settings, high)}); "
                "an answer comes from the kept, the kept come from the candidates"
            )
    if settings.unknown_users not in ("popular", "rank"):
        wrong.append(f"unknown_users is {settings.unknown_users!r}; expected 'popular' or 'rank'")
    if settings.history_columns and not settings.history_length:
        wrong.append("history_columns need a history_length above 0")
    return wrong


def _sources(settings: ServingSettings) -> list[str]:
    wrong = []
    names = [source.name for source in settings.sources]
    if len(set(names)) != len(names):
        wrong.append(f"sources have the same name twice: {', '.join(names)}")
    for source in settings.sources:
        if source.kind not in ("index", "popular"):
            wrong.append(f"source {source.name!r}: kind {source.kind!r}; expected 'index' or 'popular'")
        if source.quota is not None and source.quota < 0:
            wrong.append(f"source {source.name!r}: quota {source.quota} is below 0")
    popular = sum(source.kind == "popular" for source in settings.sources)
    if popular != 1:
        wrong.append(
            f"exactly one source must be of the kind 'popular' (its quota may be 0); there are {popular}"
        )
    open_ended = [source.name for source in settings.sources if source.quota is None]
    if len(open_ended) > 1:
        wrong.append(f"only one source may leave its quota open; {', '.join(open_ended)} do")
    quotas = sum(source.quota or 0 for source in settings.sources)
    if quotas > settings.candidates:
        wrong.append(f"the sources' quotas are {quotas} together, above {settings.candidates} candidates")
    return wrong


def check_columns(settings: ServingSettings, items: pd.DataFrame, item_cat: Sequence[str]) -> None:
    """Refuse rules, a title or history columns that speak of what the items do not have.

    Parameters
    ----------
    settings
        The settings.
    items
        The raw item columns.
    item_cat
        Names of the items' packed scalar categories.
    """
    columns = ", ".join(map(str, items.columns))
    wrong: list[str] = []
    if settings.title_column is not None and settings.title_column not in items.columns:
        wrong.append(f"title_column {settings.title_column!r} is no column of `items` ({columns})")
    wrong += [
        f"history column {name!r} is no scalar category of the workflow's items "
        f"({', '.join(item_cat) or 'there are none'})"
        for name in settings.history_columns
        if name not in item_cat
    ]
    for rule in settings.rules:
        if rule.operator not in RULE_OPERATORS:
            wrong.append(
                f"rule {rule.name!r}: operator {rule.operator!r} is none of {', '.join(RULE_OPERATORS)}"
            )
        elif rule.operator in ("in", "not in") and not isinstance(rule.value, (list, tuple)):
            wrong.append(f"rule {rule.name!r}: {rule.operator!r} needs a list of values, came {rule.value!r}")
        if rule.column not in items.columns:
            wrong.append(f"rule {rule.name!r}: {rule.column!r} is no column of `items` ({columns})")
        try:
            json.dumps(rule.value)
        except TypeError:
            wrong.append(f"rule {rule.name!r}: the value {rule.value!r} is no plain JSON value")
    if wrong:
        raise ExportInputError("settings: " + "; ".join(wrong))


def check_rules(rules: Sequence[Rule], columns: Mapping[str, Column]) -> None:
    """Refuse rules whose operator or value does not fit what their column holds.

    Parameters
    ----------
    rules
        The rules.
    columns
        Raw item columns by name.
    """
    wrong = []
    for rule in rules:
        column = columns[rule.column]
        values = rule.value if isinstance(rule.value, (list, tuple)) else [rule.value]
        text = column.values.dtype == np.object_
        for value in values:
            if isinstance(value, str) != text:
                kind = "text" if text else "numbers"
                wrong.append(f"rule {rule.name!r}: column {rule.column!r} holds {kind}, came {value!r}")
        if column.is_list and rule.operator not in ("in", "not in"):
            wrong.append(f"rule {rule.name!r}: column {rule.column!r} is a list; use 'in' or 'not in'")
    if wrong:
        raise ExportInputError("settings: " + "; ".join(wrong))


def infer_column(series: pd.Series, name: str, what: str) -> InputColumn:
    """Return how a raw column that no program reads is stored: by its own dtype.

    Raises
    ------
    ExportInputError
        If it holds something else than numbers, booleans, text, or lists of these.
    """
    present = series[series.notna()] if series.dtype == object else series
    first = present.iloc[0] if len(present) else None
    is_list = isinstance(first, (list, tuple, np.ndarray))
    sample = pd.Series([value for row in present for value in row], dtype=object) if is_list else present
    kind = getattr(sample.dtype, "kind", "O")
    if kind == "O":
        kinds = {type(value) for value in sample}
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


_PYTHON_TYPES: tuple[tuple[str, set[type]], ...] = (
    ("bool", {bool, np.bool_}),
    ("int64", {int, np.int64, np.int32}),
    ("float64", {int, float, np.int64, np.int32, np.float64, np.float32}),
    ("bytes", {str, bytes}),
)
