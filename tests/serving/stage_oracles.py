"""What each stage must answer, one user at a time in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tiny_release import Tiny, ids_array, objects

from tiercel_serving.settings import BEYOND_KEPT, EMPTY_SLOT, FIRST_RULE_REASON, KEPT


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
    hour: int | None = None


def tensors(asks: Sequence[Ask], *, lengths: bool = True) -> dict[str, np.ndarray]:
    """One request for these users, as a client would send it: what nobody says is left out.

    Parameters
    ----------
    lengths
        Send ``__length`` even where every list is as wide as the tensor.
    """
    out: dict[str, np.ndarray] = {"user_id": ids_array([ask.user_id for ask in asks])[:, None]}
    if any(ask.k is not None for ask in asks):
        out["k"] = np.array([[4 if ask.k is None else ask.k] for ask in asks], np.int32)
    id_of = type(asks[0].user_id)
    _put_lists(out, "exclude_item_ids", [list(ask.exclude) or None for ask in asks], id_of, lengths)
    _put_lists(out, "history_item_ids", [ask.history for ask in asks], id_of, lengths)
    _put_lists(out, "tags", [ask.tags for ask in asks], int, lengths)
    if any(ask.age is not None for ask in asks):
        out["age"] = np.array([[np.nan if ask.age is None else ask.age] for ask in asks], np.float64)
    if any(ask.occupation is not None for ask in asks):
        out["occupation"] = objects([ask.occupation or b"" for ask in asks])[:, None]
        out["occupation__valid"] = np.array([[ask.occupation is not None] for ask in asks])
    if any(ask.hour is not None for ask in asks):
        out["hour"] = np.array([[ask.hour or 0] for ask in asks], np.int64)
        out["hour__valid"] = np.array([[ask.hour is not None] for ask in asks])
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
        out[f"{name}__length"] = np.array(sizes, np.int32)[:, None]


def user_features(tiny: Tiny, ask: Ask) -> dict[str, Any]:
    """Row, status, the merged raw features, history and everything that must not come."""
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
    excluded = set(rows_of(ask.exclude)) | set(rows_of(ask.history or ()))
    return {
        "user_row": row,
        "status": status,
        "age": stored["age"] if age is None else age,
        "occupation": stored["occupation"] if ask.occupation is None else ask.occupation,
        "tags": stored["tags"] if ask.tags is None else ask.tags,
        "hour": ask.hour,
        "history_row": last + [pad] * (settings.history_length - len(last)),
        "history_length": len(last),
        "excluded": excluded,
        "masked": excluded | set(last) | (tiny.seen[row] if row < users else set()),
    }


def retrieval(tiny: Tiny, query: np.ndarray, masked: set[int], status: int) -> list[tuple[int, float, int]]:
    """(row, score, source) of the candidates, best first."""
    settings = tiny.settings
    n = settings.candidates
    popular = [row for row in tiny.popular_rows if row not in masked]
    code = {source.kind: number + 1 for number, source in enumerate(settings.sources)}
    if status == 2 and settings.unknown_users == "popular":
        score_of = dict(zip(tiny.popular_rows, tiny.popular_scores.tolist(), strict=True))
        chosen = dict.fromkeys(popular[:n], code["popular"])
    else:
        score_of = dict(enumerate(np.einsum("bmd,bd->bm", tiny.vectors[None], query[None])[0].tolist()))
        nearest = sorted(
            (row for row in range(len(tiny.vectors)) if row not in masked),
            key=lambda row: (-score_of[row], row),
        )
        chosen = {}
        given = sum(source.quota or 0 for source in settings.sources)
        for number, source in enumerate(settings.sources):
            quota = n - given if source.quota is None else source.quota
            fresh = [row for row in (nearest if source.kind == "index" else popular) if row not in chosen]
            chosen |= dict.fromkeys(fresh[:quota], number + 1)
        rest = [row for row in popular if row not in chosen]
        chosen |= dict.fromkeys(rest[: n - len(chosen)], code["popular"])
    ordered = sorted(chosen, key=lambda row: (-score_of[row], row))
    return [(row, score_of[row], chosen[row]) for row in ordered]


COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}


def filtering(tiny: Tiny, retrieved: Sequence[int]) -> tuple[list[int], list[int]]:
    """Places of the kept among the retrieved, and the reason of each retrieved."""
    kept: list[int] = []
    reasons: list[int] = []
    for place, row in enumerate(retrieved):
        if row == len(tiny.item_ids):
            reasons.append(EMPTY_SLOT)
            continue
        failed = [i for i, rule in enumerate(tiny.settings.rules) if not _passes(tiny, row, rule)]
        if failed:
            reasons.append(FIRST_RULE_REASON + failed[0])
        elif len(kept) < tiny.settings.kept:
            kept.append(place)
            reasons.append(KEPT)
        else:
            reasons.append(BEYOND_KEPT)
    return kept, reasons


def _passes(tiny: Tiny, row: int, rule: Any) -> bool:
    value: Any = {"year": tiny.year, "label": tiny.label, "genres": tiny.genres}[rule.column][row]
    wanted = rule.value
    if isinstance(wanted, str):
        wanted = wanted.encode()
    elif isinstance(wanted, (list, tuple)):
        wanted = [v.encode() if isinstance(v, str) else v for v in wanted]
    if value is None:
        return False
    if isinstance(value, list):
        return any(v in wanted for v in value) == (rule.operator == "in")
    return COMPARE[rule.operator](value, wanted)


def ordering(
    tiny: Tiny, kept: Sequence[int], kept_score: np.ndarray, rank_score: np.ndarray, status: int, k: int
) -> list[tuple[Any, float]]:
    """(item id, score) of the answer."""
    weights = tiny.settings.task_weights or (1.0,)
    scored = []
    for place, row in enumerate(kept):
        if row == len(tiny.item_ids):
            continue
        score = np.float32(0)
        for task, weight in enumerate(weights):
            score = np.float32(score + np.float32(weight) * rank_score[place, task])
        if status == 2 and tiny.settings.unknown_users == "popular":
            score = kept_score[place]
        scored.append((row, -np.inf if np.isnan(score) else float(score)))
    scored.sort(key=lambda pair: (-pair[1], pair[0]))
    return [(tiny.item_ids[row], score) for row, score in scored[:k]]
