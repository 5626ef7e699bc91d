"""The packed tensors of a data set, whose rows the interactions refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tiercel_serving.columns import Column

from .pairs import Array, IntArray


@dataclass(frozen=True)
class Contexts:
    """What interactions add to their users' tensors; integers are int32 where that suffices.

    Parameters
    ----------
    users
        ``[n]`` the user row of each interaction.
    columns
        Tensor name → ``[n, …]``: for ``user_cat`` and ``user_num`` the columns made from the interaction, for
        a list the whole tensor.
    places
        Tensor name → positions of those columns; lists are not in it.
    """

    users: Array
    columns: Mapping[str, Array]
    places: Mapping[str, tuple[int, ...]]

    def put(self, tensors: Mapping[str, Array], at: IntArray, rows: IntArray) -> None:
        """Write the columns of interactions ``rows [m]`` into rows ``at [m]`` of packed user tensors."""
        for name, array in self.columns.items():
            place = self.places.get(name)
            where: Any = at if place is None else np.ix_(at, np.array(place))
            tensors[name][where] = array[rows]


@dataclass(frozen=True)
class Packed:
    """The packed tensors of a data set, and raw columns of its items.

    Parameters
    ----------
    user
        Tensor name → ``[U, …]``: the users without context (null context, if the recipe has any).
    item
        Tensor name → ``[I + 1, …]``; row I is the padding row, all 0.
    history_places, history_length, n_users
        Positions in ``item_cat`` of the H history columns; L; U.
    raw
        Raw item columns ``[I]`` that sources, rules and reorder steps read.
    contexts
        What each interaction adds; None if the recipe has no context. A *context row* below U is a user
        without context; U + j is the user of interaction j in its context.
    """

    user: Mapping[str, Array]
    item: Mapping[str, Array]
    history_places: tuple[int, ...]
    history_length: int
    n_users: int
    raw: Mapping[str, Column] = field(default_factory=dict)
    contexts: Contexts | None = None

    @property
    def n_items(self) -> int:
        """I, which is also the padding row."""
        return len(next(iter(self.item.values()))) - 1

    @property
    def catalogue(self) -> dict[str, Array]:
        """The items' tensors without the padding row."""
        return {name: array[:-1] for name, array in self.item.items()}

    @cached_property
    def _history_table(self) -> Array:
        """The items' history columns, ``[I + 1, H]``, contiguous by row."""
        return np.ascontiguousarray(self.item["item_cat"][:, list(self.history_places)])

    def history(self, rows: IntArray) -> dict[str, Array]:
        """Return the history tensors of left-aligned item rows: ``history_row [B, w]`` and the others.

        The width w is that of the longest row, at least 1: the models mask by length, so nothing is
        lost, and short histories cost less.
        """
        if not self.history_length:
            return {}
        lengths = (rows != self.n_items).sum(axis=1)
        rows = rows[:, : max(1, int(lengths.max(initial=0)))]
        tensors = {"history_row": rows, "history_length": lengths.astype(np.int32)[:, None]}
        if self.history_places:
            tensors["history_cat"] = self._history_table.take(rows, axis=0)
        return tensors

    def user_tensors(self, context_rows: IntArray, history_rows: IntArray) -> dict[str, Array]:
        """Return the packed user tensors and histories of a batch."""
        if self.contexts is None:
            tensors = {name: array[context_rows] for name, array in self.user.items()}
        else:
            shown = np.flatnonzero(context_rows >= self.n_users)
            rows, users = context_rows[shown] - self.n_users, context_rows.copy()
            users[shown] = self.contexts.users[rows]
            tensors = {name: array[users] for name, array in self.user.items()}
            self.contexts.put(tensors, shown, rows)
        return {**tensors, **self.history(history_rows)}
