"""Explanations of why single items are not among the candidates."""

from __future__ import annotations

import json
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores
from ..release.opened import Release
from ..rules.expressions.given import Given
from ..rules.table import asked
from ..spec import Array, Arrays
from ..verify.reference import plain_items
from .request_rules import RequestRules

#: ``explain_reason`` of an item: it is a candidate; it is not in the catalogue; the request excludes it; the
#: user has seen it; it is not in the request's set or list; it ranks below the first N. Rule number i has
#: ``FIRST_RULE + i``.
FOUND, UNKNOWN_ITEM, EXCLUDED, HAD, NOT_ASKED, TOO_DEEP, FIRST_RULE = range(7)

#: ``explain_reason`` of an item that was withdrawn since the release was made.
WITHDRAWN = -1

#: Number of items that are scored at once when counting those above an item.
_BLOCK = 1 << 15

Reasons = npt.NDArray[np.int32]


class ScoresAny(Protocol):
    """Scores any item on the candidates' common scale, if there is one."""

    def scores(self, arrays: Arrays, rows: Rows) -> Scores | None:
        """Return the scores ``[B, M]`` of items ``[B, M]``; None if there is no common scale."""
        ...


class ExplainItems:
    """Find out why items ``[B, M]`` are not candidates, and at which place each ranks.

    Parameters
    ----------
    release
        The release.
    rules
        Its rules that depend on users, requests or the time.
    """

    def __init__(self, release: Release, rules: RequestRules) -> None:
        self._rules, self._asking, self._items = release.settings.rules, rules, release.items
        self._asks, self._pad = asked(self._rules), release.items.size

    def reasons(self, rows: Rows, masks: dict[int, npt.NDArray[np.bool_]], given: Given) -> Reasons:
        """Return the first reason that applies to each item ``[B, M]``, int32.

        Parameters
        ----------
        rows
            ``[B, M]`` items; I is an unknown item.
        masks
            Reason → ``[B, M]``, which items it applies to; earlier reasons take precedence.
        given
            The values of users and requests that rules read.
        """
        reasons = np.full(rows.shape, TOO_DEEP, np.int32)
        failed = self._failed(np.minimum(rows, self._pad - 1), given)
        for number in reversed(range(len(self._rules))):
            reasons[failed[number]] = FIRST_RULE + number
        for reason, mask in reversed(masks.items()):
            reasons[mask] = reason
        reasons[rows == self._pad] = UNKNOWN_ITEM
        return reasons

    def _failed(self, rows: Rows, given: Given) -> list[npt.NDArray[np.bool_]]:
        """Return, for each rule, which items ``[B, M]`` fail it."""
        failed = []
        flat = rows.reshape(-1)
        for rule in self._rules:
            columns = {name: self._items.raw(name).take(flat) for name in rule.columns()}
            failed.append(~rule.passes(columns).reshape(rows.shape))
        for number, opened in self._asking.opened:
            failed[number] |= ~np.broadcast_to(opened.allows(given, rows), rows.shape)
        return failed

    def places(self, scorer: ScoresAny, arrays: Arrays, mask: Mask, rows: Rows, scores: Scores) -> Rows:
        """Return the place, from 1, that each item would have among all items that the user may get.

        ``scores`` ``[B, M]`` are those of the items themselves.
        """
        above = np.zeros(rows.shape, np.int64)
        for begin in range(0, self._pad, _BLOCK):
            block = np.arange(begin, min(begin + _BLOCK, self._pad))
            others = np.broadcast_to(block, (len(rows), len(block)))
            found = scorer.scores(arrays, others)
            assert found is not None
            free = mask.allows(others)[:, None]
            better = (found[:, None] > scores[..., None]) | (
                (found[:, None] == scores[..., None]) & (others[:, None] < rows[..., None])
            )
            above += np.count_nonzero(better & free, axis=2)
        return above + 1

    def details(self, reasons: Reasons, rows: Rows, given: Given) -> Array:
        """Return ``[B, M]``, the columns and values that a failed rule read, as JSON; else empty."""
        out = np.full(rows.shape, b"", np.object_)
        for user, place in zip(*np.nonzero(reasons >= FIRST_RULE), strict=True):
            rule = self._rules[int(reasons[user, place]) - FIRST_RULE]
            row = rows[user, place : place + 1]
            item = plain_items({name: self._items.raw(name).take(row) for name in rule.columns()})(0)
            seen: dict[str, Any] = {f"item.{name}": value for name, value in item.items()}
            asks = asked([rule])
            users, requests = plain_items(given.users)(int(user)), plain_items(given.requests)(int(user))
            seen |= {f"user.{name}": users.get(name) for name in asks.users}
            seen |= {f"request.{name}": requests.get(name) for name in asks.requests}
            if asks.now:
                seen["now"] = float(given.now[user])
            out[user, place] = json.dumps(seen, ensure_ascii=False).encode()
        return out
