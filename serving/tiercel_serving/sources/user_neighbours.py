r"""``user_neighbours``: items of the users whose histories are most similar to the user's.

.. math::
    s_i = \sum_{v \in N_k} \mathrm{sim}(v)\, r_{vi}, \qquad
    \mathrm{sim}(v) = \frac{n_v}{n_v + h} \cdot \sum_{j \in H} \frac{q_j}{\|q_H\|}\, a_{vj}
    \quad\text{or}\quad \frac{n_v}{|H| + l_v - n_v + h}

where H is the user's current history, n_v the number of its items that user v has, l_v the number of items
of v, and N_k the k users with the largest similarity (ties by row). Neighbours are found at request time
among the users of each item of the history. So a new user has neighbours as soon as there is a history, and
nothing is stored per pair of users, or densely for users × items. The cost of a request grows with the number
of users of each item of the history, which the model bounds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..errors import InvalidSettings
from ..ranked.order import Rows, Scores, best_by_score
from ..release.artefacts import Artefact
from ..spec import Array, Arrays
from .history_sums import HistorySums, OpenedSums
from .sparse_sums import left_aligned, picked, sum_cells
from .table import Made, Material


class UserNeighbours(HistorySums, frozen=True, tag="user_neighbours"):
    """Items of the users with the most similar histories.

    The retrieval model of the source's name gives the users and their items.
    """

    form: ClassVar[str | None] = "user neighbours"
    relates: ClassVar[bool] = True

    def make(self, material: Material) -> Made:
        """Keep the users of each item, and each user's votes for allowed items.

        Raises
        ------
        InvalidSettings
            The form does not fit the catalogue; see :func:`checked_neighbours`.
        """
        form = checked_neighbours(material.form, material.items, self.name)
        allowed = material.allowed
        if allowed is not None and not allowed.all():
            kept = allowed[form["voted"]]
            form |= {
                "vote_offsets": np.append(0, np.cumsum(kept))[form["vote_offsets"]],
                "voted": form["voted"][kept],
                "votes": form["votes"][kept],
            }
        return Made(form, figures={"users": len(form["lengths"]), "votes": len(form["votes"])})

    def open(self, artefact: Artefact, items: int, threads: int) -> Neighbours:
        """Open the matrices of items × users and of users × items."""
        arrays = {name: artefact.array(name) for name in _FORM}
        if artefact.room:
            # No user has an added item.
            arrays["offsets"] = np.append(arrays["offsets"], np.repeat(arrays["offsets"][-1:], artefact.room))
            arrays["weights"] = np.append(arrays["weights"], np.zeros(artefact.room, np.float32))
        return Neighbours(arrays, items)

    def totals(self, arrays: Mapping[str, Array], history: list[int]) -> dict[int, float]:
        """Return item row → its float64 sum over the neighbours, added from the most similar on."""
        dots: dict[int, float] = defaultdict(float)
        common: dict[int, float] = defaultdict(float)
        had, norm = 0, 0.0
        for item in history:
            if item < len(arrays["weights"]):
                weight = float(arrays["weights"][item])
                had, norm = had + 1, norm + weight * weight
                part = slice(int(arrays["offsets"][item]), int(arrays["offsets"][item + 1]))
                for user, like in zip(
                    arrays["users"][part].tolist(), arrays["likeness"][part].tolist(), strict=True
                ):
                    dots[user] += weight * like
                    common[user] += 1.0
        h, likes = float(arrays["shrinkage"][0]), {}
        for user, both in common.items():
            if arrays["jaccard"][0]:
                like = both / max(had + int(arrays["lengths"][user]) - both + h, 1e-12)
            else:
                like = dots[user] / max(math.sqrt(norm), 1e-12) * (both / (both + h))
            if np.float32(like) > 0:
                likes[user] = float(np.float32(like))
        nearest = sorted(likes, key=lambda user: (-likes[user], user))[: int(arrays["neighbours"][0])]
        totals: dict[int, float] = defaultdict(float)
        for user in nearest:
            part = slice(int(arrays["vote_offsets"][user]), int(arrays["vote_offsets"][user + 1]))
            for item, vote in zip(
                arrays["voted"][part].tolist(), arrays["votes"][part].tolist(), strict=True
            ):
                totals[item] += likes[user] * vote
        return totals


#: The arrays of the form and their dtypes, for V users and I items:
#: ``offsets [I + 1]``, ``users [n]``, ``likeness [n]``: the users of each item, and a_{vj};
#: ``weights [I]``: q_j; ``lengths [V]``: number of items of each user;
#: ``vote_offsets [V + 1]``, ``voted [m]``, ``votes [m]``: each user's items, and r_{vi};
#: ``neighbours [1]``, ``shrinkage [1]``: k and h; ``jaccard [1]``: 1 for the second similarity, else 0.
_FORM: Mapping[str, Any] = {
    "offsets": np.int64,
    "users": np.int32,
    "likeness": np.float32,
    "weights": np.float32,
    "lengths": np.int32,
    "vote_offsets": np.int64,
    "voted": np.int32,
    "votes": np.float32,
    "neighbours": np.int64,
    "shrinkage": np.float64,
    "jaccard": np.int32,
}


def checked_neighbours(form: Mapping[str, Any], items: int, name: str) -> dict[str, Array]:
    """Return the arrays of a form; raise InvalidSettings if one is missing, or they do not fit together."""
    what = f"user neighbours {name!r}"
    if missing := [array for array in _FORM if array not in form]:
        raise InvalidSettings(f"{what}: expected {', '.join(_FORM)}, got no {missing[0]}; give all")
    arrays = {key: np.asarray(form[key], dtype) for key, dtype in _FORM.items()}
    users = len(arrays["lengths"])
    for offsets, values, beside, rows, columns in (
        ("offsets", "users", "likeness", items, users),
        ("vote_offsets", "voted", "votes", users, items),
    ):
        ends, inside, weights = arrays[offsets], arrays[values], arrays[beside]
        fits = len(ends) == rows + 1 and ends[0] == 0 and ends[-1] == len(inside) == len(weights)
        if not fits or (np.diff(ends) < 0).any() or ((inside < 0) | (inside >= columns)).any():
            raise InvalidSettings(
                f"{what}: {offsets}, {values} and {beside} are not a CSR matrix of {rows} × {columns}; give "
                "one over the catalogue"
            )
        if not np.isfinite(weights).all():
            raise InvalidSettings(f"{what}: {beside} must be finite; give finite numbers")
    if len(arrays["weights"]) != items:
        raise InvalidSettings(
            f"{what}: expected {items} weights, got {len(arrays['weights'])}; give one an item"
        )
    return arrays


class _Near(NamedTuple):
    """The neighbours of users: similarities and user rows ``[B, k]``; -inf and the pad row V if fewer."""

    likes: Scores
    users: Rows


class Neighbours(OpenedSums):
    """The users of each item, and the votes of each user.

    Parameters
    ----------
    arrays
        The arrays of the form.
    items
        I, the pad row.
    """

    def __init__(self, arrays: Arrays, items: int) -> None:
        super().__init__(items)
        self._arrays, self._users = arrays, len(arrays["lengths"])
        self._most = int(arrays["neighbours"][0])
        self._shrinkage, self._jaccard = float(arrays["shrinkage"][0]), bool(arrays["jaccard"][0])

    def sums(self, history: Rows) -> tuple[Rows, Scores]:
        """Return the neighbours' votes, weighted by similarity and summed; see :meth:`OpenedSums.sums`."""
        near = self._near(history)
        real = near.users < self._users
        places, counts = picked(self._arrays["vote_offsets"], near.users[real])
        width = self._items + 1
        cells = self._arrays["voted"][places] + np.repeat(np.nonzero(real)[0], counts) * width
        votes = np.repeat(near.likes[real].astype(np.float64), counts) * self._arrays["votes"][places]
        cells, (sums,) = sum_cells(cells, len(history) * width, votes)
        return cells, sums.astype(np.float32)

    def _near(self, history: Rows) -> _Near:
        """Return the most similar users of each history ``[B, L]``, the most similar first."""
        arrays, width = self._arrays, self._users + 1
        real = history < self._items
        rows, owner = history[real], np.nonzero(real)[0]
        weights = arrays["weights"][rows].astype(np.float64)
        places, counts = picked(arrays["offsets"], rows)
        cells = arrays["users"][places] + np.repeat(owner, counts) * width
        products = np.repeat(weights, counts) * arrays["likeness"][places]
        size = len(history) * width
        cells, (common, dots) = sum_cells(cells, size, np.ones(len(cells)), products)
        asking, user = np.divmod(cells, width)
        if self._jaccard:
            had = real.sum(axis=1)[asking]
            likes = common / np.maximum(had + arrays["lengths"][user] - common + self._shrinkage, 1e-12)
        else:
            norms = np.sqrt(np.bincount(owner, weights * weights, minlength=len(history)))[asking]
            likes = dots / np.maximum(norms, 1e-12) * (common / (common + self._shrinkage))
        found = likes.astype(np.float32)
        above = found > 0
        most = min(self._most, self._users)
        listed = left_aligned(cells[above], found[above], len(history), width, most)
        return _Near(*best_by_score(*listed, most, self._users))
