"""The uncompiled recommender: user tensors gathered one user at a time, and the original models.

It reads the tables that the release will contain. The verification compares those with NVTabular separately.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isnan

import numpy as np
import numpy.typing as npt

from tiercel_serving.columns import Column, null_column
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.reorder.per_request import user_amount
from tiercel_serving.rules.expressions.given import Given
from tiercel_serving.rules.kept import allowed_items
from tiercel_serving.rules.table import AskingRule, OpenedRule
from tiercel_serving.settings import ServingSettings
from tiercel_serving.spec import Array, Arrays
from tiercel_serving.stores.bloom import ItemProbes
from tiercel_serving.stores.memory_mapped import UserTables
from tiercel_serving.tables.column_store import raw_column
from tiercel_serving.tables.items import ItemTable

from ..models.prepare import Models
from .parts import Tables

#: Number of users whose queries are computed at once.
_BLOCK = 256


@dataclass(frozen=True)
class Uncompiled:
    """Settings, tables and models of an export.

    Parameters
    ----------
    settings, tables, models
        The results of the export's earlier steps.
    user_ids
        ``[U + 1]`` raw ids; the last one belongs to no user.
    """

    settings: ServingSettings
    tables: Tables
    models: Models
    user_ids: Array

    @property
    def items(self) -> int:
        """The number of items I, which is also the pad row."""
        return self.tables.catalogue.items

    @property
    def nobody(self) -> int:
        """The number of users U, which is also the row of users who are not in the store."""
        return self.tables.catalogue.users

    def user(self, row: int) -> dict[str, Array]:
        """Return every tensor of one user that a model may take, without the user axis."""
        tensors: dict[str, Array] = {name: array[row] for name, array in self.tables.user_packed.items()}
        length = self.settings.history_length
        if not length:
            return tensors
        latest = self.seen(row)[-length:]
        history = np.full(length, self.items, np.int64)
        history[: len(latest)] = latest
        tensors["history_row"] = history
        tensors["history_length"] = np.array([len(latest)], np.int32)
        if self.settings.history_columns:
            columns = [self.tables.packed.item_cat.index(name) for name in self.settings.history_columns]
            tensors["history_cat"] = self.tables.item_packed["item_cat"][history][:, columns]
        return tensors

    def users(self, rows: Iterable[int]) -> dict[str, Array]:
        """Return the tensors of several users, ``[B, …]``; see :meth:`user`."""
        known = [self.user(int(row)) for row in rows]
        return {name: np.stack([user[name] for user in known]) for name in known[0]}

    def with_queries(self, tensors: Arrays) -> dict[str, Array]:
        """Return user tensors ``[B, …]`` together with the query of each source."""
        known = dict(tensors)
        for model in self.models.queries.values():
            known |= model.run(tensors)
        return known

    def queries(self, source: str, rows: Array) -> Array:
        """Return a source's queries ``[Q, D]`` for the users in ``rows [Q]``."""
        model = self.models.queries[source]
        blocks = np.array_split(rows, -(-len(rows) // _BLOCK))
        return np.concatenate([model.run(self.users(block))[model.output.name] for block in blocks])

    def seen(self, row: int) -> Array:
        """Return the catalogue rows of a user's history; the latest ones come last, in order of time."""
        arrays = self.tables.user_arrays
        begin, end = arrays["history_offsets"][row : row + 2]
        seen: Array = arrays["history_rows"][begin:end].astype(np.int64)
        return seen

    @cached_property
    def passing(self) -> npt.NDArray[np.bool_]:
        """Which items ``[I]`` pass every rule; the verification checks rules against plain references."""
        return allowed_items(self.settings.rules, self.tables.raw_items, self.items)

    @cached_property
    def now(self) -> float:
        """The current time for rules, fixed at first use, in seconds since 1970-01-01 UTC."""
        return time.time()

    @cached_property
    def _asking(self) -> list[OpenedRule]:
        raw, rules = self.tables.raw_items, self.settings.rules
        opened = [
            rule.open({name: raw[name] for name in rule.columns()})
            for rule in rules
            if isinstance(rule, AskingRule)
        ]
        return [one for one in opened if one is not None]

    def _given(self, row: int) -> Given:
        """Return what rules know of a stored user whose request has no optional columns."""
        artefact = Artefact.in_memory("users", self.tables.user_arrays)
        users, requests = dict[str, Column](), dict[str, Column]()
        for column in self.tables.asked:
            stored = raw_column(artefact, column.name) if column.part == "user" else None
            null = null_column(column.dtype, column.is_list, 1)
            found = null if stored is None else stored.take(np.array([row]))
            (users if column.part == "user" else requests)[column.name] = found
        users[self.tables.catalogue.user_id_column] = Column(self.user_ids[row : row + 1])
        sent = {name: np.zeros(1, np.bool_) for name in requests}
        return Given(users, requests, sent, np.array([self.now]))

    def allowed(self, row: int, *, seen: bool = False, asking: bool = True) -> npt.NDArray[np.bool_]:
        """Return which items ``[I]`` pass every rule and, unless ``seen``, are not in the user's history.

        Without ``asking``, rules that depend on users or requests are ignored, and so are the times of
        interactions.
        """
        allowed = self.passing.copy()
        if asking and self._asking:
            given = self._given(row)
            for rule in self._asking:
                allowed &= rule.allows(given)[0]
        if not seen:
            allowed[self._may_not_come(row) if asking else self.seen(row)] = False
        return allowed

    def _had(self, row: int) -> Array:
        """Return the rows of a user's seen items, including false positives of the Bloom filter."""
        kept = self.settings.seen_filter
        if kept is None:
            return self.seen(row)
        items = ItemTable(Artefact.in_memory("items", self.tables.item_arrays), self.items)
        users = Artefact.in_memory("users", self.tables.user_arrays)
        probes = ItemProbes(items.all_ids())
        return UserTables(users, lambda: probes, kept.of_release).at(np.array([row])).seen()[0]

    def _may_not_come(self, row: int) -> Array:
        """Return the rows of a user's seen items that are excluded, all or those of the last days."""
        had, days = self._had(row), self.settings.seen_again_days
        of_late = float("nan") if days is None else user_amount(days, {})
        if isnan(of_late):
            return had
        begin, end = self.tables.user_arrays["history_offsets"][row : row + 2]
        ago_s = self.now - self.tables.user_arrays["history_times"][begin:end]
        recent: Array = had[ago_s < of_late * 86_400]
        return recent

    def candidates(self, rows: Array, scores: Array, sources: Array) -> dict[str, Array]:
        """Return the tensors ``[B, K, …]`` of candidates that a ranker may take."""
        known: dict[str, Array] = {name: table[rows] for name, table in self.tables.item_packed.items()}
        return known | {"kept_score": scores, "kept_source": sources}
