"""The rules that depend on users, requests or the time, evaluated for a batch before the search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..release.opened import Release
from ..rules.expressions.given import Given
from ..rules.table import AskingRule, OpenedRule, asked
from ..spec import Arrays
from .column_tensors import user_rule_columns
from .sent_columns import SentColumn
from .specs import NOW, RETRIEVAL

Flags = npt.NDArray[np.bool_]


class RequestRules:
    """Those of a release's rules that depend on users, requests or the time.

    Parameters
    ----------
    release
        The release.
    clock
        Returns the seconds since 1970-01-01 UTC, for requests that do not send the time.

    Attributes
    ----------
    opened : list of (int, OpenedRule)
        The index of each such rule in the settings, and its opened form.
    """

    def __init__(self, release: Release, clock: Callable[[], float]) -> None:
        rules, items = release.settings.rules, release.items
        self.opened: list[tuple[int, OpenedRule]] = []
        for number, rule in enumerate(rules):
            opened = rule.open(items.columns(rule.columns())) if isinstance(rule, AskingRule) else None
            if opened is not None:
                self.opened.append((number, opened))
        self._asks, self._clock, manifest = asked(rules), clock, release.manifest
        columns = [column for column in manifest.request_columns if column.part != "user"]
        wanted = self._asks.requests
        self._columns = [SentColumn(column, RETRIEVAL) for column in columns if column.name in wanted]
        self._users = [SentColumn(told, RETRIEVAL) for _, told in user_rule_columns(manifest)]
        self._id = release.manifest.catalogue.user_id_column

    def check(self, arrays: Arrays) -> None:
        """Reject infinities, lengths that do not fit, and a validity without values."""
        for column in self._columns:
            column.check(arrays)

    def allowed(self, arrays: Arrays) -> Flags | None:
        """Return which items pass for which users, ``[B or 1, I or 1]``; None if there is no such rule."""
        if not self.opened:
            return None
        given = self.given(arrays)
        allowed = self.opened[0][1].allows(given)
        for _, rule in self.opened[1:]:
            allowed = allowed & rule.allows(given)
        return allowed

    def given(self, arrays: Arrays) -> Given:
        """Return the values of users and requests that rules read."""
        of_users = {column.name: column.carried(arrays) for column in self._users}
        of_requests = {column.name: column.carried(arrays) for column in self._columns}
        sent = {column.name: column.sent(arrays) for column in self._columns}
        if self._id in self._asks.users and self._id not in of_users:
            of_users[self._id] = Column(arrays["user_id"][:, 0])
        now = np.zeros(len(arrays["user_id"]))
        if self._asks.now:
            now = arrays[NOW][:, 0]
            now = np.where(np.isnan(now), self._clock(), now)
        return Given(of_users, of_requests, sent, now)
