"""From the tensors of an answer to typed results, with checks of shapes, dtypes and ranges."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .contract import PROPENSITY, TIME_PREFIX, Contract
from .errors import ProtocolMismatch
from .results import (
    STATUSES,
    Anonymous,
    Candidate,
    Explanation,
    HistoryItem,
    Id,
    Item,
    Recommendation,
    Status,
    Why,
)

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

#: The outputs of ``recommend``.
OUTPUTS = ("item_id", "score", "count", "status")

#: The outputs of ``related``.
RELATED_OUTPUTS = ("item_id", "score", "count")

#: The outputs that are requested of ``describe_items``.
DESCRIBE_OUTPUTS = ("item_id", "title", "found")

#: ``filter_reason`` of a candidate that was kept, and of an empty slot.
KEPT, EMPTY_SLOT = 0, 1


class Answer(NamedTuple):
    """The answer for one user: raw ids, scores and propensities of the items, best first, without titles.

    ``scores`` and ``chances`` may have further values after those of ``ids``. ``chances`` is None if the
    server never explores.
    """

    user_id: Any
    status: Status
    request_id: str
    ids: Sequence[Id]
    scores: Sequence[float]
    chances: Sequence[float] | None

    def recommendation(self, titles: Mapping[Id, str | None] | None = None) -> Recommendation:
        """Return the public form of the answer; ids that are not in ``titles`` have no title."""
        ids = self.ids
        items = zip(
            ids,
            self.scores,
            repeat(None) if titles is None else map(titles.get, ids),
            range(1, len(ids) + 1),
            repeat(None) if self.chances is None else self.chances,
            strict=False,
        )
        return Recommendation(self.user_id, self.status, tuple(map(_item, items)), self.request_id)


#: Creates an Item from its five values in C, which is faster than its constructor.
_item: Callable[[tuple[Any, ...]], Item] = partial(tuple.__new__, Item)


def read_answers(contract: Contract, arrays: Arrays, users: Sequence[Any], request_id: str) -> list[Answer]:
    """Read ``recommend``'s outputs: ``item_id`` and ``score`` ``[B,k]``, ``count`` and ``status`` ``[B,1]``.

    Ensembles that explore also return ``propensity [B,k]``.

    Raises
    ------
    ProtocolMismatch
        An output is missing, or has an unexpected shape, dtype or range.
    """
    read = _Reader(contract.model, arrays, len(users))
    found = read.array("item_id", "O" if contract.item_id_dtype == "bytes" else "iu", (-1,))
    width = found.shape[1]
    scores = read.array("score", "f", (width,)).tolist()
    chances = read.array(PROPENSITY, "f", (width,)).tolist() if PROPENSITY in arrays else None
    counts = read.within("count", 0, width)
    statuses = read.within("status", 0, len(STATUSES) - 1)
    return [
        Answer(
            None if user is Anonymous.ANONYMOUS else user,
            STATUSES[statuses[row]],
            request_id,
            read.ids(ids[: counts[row]]),
            scores[row],
            None if chances is None else chances[row],
        )
        for row, (user, ids) in enumerate(zip(users, found.tolist(), strict=True))
    ]


def read_titles(model: str, arrays: Arrays, count: int, item_id_dtype: str) -> list[tuple[Id, str] | None]:
    """Read the outputs of ``describe_items`` for ``count`` items: id and title, or None if not found.

    Every tensor is ``[count]`` or ``[1, count]``. The title of an item without one is an empty string.
    """
    flat = {name: array.reshape(1, -1) for name, array in arrays.items()}
    read = _Reader(model, flat, 1)
    found = read.array("found", "b", (count,))[0].tolist()
    titles = read.array("title", "O", (count,))[0].tolist()
    ids = read.ids(read.array("item_id", "O" if item_id_dtype == "bytes" else "iu", (count,))[0].tolist())
    return [
        (item_id, title.decode("utf-8", "replace")) if there else None
        for item_id, title, there in zip(ids, titles, found, strict=True)
    ]


def read_explained(contract: Contract, arrays: Arrays, user: Any, request_id: str) -> Explanation:
    """Read the outputs of ``recommend_explain`` for one user; empty slots are left out.

    The raw ids and titles of candidates and history are added later, by :func:`described`.

    Raises
    ------
    ProtocolMismatch
        An output is missing, or has an unexpected shape, dtype or range.
    """
    [answer] = read_answers(contract, arrays, [user], request_id)
    read = _Reader(contract.model, arrays, 1)
    rows = read.array("retrieved_row", "iu", (-1,))[0]
    candidates = (len(rows),)
    reasons = read.array("filter_reason", "iu", candidates)[0]
    real = reasons != EMPTY_SLOT
    if not real[: int(real.sum())].all():
        raise read.wrong("filter_reason: expected empty slots at the end only")
    places = read.array("kept_index", "iu", (-1,))[0][: int((reasons == KEPT).sum())]
    if places.size and (places.min() < 0 or places.max() >= len(rows) or (reasons[places] != KEPT).any()):
        raise read.wrong("kept_index: expected the places of the kept candidates, got others")
    scores, moved = np.zeros((len(rows), 0)), np.zeros(len(rows), np.int32)
    if "rank_score" in arrays:
        scores = read.array("rank_score", "f", (-1, -1))[0]
    if "reorder_reason" in arrays:
        moved = read.array("reorder_reason", "iu", (-1,))[0]
    if min(len(scores), len(moved)) < len(places):
        raise read.wrong("rank_score, reorder_reason: expected one for each of the kept, got fewer")
    history: Array = np.zeros(0, np.int64)
    if "history_row" in arrays:
        history = read.array("history_row", "iu", (-1,))[0][: read.within("history_length", 0, None)[0]]
    times_us = {
        stage: float(arrays[TIME_PREFIX + stage].flat[0])
        for stage in contract.stages
        if arrays.get(TIME_PREFIX + stage, np.empty(0)).size
    }
    ranked = dict(zip(places.tolist(), scores.tolist(), strict=False))
    steps = {
        place: _text(contract.reorder_reasons, code, "reason")
        for place, code in zip(places.tolist(), moved.tolist(), strict=False)
        if code
    }
    found = read.array("retrieval_score", "f", candidates)[0], read.array("source", "iu", candidates)[0]
    columns = (column[real].tolist() for column in (rows, *found, reasons))
    return Explanation(
        recommendation=answer.recommendation(),
        history=tuple(HistoryItem(row, None, None) for row in history.tolist()),
        candidates=tuple(
            Candidate(
                position=place + 1,
                item_row=row,
                item_id=None,
                title=None,
                retrieval_score=score,
                source=_text(contract.sources, source, "source"),
                reason=contract.filter_reasons.get(reason, f"reason {reason}"),
                kept=reason == KEPT,
                rank_scores=tuple(ranked.get(place, ())),
                reorder_reason=steps.get(place),
                task_scores=dict(zip(contract.task_names, ranked.get(place, ()), strict=False)),
            )
            for place, (row, score, source, reason) in enumerate(zip(*columns, strict=True))
        ),
        stages=contract.stages,
        times_us=times_us,
    )


def _text(texts: Sequence[str], code: int, what: str) -> str:
    """Return the text of a code, which counts from 1."""
    return texts[code - 1] if 0 < code <= len(texts) else f"{what} {code}"


def described(explained: Explanation, names: Mapping[int, tuple[Id, str]]) -> Explanation:
    """Return the explanation with the raw ids and titles of its items, and candidates' final scores.

    ``names`` is catalogue row → raw id and title; it is empty if the server can't describe items.
    """
    titles: dict[Id, str | None] = {item_id: title or None for item_id, title in names.values()}
    named = [item._replace(title=titles.get(item.item_id)) for item in explained.items]
    answer = replace(explained.recommendation, items=tuple(named))
    final: dict[Id | None, Item] = {item.item_id: item for item in answer.items}
    candidates = []
    for one in explained.candidates:
        item_id, title = names.get(one.item_row, (None, None))
        item = final.get(item_id)
        score, rank = (None, None) if item is None else (item.score, item.rank)
        candidates.append(replace(one, item_id=item_id, title=title or None, score=score, rank=rank))
    history = []
    for seen in explained.history:
        item_id, title = names.get(seen.item_row, (None, None))
        history.append(HistoryItem(seen.item_row, item_id, title or None))
    return replace(explained, recommendation=answer, history=tuple(history), candidates=tuple(candidates))


#: Codes of ``explain_reason``. Rule i has the code ``FIRST_RULE + i``, and i + 3 in ``filter_reasons``.
FOUND, UNKNOWN, EXCLUDED, HAD, NOT_ASKED, TOO_DEEP, FIRST_RULE = range(7)
WITHDRAWN = -1
_FIRST_FILTER = 3

#: Reason → why an item is not a candidate, and what it would have needed.
_TEXTS: Mapping[int, tuple[str, str]] = {
    EXCLUDED: ("the request rules it out", "leave it out of exclude"),
    HAD: ("the user already had it", "allow_seen=True, in the request or the recipe"),
    WITHDRAWN: ("it was withdrawn", "`tiercel items put`"),
    NOT_ASKED: ("it is not in the request's set or list", "name it in include or candidates"),
}


def read_why(contract: Contract, explained: Explanation, arrays: Arrays, item_id: Id, k: int) -> Why:
    """Return the outcome of one item.

    Parameters
    ----------
    contract
        The contract of the ensemble.
    explained
        The explanation of an answer with ``k_max`` items.
    arrays
        The outputs, among them ``explain_reason``, ``explain_place``, ``explain_score`` and
        ``explain_detail``, ``[1, 1]`` each.
    item_id, k
        The item, and the number of items that the user asked for.

    Raises
    ------
    ProtocolMismatch
        One of these outputs is missing, or does not have one value.
    """
    code, place, score, detail = _said(contract, arrays)
    own = next((one for one in explained.candidates if one.item_id == item_id), None)
    title = own.title if own is not None else None
    who = (explained.user_id, item_id, title)
    if code == UNKNOWN:
        needed = "a release that has it, or `tiercel items put`"
        return Why(*who, "catalogue", "the release knows no such item", needed=needed)
    if code == FOUND and own is not None:
        return _of_candidate(explained, who, own, k)
    if code >= FIRST_RULE:
        reason = contract.filter_reasons.get(
            code - FIRST_RULE + _FIRST_FILTER, f"rule {code - FIRST_RULE + 1}"
        )
        needed = "other values: " + ", ".join(f"{name} is {value!r}" for name, value in detail.items())
        return Why(*who, "retrieval", reason, place, score, needed, detail)
    if code in _TEXTS:
        reason, needed = _TEXTS[code]
        return Why(*who, "retrieval", reason, place, score, needed)
    return _too_deep(explained, who, place, score)


def _said(contract: Contract, arrays: Arrays) -> tuple[int, int | None, float | None, dict[str, Any]]:
    names = ("explain_reason", "explain_place", "explain_score", "explain_detail")
    missing = [name for name in names if name not in arrays or arrays[name].size != 1]
    if missing:
        raise ProtocolMismatch(
            f"model {contract.model!r}: expected one value in {missing[0]!r}, got none; the release is "
            "older than this client: export it again"
        )
    code, place, score, detail = (arrays[name].reshape(-1)[0] for name in names)
    seen = json.loads(detail) if detail else {}
    return int(code), int(place) or None, None if math.isnan(score) else float(score), seen


def _of_candidate(
    explained: Explanation, who: tuple[Id | None, Id, str | None], own: Candidate, k: int
) -> Why:
    if not own.kept:
        kept = explained.kept
        needed = "what its rule asks for"
        if own.reason.startswith("passed"):
            needed = f"a place among the first {len(kept)} that pass the rules"
            needed += f": a retrieval score above {kept[-1].retrieval_score:g}" if kept else ""
        return Why(*who, "filtering", own.reason, own.position, own.retrieval_score, needed)
    if own.rank is not None and own.rank <= k:
        reason = own.reorder_reason or f"place {own.rank} of the answer"
        return Why(*who, "answer", reason, own.rank, own.score)
    score = own.score if own.score is not None else next(iter(own.rank_scores), own.retrieval_score)
    reason = own.reorder_reason or f"it came after the first {k}"
    return Why(*who, "ordering", reason, own.rank, score, _needed_of_ordering(explained, own, k))


def _needed_of_ordering(explained: Explanation, own: Candidate, k: int) -> str:
    """Return what one of the kept candidates would have needed to be among the first k."""
    if own.rank is None and own.reorder_reason is not None:
        return f"a step that does not find: {own.reorder_reason}"
    ways = []
    before = 1 + sum(_ahead(other, own) for other in explained.kept)
    if explained.status is not Status.UNKNOWN and before <= k:
        # Its own score suffices, so a reorder step moved it down; a higher score might not help.
        ways.append(f"reorder steps that leave it at place {before}, where its own score puts it")
    elif len(explained.items) >= k:
        ways.append(f"a final score above {explained.items[k - 1].score:g}")
    if own.rank is not None:
        ways.append(f"k of {own.rank}")
    return ", or ".join(ways)


def _ahead(other: Candidate, own: Candidate) -> bool:
    """Whether another candidate precedes it by the scores before any reorder step."""
    theirs, mine = (next(iter(one.rank_scores), one.retrieval_score) for one in (other, own))
    return theirs > mine or (theirs == mine and other.item_row < own.item_row)


def _too_deep(
    explained: Explanation, who: tuple[Id | None, Id, str | None], place: int | None, score: float | None
) -> Why:
    found = explained.candidates
    reason = f"not among the {len(found)} candidates"
    needed = "another source that gives it, or more candidates in the recipe"
    if place is not None and score is not None and found:
        reason += f": at place {place} of what the user may get"
        least: dict[str, float] = {}
        for one in found:
            least[one.source] = min(one.retrieval_score, least.get(one.source, one.retrieval_score))
        enough = max(least.values())
        needed = f"a retrieval score above {enough:g}, or " if score <= enough else ""
        needed += f"at least {place} candidates in the recipe"
        if len(least) > 1:
            needed += ", or a larger quota of a source that gives it"
    return Why(*who, "retrieval", reason, place, score, needed)


class _Reader:
    """Reads and checks the arrays of one model's answer for ``rows`` users."""

    def __init__(self, model: str, arrays: Arrays, rows: int) -> None:
        self.model, self.arrays, self.rows = model, arrays, rows

    def wrong(self, what: str) -> ProtocolMismatch:
        return ProtocolMismatch(
            f"model {self.model!r} answered in an unknown form: {what}. Install the tiercel version that "
            "exported the release."
        )

    def array(self, name: str, kinds: str, dims: Iterable[int]) -> Array:
        """Return an output; check its dtype's kind and its shape ``[rows, *dims]``, where -1 is any size."""
        array = self.arrays.get(name)
        if array is None:
            raise self.wrong(f"expected the output {name!r}, got {', '.join(self.arrays) or 'nothing'}")
        shape, came = (self.rows, *dims), array.shape
        if array.dtype.kind in kinds and (came == shape or _fits(came, shape)):
            return array
        raise self.wrong(f"{name}: expected shape {shape}, got {array.dtype} {came}")

    def within(self, name: str, least: int, most: int | None) -> list[int]:
        """Return an integer output ``[rows, 1]`` as a list; check its range."""
        values: list[int] = self.array(name, "iu", (1,))[:, 0].tolist()
        if values and (min(values) < least or (most is not None and max(values) > most)):
            raise self.wrong(f"{name}: expected {least} to {most}, got {values}")
        return values

    def ids(self, ids: Sequence[Any]) -> Sequence[Id]:
        """Return raw ids as the application knows them, with text decoded from UTF-8."""
        if not ids or not isinstance(ids[0], bytes):
            return ids
        try:
            return [one.decode() for one in ids]
        except UnicodeDecodeError as error:
            raise self.wrong(f"item_id: expected UTF-8, got {error.object!r}") from None


def _fits(came: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(came) != len(shape):
        return False
    return [has if want == -1 else want for has, want in zip(came, shape, strict=True)] == [*came]
