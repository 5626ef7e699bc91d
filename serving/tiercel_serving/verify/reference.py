"""The served graph after its models, said plainly: one user at a time, by each kind's own reference.

No stage, no fast path, no array of users. Golden answers come from here, and the tests of the stages compare
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..settings import (
    BEYOND_KEPT,
    EMPTY_SLOT,
    FALLBACK,
    FIRST_RULE_REASON,
    KEPT,
    ServingSettings,
)
from ..sources.table import UserTensors
from ..spec import Array

#: Two scores closer than this, relative to the larger, may come in either order from another engine.
TIE = 2e-4

_NOTHING = float("-inf")


@dataclass(frozen=True)
class Candidate:
    """One candidate: its catalogue row, its retrieval score, and the code of its source."""

    row: int
    score: float
    source: int


@dataclass(frozen=True)
class Retrieved:
    """One user's candidates, best first, and whether no cut-off falls between scores that nearly tie."""

    candidates: list[Candidate]
    clear: bool


def retrieve(
    settings: ServingSettings,
    sources: Sequence[Mapping[str, Array]],
    user: UserTensors,
    allowed: npt.NDArray[np.bool_],
    *,
    unknown: bool = False,
) -> Retrieved:
    """Return the candidates of one user.

    Parameters
    ----------
    settings
        Sources and N.
    sources
        The arrays of each source's artefact.
    user
        What the sources read.
    allowed
        ``[I]``: what the user may get.
    unknown
        Whether nothing is known of the user.
    """
    fallback = settings.fallback
    if unknown and settings.unknown_users == FALLBACK:
        kind = settings.sources[fallback]
        found = kind.reference(sources[fallback], user, allowed, settings.candidates)
        return Retrieved([Candidate(row, score, fallback + 1) for row, score in found], True)
    free = allowed.copy()
    taken: list[Candidate] = []
    clear = True
    shares = [*enumerate(settings.quotas()), (fallback, settings.candidates)]
    for place, share in shares:
        count = min(share, settings.candidates - len(taken))
        found = settings.sources[place].reference(sources[place], user, free, count + 1)
        scores = [score for _, score in found]
        clear &= not settings.sources[place].personal or _clear_cut(scores, count)
        taken += [Candidate(row, score, place + 1) for row, score in found[:count]]
        free[[candidate.row for candidate in taken]] = False
    return Retrieved(in_order(settings, sources, user, taken), clear)


def in_order(
    settings: ServingSettings,
    sources: Sequence[Mapping[str, Array]],
    user: UserTensors,
    taken: list[Candidate],
) -> list[Candidate]:
    """Sort by the scores of the first source that scores any item; else by source, then score."""
    for kind, arrays in zip(settings.sources, sources, strict=True):
        score_of = getattr(kind, "reference_score", None)
        if score_of is not None:
            scored = [Candidate(c.row, score_of(arrays, user, c.row), c.source) for c in taken]
            return sorted(scored, key=lambda c: (-c.score, c.row))
    return sorted(taken, key=lambda c: (c.source, -c.score, c.row))


def _clear_cut(scores: Sequence[float], cut: int) -> bool:
    """Whether the scores, best first, are clearly apart at the cut-off."""
    if cut <= 0 or cut >= len(scores):
        return True
    return scores[cut - 1] - scores[cut] > TIE * max(abs(scores[cut - 1]), 1e-3)


@dataclass(frozen=True)
class Kept:
    """The kept candidates, their places among the retrieved, every slot's reason, and as in Retrieved."""

    candidates: list[Candidate]
    places: list[int]
    reasons: list[int]
    clear: bool


def keep(
    settings: ServingSettings, item_of: Callable[[int], Mapping[str, Any]], candidates: Sequence[Candidate]
) -> Kept:
    """Keep the first K that pass every rule.

    Parameters
    ----------
    settings
        Rules, N and K.
    item_of
        Catalogue row → the item's raw values.
    candidates
        Best first.
    """
    kept: list[int] = []
    passing: list[float] = []
    reasons = []
    for place, candidate in enumerate(candidates):
        item = item_of(candidate.row)
        failed = [i for i, rule in enumerate(settings.rules) if not rule.reference(item)]
        if failed:
            reasons.append(FIRST_RULE_REASON + failed[0])
            continue
        passing.append(candidate.score)
        reasons.append(KEPT if len(kept) < settings.kept else BEYOND_KEPT)
        if reasons[-1] == KEPT:
            kept.append(place)
    reasons += [EMPTY_SLOT] * (settings.candidates - len(reasons))
    clear = _clear_cut(passing, settings.kept)
    return Kept([candidates[place] for place in kept], kept, reasons, clear)


def order(
    settings: ServingSettings,
    item_of: Callable[[int], Mapping[str, Any]],
    kept: Sequence[Candidate],
    tasks: Sequence[Sequence[float]] | None,
    *,
    unknown: bool = False,
) -> list[tuple[int, float]]:
    """Return (row, final score) of the kept that no step drops, best first; -inf is last.

    Parameters
    ----------
    settings
        The reorder steps.
    item_of
        Catalogue row → the item's raw values.
    kept
        The kept candidates.
    tasks
        The ranker's scores of each, one number a task; None is no ranker.
    unknown
        Whether nothing is known of the user.
    """
    bypass = unknown and settings.unknown_users == FALLBACK
    scores = [candidate.score for candidate in kept]
    if tasks is not None and not bypass:
        scores = [float(of_item[0]) for of_item in tasks]
    described = [
        {**item_of(c.row), "row": c.row, "kept_score": c.score, "rank_score": list(t)}
        for c, t in zip(kept, [()] * len(kept) if tasks is None else tasks, strict=True)
    ]
    rows = [candidate.row for candidate in kept]
    scores = _numbers(scores)
    for step in settings.reorder:
        if bypass and step.of_ranker:
            continue
        changed = step.reference(scores, described)
        stay = [not (new == _NOTHING and old != _NOTHING) for new, old in zip(changed, scores, strict=True)]
        scores = _numbers(compress(changed, stay))
        rows, described = list(compress(rows, stay)), list(compress(described, stay))
    return sorted(zip(rows, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))


def _numbers(scores: Iterable[float]) -> list[float]:
    """Return scores that sort: what is no number goes last."""
    return [_NOTHING if score != score else score for score in scores]


def plain_items(columns: Mapping[str, Column]) -> Callable[[int], dict[str, Any]]:
    """Return what turns a catalogue row into the item's raw values: None is null, text is ``str``."""

    def item_of(row: int) -> dict[str, Any]:
        return {name: _plain_value(column, row) for name, column in columns.items()}

    return item_of


def _plain_value(column: Column, row: int) -> Any:
    if column.offsets is None:
        return _element(column, row)
    if column.row_valid is not None and not column.row_valid[row]:
        return None
    return [_element(column, at) for at in range(column.offsets[row], column.offsets[row + 1])]


def _element(column: Column, at: int) -> Any:
    value = column.values[at]
    if column.valid is not None and not column.valid[at]:
        return None
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    return None if value != value else value.item()
