"""The tensors of an explained answer → what became of one item, in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .contract import Contract
from .errors import ProtocolMismatch
from .response import Arrays
from .results import Candidate, Explanation, Id, Why

#: ``explain_reason``: rule number i has ``FIRST_RULE + i``, and in ``filter_reasons`` the code i + 3.
FOUND, UNKNOWN, EXCLUDED, HAD, NOT_ASKED, TOO_DEEP, FIRST_RULE = range(7)
_FIRST_FILTER = 3

#: Reason → why an item is no candidate, and what would have had to be otherwise.
_TEXTS: Mapping[int, tuple[str, str]] = {
    EXCLUDED: (
        "the request rules it out, or has it in its history",
        "leave it out of exclude; of a history that is sent, allow_seen=True lets it come",
    ),
    HAD: ("the user already had it", "allow_seen=True, in the request or the recipe"),
    NOT_ASKED: ("it is not in the request's set or list", "name it in include or candidates"),
}


def read_why(contract: Contract, explained: Explanation, arrays: Arrays, item_id: Id, k: int) -> Why:
    """Read what became of one item.

    Parameters
    ----------
    contract
        Of the ensemble.
    explained
        The answer with as many items as there may be.
    arrays
        The outputs that hold what is said of the item, ``[1, 1]`` each.
    item_id, k
        The item, and how many items were asked for.

    Raises
    ------
    ProtocolMismatch
        The outputs are not there, or hold something else.
    """
    code, place, score, detail = _said(contract, arrays)
    own = next((one for one in explained.candidates if one.item_id == item_id), None)
    title = own.title if own is not None else None
    who = (explained.user_id, item_id, title)
    if code == UNKNOWN:
        return Why(*who, "catalogue", "the release knows no such item", needed="a release that has it")
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
            f"model {contract.model!r}: expected one value in {missing[0]!r}, came none; the release is "
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
    last = explained.items[min(k, len(explained.items)) - 1] if explained.items else None
    needed = "" if last is None else f"a final score above {last.score:g}, or k of {own.rank or 'more'}"
    reason = own.reorder_reason or f"it came after the first {k}"
    score = own.score if own.score is not None else next(iter(own.rank_scores), None)
    return Why(*who, "ordering", reason, own.rank, score, needed)


def _too_deep(
    explained: Explanation, who: tuple[Id | None, Id, str | None], place: int | None, score: float | None
) -> Why:
    found = explained.candidates
    reason = f"not among the {len(found)} candidates"
    needed = "another source that gives it, or more candidates in the recipe"
    if place is not None and score is not None and found:
        reason += f": at place {place} of what the user may get"
        least = min(one.retrieval_score for one in found)
        needed = f"a retrieval score above {least:g}, or at least {place} candidates in the recipe"
    return Why(*who, "retrieval", reason, place, score, needed)
