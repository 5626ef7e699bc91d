"""Requests, and the expected output of ``user_features``, which ``verify.reference`` does not cover."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tiny_release import COLUMNS, DAY_S, Tiny, had_at, ids_array, objects

from tiercel_serving.rules.table import AskingRule
from tiercel_serving.stages.specs import LENGTHS, PACKED

#: List tensor → the companion tensor that holds the length of each row.
COMPANIONS = {**LENGTHS, **{column.tensor: str(column.companion) for column in COLUMNS if column.is_list}}


@dataclass(frozen=True)
class Ask:
    """One user's request; None is null."""

    user_id: Any
    k: int | None = None
    exclude: Sequence[Any] = ()
    history: Sequence[Any] | None = None
    age: float | None = None
    occupation: bytes | None = None
    tags: Sequence[int] | None = None
    tags__length: float | None = None
    hour: int | None = None
    allow_seen: bool | None = None
    include: Sequence[Any] | None = None
    candidates: Sequence[Any] | None = None
    now: float | None = None
    again_days: float | None = None


def tensors(asks: Sequence[Ask], *, lengths: bool = True) -> dict[str, np.ndarray]:
    """Return one request for these users, as a client sends it: inputs that no user sets are left out.

    Parameters
    ----------
    lengths
        Send lengths even where every list is as wide as the tensor.
    """
    out: dict[str, np.ndarray] = {"user_id": ids_array([ask.user_id for ask in asks])[:, None]}
    if any(ask.k is not None for ask in asks):
        out["k"] = np.array([[4 if ask.k is None else ask.k] for ask in asks], np.int32)
    id_of = type(asks[0].user_id)
    _put_lists(out, "exclude_item_ids", [list(ask.exclude) or None for ask in asks], id_of, lengths)
    _put_lists(out, "history_item_ids", [ask.history for ask in asks], id_of, lengths)
    _put_lists(out, "include_item_ids", [ask.include for ask in asks], id_of, lengths)
    _put_lists(out, "candidate_item_ids", [ask.candidates for ask in asks], id_of, lengths)
    _put_lists(out, "tags", [ask.tags for ask in asks], int, lengths)
    floats = (
        ("age", np.float64),
        ("tags__length", np.float32),
        ("now", np.float64),
        ("again_days", np.float64),
    )
    for name, dtype in floats:
        numbers = [getattr(ask, name) for ask in asks]
        if any(number is not None for number in numbers):
            out[name] = np.array([[np.nan if number is None else number] for number in numbers], dtype)
    if any(ask.occupation is not None for ask in asks):
        out["occupation"] = objects([ask.occupation or b"" for ask in asks])[:, None]
        out["occupation__valid"] = np.array([[ask.occupation is not None] for ask in asks])
    if any(ask.hour is not None for ask in asks):
        out["hour"] = np.array([[ask.hour or 0] for ask in asks], np.int64)
        out["hour__valid"] = np.array([[ask.hour is not None] for ask in asks])
    if any(ask.allow_seen is not None for ask in asks):
        out["allow_seen"] = np.array([[bool(ask.allow_seen)] for ask in asks])
    return out


def _put_lists(
    out: dict[str, np.ndarray], name: str, rows: Sequence[Sequence[Any] | None], kind: type, lengths: bool
) -> None:
    if all(row is None for row in rows):
        return
    width = max(len(row) for row in rows if row is not None)
    filler: Any = b"x" if kind is bytes else 12345
    padded = [[*(row or ()), *[filler] * (width - len(row or ()))] for row in rows]
    flat = [value for row in padded for value in row]
    values = objects(flat) if kind is bytes else np.array(flat, np.int64)
    out[name] = values.reshape(len(rows), width)
    if lengths or any(row is None or len(row) < width for row in rows):
        sizes = [-1 if row is None else len(row) for row in rows]
        out[COMPANIONS[name]] = np.array(sizes, np.int32)[:, None]


def pack(ids: Sequence[bytes]) -> bytes:
    """Pack a list of text ids into one element: a little-endian uint32 count, then NUL-terminated ids."""
    return len(ids).to_bytes(4, "little") + b"".join(one + b"\0" for one in ids)


def packed(request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the same request with its lists of text ids packed, but for those with a NUL in an id."""
    out = dict(request)
    for name, element in PACKED.items():
        if name in out and any(b"\0" in one for one in out[name].reshape(-1).tolist()):
            continue
        ids, lengths = out.pop(name, None), out.pop(LENGTHS[name], None)
        if ids is not None:
            sizes = [ids.shape[1]] * len(ids) if lengths is None else lengths[:, 0].tolist()
            rows = zip(ids.tolist(), sizes, strict=True)
            out[element] = objects([pack(row[:n]) if n >= 0 else b"" for row, n in rows])[:, None]
    return out


def user_features(tiny: Tiny, ask: Ask) -> dict[str, Any]:
    """Return the status, merged raw features, history, and the excluded and masked rows."""
    users, pad, settings = len(tiny.user_ids), len(tiny.item_ids), tiny.settings
    row = tiny.user_ids.index(ask.user_id) if ask.user_id in tiny.user_ids else users
    age = None if ask.age is not None and np.isnan(ask.age) else ask.age
    told = [age, ask.occupation, ask.tags, ask.history]
    status = 0 if row < users else 1 if any(value is not None for value in told) else 2
    stored: Mapping[str, Any] = {"age": None, "occupation": None, "tags": None}
    if row < users:
        stored = {"age": tiny.age[row], "occupation": tiny.occupation[row], "tags": tiny.tags[row]}

    def rows_of(ids: Sequence[Any]) -> list[int]:
        return [tiny.item_ids.index(item) for item in ids if item in tiny.item_ids]

    history = tiny.history[row] if row < users else []
    if ask.history is not None:
        history = rows_of(ask.history)
    last = history[-settings.history_length :] if settings.history_length else []
    excluded, had = set(rows_of(ask.exclude)), set(last) | (tiny.seen[row] if row < users else set())
    if not (settings.allow_seen if ask.allow_seen is None else ask.allow_seen):
        excluded |= set(rows_of(ask.history or ()))
    else:
        had = set()
    days = settings.seen_again_days
    if days is not None:
        # Only the stored history has times; items in the request's own history count as just consumed.
        now = time.time() if ask.now is None else ask.now
        said = days.default if ask.again_days is None else ask.again_days
        times = {item: had_at(place) for place, item in enumerate(tiny.history[row] if row < users else [])}
        # Times in the future count as now, so that with 0 days they may come too.
        had = {item for item in had if item in times and max(now - times[item], 0.0) < said * DAY_S}
        excluded = set(rows_of(ask.exclude)) if said == 0 else excluded
    every = set(range(pad))
    only = every if ask.include is None else set(rows_of(ask.include))
    listed = None
    if ask.candidates is not None:
        listed = [tiny.item_ids.index(one) if one in tiny.item_ids else pad for one in ask.candidates]
        only = only & set(listed)
    told = {"tags": ask.tags if ask.tags is not None else stored["tags"], "person": ask.user_id}
    told["age"] = stored["age"] if age is None else age
    request = {"hour": ask.hour}
    ruled = {row for row in every if not _passes(settings, tiny.item(row), told, request)}
    return {
        "listed": listed,
        "status": status,
        "age": stored["age"] if age is None else age,
        "occupation": stored["occupation"] if ask.occupation is None else ask.occupation,
        "tags": stored["tags"] if ask.tags is None else ask.tags,
        "tags__length": ask.tags__length,
        "hour": ask.hour,
        "history_row": last + [pad] * (settings.history_length - len(last)),
        "history_length": len(last),
        "excluded": excluded,
        "masked": excluded | had | (every - only) | ruled,
    }


def _passes(
    settings: Any, item: Mapping[str, Any], user: Mapping[str, Any], request: Mapping[str, Any]
) -> bool:
    """Return whether an item passes the rules on users and requests; none of them has an item-only part."""
    asking = [rule for rule in settings.rules if isinstance(rule, AskingRule)]
    return all(rule.reference_of(item, user, request, 0.0) for rule in asking)
