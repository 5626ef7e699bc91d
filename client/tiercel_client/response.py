"""The tensors of an answer → typed results. Nothing is believed: shapes, dtypes and ranges are checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .contract import TIME_PREFIX, Contract
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
)

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

#: What ``recommend`` answers.
OUTPUTS = ("item_id", "score", "count", "status")

#: What is asked of ``describe_items``.
DESCRIBE_OUTPUTS = ("item_id", "title", "found")

#: ``filter_reason`` of a candidate that was kept, and of a slot without one.
KEPT, EMPTY_SLOT = 0, 1


def read_answers(
    contract: Contract, arrays: Arrays, users: Sequence[Any], request_id: str
) -> list[Recommendation]:
    """Read ``recommend``'s outputs: ``item_id`` and ``score`` ``[B,k]``, ``count`` and ``status`` ``[B,1]``.

    Raises
    ------
    ProtocolMismatch
        They have another form.
    """
    read = _Reader(contract.model, arrays, len(users))
    ids = read.array("item_id", "O" if contract.item_id_dtype == "bytes" else "iu", (-1,))
    scores = read.array("score", "f", ids.shape[1:])
    counts = read.within("count", 0, ids.shape[1])
    statuses = read.within("status", 0, len(STATUSES) - 1)
    return [
        Recommendation(
            user_id=None if isinstance(user, Anonymous) else user,
            status=STATUSES[status],
            items=_items(read.ids(ids[row, :count]), scores[row, :count].tolist()),
            request_id=request_id,
        )
        for row, (user, count, status) in enumerate(zip(users, counts, statuses, strict=True))
    ]


def _items(ids: Sequence[Id], scores: Sequence[float]) -> tuple[Item, ...]:
    return tuple(Item(one, score, None, n) for n, (one, score) in enumerate(zip(ids, scores, strict=True), 1))


def titled(answer: Recommendation, titles: Mapping[Id, str | None]) -> Recommendation:
    """Return an answer with titles; an id that ``titles`` lacks has none."""
    items = (Item(one.item_id, one.score, titles.get(one.item_id), one.rank) for one in answer.items)
    return replace(answer, items=tuple(items))


def read_titles(model: str, arrays: Arrays, count: int, item_id_dtype: str) -> list[tuple[Id, str] | None]:
    """Read what ``describe_items`` says of ``count`` items: id and title, or None if not found.

    Every tensor is ``[count]`` or ``[1, count]``. A title that is missing is an empty string.
    """
    flat = {name: array.reshape(1, -1) for name, array in arrays.items()}
    read = _Reader(model, flat, 1)
    found = read.array("found", "b", (count,))[0].tolist()
    titles = read.array("title", "O", (count,))[0].tolist()
    ids = read.ids(read.array("item_id", "O" if item_id_dtype == "bytes" else "iu", (count,))[0])
    return [
        (item_id, title.decode("utf-8", "replace")) if there else None
        for item_id, title, there in zip(ids, titles, found, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Explained:
    """The outputs of ``recommend_explain`` for one user, checked."""

    answer: Recommendation
    history_rows: list[int]
    retrieved_rows: list[int]
    retrieval_scores: list[float]
    sources: list[int]
    reasons: list[int]
    kept_index: list[int]
    rank_scores: list[list[float]]
    reorder_reasons: list[int]
    times_us: dict[str, float]


def read_explained(contract: Contract, arrays: Arrays, user: Any, request_id: str) -> Explained:
    """Read the outputs of ``recommend_explain`` for one user; slots without a candidate are left out.

    Raises
    ------
    ProtocolMismatch
        They have another form.
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
        raise read.wrong("kept_index: expected the places of the kept candidates, came others")
    scores, moved = np.zeros((len(rows), 0)), np.zeros(len(rows), np.int32)
    if "rank_score" in arrays:
        scores = read.array("rank_score", "f", (-1, -1))[0]
    if "reorder_reason" in arrays:
        moved = read.array("reorder_reason", "iu", (-1,))[0]
    if min(len(scores), len(moved)) < len(places):
        raise read.wrong("rank_score, reorder_reason: expected one for each of the kept, came fewer")
    history: Array = np.zeros(0, np.int64)
    if "history_row" in arrays:
        history = read.array("history_row", "iu", (-1,))[0][: read.within("history_length", 0, None)[0]]
    return Explained(
        answer=answer,
        history_rows=history.tolist(),
        retrieved_rows=rows[real].tolist(),
        retrieval_scores=read.array("retrieval_score", "f", candidates)[0][real].tolist(),
        sources=read.array("source", "iu", candidates)[0][real].tolist(),
        reasons=reasons[real].tolist(),
        kept_index=places.tolist(),
        rank_scores=scores[: len(places)].tolist(),
        reorder_reasons=moved[: len(places)].tolist(),
        times_us={
            name.removeprefix(TIME_PREFIX): float(array.flat[0])
            for name, array in arrays.items()
            if name.startswith(TIME_PREFIX) and array.size
        },
    )


def explanation(
    contract: Contract, explained: Explained, described: Mapping[int, tuple[Id, str]]
) -> Explanation:
    """Join what each stage did with what its rows are called.

    ``described`` is catalogue row → raw id and title; empty if the server can't describe items.
    """
    titles: dict[Id, str | None] = {item_id: title or None for item_id, title in described.values()}
    answer = titled(explained.answer, titles)
    final = {item.item_id: item for item in answer.items}
    ranked = dict(zip(explained.kept_index, explained.rank_scores, strict=True))
    moved = dict(zip(explained.kept_index, explained.reorder_reasons, strict=True))
    candidates = []
    columns = (explained.retrieved_rows, explained.retrieval_scores, explained.sources, explained.reasons)
    for place, (row, score, source, reason) in enumerate(zip(*columns, strict=True)):
        item_id, title = described.get(row, (None, None))
        item = None if item_id is None else final.get(item_id)
        candidates.append(
            Candidate(
                position=place + 1,
                item_row=row,
                item_id=item_id,
                title=title or None,
                retrieval_score=score,
                source=_source(contract, source),
                reason=contract.filter_reasons.get(reason, f"reason {reason}"),
                kept=reason == KEPT,
                rank_scores=tuple(ranked.get(place, ())),
                reorder_reason=_reorder_reason(contract, moved.get(place, 0)),
                score=None if item is None else item.score,
                rank=None if item is None else item.rank,
            )
        )
    return Explanation(
        recommendation=answer,
        history=tuple(_history_item(row, described) for row in explained.history_rows),
        candidates=tuple(candidates),
        stages=contract.stages,
        times_us={
            stage: explained.times_us[stage] for stage in contract.stages if stage in explained.times_us
        },
    )


def _history_item(row: int, described: Mapping[int, tuple[Id, str]]) -> HistoryItem:
    item_id, title = described.get(row, (None, None))
    return HistoryItem(row, item_id, title or None)


def _source(contract: Contract, code: int) -> str:
    """Return a source's name; code 0 is a slot that no source filled."""
    return contract.sources[code - 1] if 0 < code <= len(contract.sources) else f"source {code}"


def _reorder_reason(contract: Contract, code: int) -> str | None:
    known = 0 < code <= len(contract.reorder_reasons)
    return contract.reorder_reasons[code - 1] if known else f"reason {code}" if code else None


class _Reader:
    """Takes checked arrays out of one model's answer for ``rows`` users."""

    def __init__(self, model: str, arrays: Arrays, rows: int) -> None:
        self.model, self.arrays, self.rows = model, arrays, rows

    def wrong(self, what: str) -> ProtocolMismatch:
        return ProtocolMismatch(
            f"model {self.model!r} answered in an unknown form: {what}. Install the tiercel version that "
            "exported the release."
        )

    def array(self, name: str, kinds: str, dims: Iterable[int]) -> Array:
        """Return an output of one of the dtype kinds and of the shape ``[rows, *dims]``; -1 is any."""
        array = self.arrays.get(name)
        if array is None:
            raise self.wrong(f"expected the output {name!r}, came {', '.join(self.arrays) or 'nothing'}")
        shape = (self.rows, *dims)
        fits = array.ndim == len(shape) and all(
            want in (-1, came) for want, came in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.kind not in kinds:
            raise self.wrong(f"{name}: expected shape {shape}, came {array.dtype} {array.shape}")
        return array

    def within(self, name: str, least: int, most: int | None) -> list[int]:
        """Return an output ``[rows, 1]`` of whole numbers in a range."""
        values = self.array(name, "iu", (1,))[:, 0]
        if values.size and (values.min() < least or (most is not None and values.max() > most)):
            raise self.wrong(f"{name}: expected {least} to {most}, came {values.tolist()}")
        return values.tolist()  # type: ignore[no-any-return]

    def ids(self, array: Array) -> list[Id]:
        """Return raw ids ``[n]`` as the application knows them."""
        ids = array.tolist()
        if array.dtype.kind != "O":
            return ids  # type: ignore[no-any-return]
        try:
            return [one.decode() for one in ids]
        except UnicodeDecodeError as error:
            raise self.wrong(f"item_id: expected UTF-8, came {error.object!r}") from None
