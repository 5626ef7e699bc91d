"""The served graph, given its models' outputs, in plain code: one user at a time, with each kind's reference.

It uses no stage, no fast path and no array over users. It produces the golden answers, and the tests of the
stages compare with it.
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

#: Another engine may swap two scores whose relative difference is smaller than this.
TIE = 2e-4

_NOTHING = float("-inf")


@dataclass(frozen=True)
class Candidate:
    """One candidate: its catalogue row, its retrieval score, and its source's number, counted from 1."""

    row: int
    score: float
    source: int


@dataclass(frozen=True)
class Retrieved:
    """One user's candidates, best first, and which others near ties may bring in.

    Parameters
    ----------
    candidates
        The candidates.
    certain
        Rows that are retrieved however near ties are resolved.
    band
        Further candidates that may be retrieved; None if there are too many to list.
    """

    candidates: list[Candidate]
    certain: set[int]
    band: list[Candidate] | None


def retrieve(
    settings: ServingSettings,
    sources: Sequence[Mapping[str, Array]],
    user: UserTensors,
    allowed: npt.NDArray[np.bool_],
    *,
    unknown: bool = False,
    spare: int = 0,
) -> Retrieved:
    """Return the candidates of one user.

    Parameters
    ----------
    settings
        Sources and N.
    sources
        The arrays of each source's artefact.
    user
        The tensors that the sources read.
    allowed
        ``[I]`` bool, the items that the user may get.
    unknown
        Whether the user is unknown.
    spare
        How many candidates after each cut-off count as near it, for sources that miss a few.
    """
    fallback = settings.fallback
    if unknown and settings.unknown_users == FALLBACK:
        kind = settings.sources[fallback]
        found = kind.reference(sources[fallback], user, allowed, settings.candidates)
        return Retrieved(
            [Candidate(row, score, fallback + 1) for row, score in found], {r for r, _ in found}, []
        )
    free = allowed.copy()
    taken: dict[int, Candidate] = {}
    maybe: dict[int, Candidate] = {}
    certain: set[int] = set()
    wide = False
    fillers = ((place, settings.candidates) for place in settings.fillers)
    shares = [*enumerate(settings.quotas()), *fillers]
    for place, share in shares:
        count = min(share, settings.candidates - len(taken))
        if count == 0:
            continue
        kind, most = settings.sources[place], len(maybe) + 4 * settings.candidates + 64
        found = kind.reference(sources[place], user, free, most)
        settled = np.array([row not in maybe for row, _ in found], np.bool_)
        scores = np.array([score for _, score in found])
        above = _above(scores, TIE if kind.personal else 0.0)
        sure, near = _first(above, settled, count, spare)
        wide |= len(found) == most and bool(near[-1])
        of_source = [Candidate(row, score, place + 1) for row, score in found]
        taken |= {c.row: c for c in [c for c in of_source if c.row not in taken][:count]}
        certain |= {c.row for c in compress(of_source, sure)}
        maybe |= {c.row: c for c in compress(of_source, near & ~sure) if c.row not in maybe}
        free[list(certain)] = False
    band = None if wide else [c for row, c in maybe.items() if row not in taken]
    return Retrieved(in_order(settings, sources, user, list(taken.values())), certain, band)


def listed(
    settings: ServingSettings,
    sources: Sequence[Mapping[str, Array]],
    user: UserTensors,
    rows: Sequence[int],
    allowed: npt.NDArray[np.bool_],
) -> list[Candidate]:
    """Return the N best of the items that a request names; for other parameters see :func:`retrieve`."""
    mine = [row for row in dict.fromkeys(rows) if row < len(allowed) and allowed[row]]
    terms = scale_of(settings)
    if terms:
        code = terms[0][0] + 1
        scored = [Candidate(row, scale_score(settings, sources, user, row), code) for row in mine]
        return sorted(scored, key=lambda c: (-c.score, c.row))[: settings.candidates]
    first = next(place for place, quota in enumerate(settings.quotas()) if quota > 0)
    return [Candidate(row, -float(place), first + 1) for place, row in enumerate(mine)][: settings.candidates]


def near_cut(
    settings: ServingSettings,
    sources: Sequence[Mapping[str, Array]],
    user: UserTensors,
    item_of: Callable[[int], Mapping[str, Any]],
    found: Retrieved,
    *,
    spare: int = 0,
) -> list[tuple[Candidate, bool]]:
    """Return the candidates that may be kept, best first, and whether each is kept however ties resolve."""
    every = in_order(settings, sources, user, [*found.candidates, *(found.band or ())])
    every = [c for c in every if all(rule.reference(item_of(c.row)) for rule in settings.rules)]
    settled = np.array([c.row in found.certain for c in every], np.bool_)
    above = _above(np.array([c.score for c in every]), TIE)
    if not scale_of(settings):
        # Without a common scale sources follow one another, and an unsettled candidate's source is unknown.
        of = np.array([c.source for c in every])
        above = np.where(of[:, None] == of, above, of[:, None] < of) & settled & settled[:, None]
    sure, near = _first(above, settled, settings.kept, spare)
    return [(c, bool(one)) for c, one in zip(compress(every, near), (sure & settled)[near], strict=True)]


def _above(scores: Array, tie: float) -> npt.NDArray[np.bool_]:
    """Return ``[x, y]``, whether score x is clearly above y (best first); with ``tie`` 0, by position."""
    if not tie:
        return np.tri(len(scores), k=-1, dtype=np.bool_).T
    above: npt.NDArray[np.bool_] = scores[:, None] - scores > tie * np.maximum(np.abs(scores), 1e-3)
    return above


def _first(
    above: npt.NDArray[np.bool_], settled: npt.NDArray[np.bool_], count: int, spare: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which are surely among the first ``count``, and which may be; only settled ones rank ahead."""
    sure = np.count_nonzero(~above, axis=1) - 1 < count
    near = np.count_nonzero(above & settled[:, None], axis=0) < count
    return sure, near | sure | (np.arange(len(above)) < count + spare)


def in_order(
    settings: ServingSettings,
    sources: Sequence[Mapping[str, Array]],
    user: UserTensors,
    taken: list[Candidate],
) -> list[Candidate]:
    """Sort by the common scale, or without one by source and then score."""
    if scale_of(settings):
        scored = [Candidate(c.row, scale_score(settings, sources, user, c.row), c.source) for c in taken]
        return sorted(scored, key=lambda c: (-c.score, c.row))
    return sorted(taken, key=lambda c: (c.source, -c.score, c.row))


def scale_of(settings: ServingSettings) -> list[tuple[int, float]]:
    """Return (place, weight) of the common scale's sources: the blend, or the first that scores any item."""
    if settings.blend:
        names = [source.name for source in settings.sources]
        return [(names.index(name), weight) for name, weight in settings.blend]
    scoring = [place for place, kind in enumerate(settings.sources) if hasattr(kind, "reference_score")]
    return [(place, 1.0) for place in scoring[:1]]


def scale_score(
    settings: ServingSettings, sources: Sequence[Mapping[str, Array]], user: UserTensors, row: int
) -> float:
    """Return the score of one item on the common scale."""
    total = 0.0
    for place, weight in scale_of(settings):
        kind: Any = settings.sources[place]
        total += weight * kind.reference_score(sources[place], user, row)
    return total


@dataclass(frozen=True)
class Kept:
    """The kept candidates, their places among the retrieved ones, and the reason code of every slot."""

    candidates: list[Candidate]
    places: list[int]
    reasons: list[int]


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
        The retrieved candidates, best first.
    """
    kept: list[int] = []
    reasons = []
    for place, candidate in enumerate(candidates):
        item = item_of(candidate.row)
        failed = [i for i, rule in enumerate(settings.rules) if not rule.reference(item)]
        if failed:
            reasons.append(FIRST_RULE_REASON + failed[0])
            continue
        reasons.append(KEPT if len(kept) < settings.kept else BEYOND_KEPT)
        if reasons[-1] == KEPT:
            kept.append(place)
    reasons += [EMPTY_SLOT] * (settings.candidates - len(reasons))
    return Kept([candidates[place] for place in kept], kept, reasons)


def order(
    settings: ServingSettings,
    item_of: Callable[[int], Mapping[str, Any]],
    kept: Sequence[Candidate],
    tasks: Sequence[Sequence[float]] | None,
    *,
    unknown: bool = False,
    user: Mapping[str, Any] | None = None,
) -> list[tuple[int, float]]:
    """Return (row, final score) of the kept candidates that no step drops, best first; -inf comes last.

    Parameters
    ----------
    settings
        The reorder steps.
    item_of
        Catalogue row → the item's raw values, and its values in the sources that steps read.
    kept
        The kept candidates.
    tasks
        The ranker's scores of each candidate, one number per task; None without a ranker.
    unknown
        Whether the user is unknown.
    user
        What the steps read of the user and the request. ``served`` holds the served rows, which decide where
        gains nearly tie in the last step; ``served_by_step`` holds them for each step.
    """
    user = {"item_of": item_of, **_extremes(item_of), **(user or {})}
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
    # The served order is that of the last step, unless the orders of all steps are given.
    early = {name: told for name, told in user.items() if name != "served"}
    last = [user["served"]] if "served" in user else []
    served = user.get("served_by_step", [[]] * (len(settings.reorder) - len(last)) + last)
    for number, step in enumerate(settings.reorder):
        if bypass and step.of_ranker:
            continue
        hint = {"served": served[number]} if number < len(served) and served[number] else {}
        changed = step.reference(scores, described, {**early, **hint})
        stay = [not (new == _NOTHING and old != _NOTHING) for new, old in zip(changed, scores, strict=True)]
        scores = _numbers(compress(changed, stay))
        rows, described = list(compress(rows, stay)), list(compress(described, stay))
    return sorted(zip(rows, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))


def _extremes(item_of: Callable[[int], Mapping[str, Any]]) -> dict[str, Any]:
    columns: Mapping[str, Column] = getattr(item_of, "columns", {})

    def numbers(name: str) -> list[float]:
        column = columns[name]
        values = [_element(column, at) for at in range(len(column))]
        return [float(value) for value in values if value is not None and abs(value) < float("inf")]

    return {
        "greatest": lambda name: max(numbers(name), default=_NOTHING),
        "least_positive": lambda name: min((one for one in numbers(name) if one > 0), default=0.0),
    }


def _numbers(scores: Iterable[float]) -> list[float]:
    """Return scores with NaN replaced by -inf, so that they sort."""
    return [_NOTHING if score != score else score for score in scores]


def plain_items(columns: Mapping[str, Column]) -> Callable[[int], dict[str, Any]]:
    """Return a function from a row to its raw values, with None for null and ``str`` for text."""

    def item_of(row: int) -> dict[str, Any]:
        return {name: _plain_value(column, row) for name, column in columns.items()}

    item_of.columns = columns  # type: ignore[attr-defined]
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
