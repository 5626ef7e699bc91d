r"""``als``: matrix factorisation of implicit feedback by alternating least squares.

.. math::
    \sum_{(u,i) \in S} (1 - w_u^\top h_i)^2 + \alpha_0 \sum_{u,i} (w_u^\top h_i)^2
    + \lambda \sum_u (|I_u| + \alpha_0 |I|)^\nu \|w_u\|^2 + \lambda \sum_i (|U_i| + \alpha_0 |U|)^\nu
    \|h_i\|^2

(Hu et al. 2008, "Collaborative filtering for implicit feedback datasets"; weights and regularisation by
frequency as in Rendle et al. 2021, "Revisiting the performance of iALS on item recommendation benchmarks",
eq. 3 to 5). Each side is solved exactly while the other is fixed; no sum runs over all user × item pairs.

λ is the setting divided by the mean of :math:`(|I_u| + \alpha_0 |I|)^\nu` over the users. The setting is
thus the regularisation of the average user, in interactions, and independent of the catalogue's size. A fixed
λ that suits 1,700 films would shrink all vectors to almost nothing with 25,000 items.

Vectors are ``[B, D]`` of users and ``[I, D]`` of items.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from tiercel_serving.kinds import Settings
from tiercel_serving.problems import AT_LEAST_0, COUNT, POSITIVE, WIDTH, Problem, out_of_range
from tiercel_serving.spec import Array

from ..arrays.inputs import ModelInputs
from ..errors import TrainingError
from .category_vectors import had_by_category, lacks_user_id, vector_models
from .fitted import FittedVectors
from .table import Columns, Course, Plan, RetrievalData

#: About how many elements of gathered vectors are in memory at once.
_CELLS = 10_000_000


class ALS(Settings, frozen=True, tag="als"):
    """Implicit alternating least squares.

    Parameters
    ----------
    name
        Name of its candidate source.
    dimension
        D, the length of the vectors.
    unobserved_weight
        α₀, the weight of a pair without an interaction, relative to 1 for an interaction.
    regularisation, frequency_exponent
        λ for the average user, in interactions, and ν. The larger ν is, the more are users and items with
        many interactions regularised relative to the others.
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    """

    name: str = "als"
    dimension: int = 64
    unobserved_weight: float = 0.1
    regularisation: float = 6.0
    frequency_exponent: float = 1.0
    max_epochs: int = 16
    patience: int = 3

    form: ClassVar[str] = "vectors"
    #: Scores estimate interactions, which are 0 or 1, and so lie between 0 and about 1.
    scale: ClassVar[float] = 10.0

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range."""
        ranges = {"dimension": WIDTH, **dict.fromkeys(("max_epochs", "patience"), COUNT)}
        ranges |= dict.fromkeys(("unobserved_weight", "regularisation"), POSITIVE)
        return list(out_of_range(self, {**ranges, "frequency_exponent": AT_LEAST_0}))

    def needs(self) -> Mapping[str, str]:
        """Return nothing, since the model identifies users by their id."""
        return {}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem if users have no id."""
        return lacks_user_id(user, "ALS")

    def fit(self, data: RetrievalData, plan: Plan) -> tuple[FittedVectors, Course]:
        """Solve for users and items alternately until the judge's score no longer improves."""
        had = had_by_category(data, plan.label)
        back = had.T.tocsr()
        rng = np.random.default_rng(plan.seed)
        items = rng.normal(0, 0.1 / np.sqrt(self.dimension), (had.shape[1], self.dimension))
        items[np.diff(back.indptr) == 0] = 0
        strength = self.strength(had)
        fitted = vector_models(data.inputs, self.dimension)
        total = self.max_epochs if plan.judge is not None or plan.epochs is None else plan.epochs
        judged, best, kept = [0.0], 0, None
        losses: list[float] = []
        for number in range(1, total + 1):
            users = self.solve(had, items, strength)
            items = self.solve(back, users, strength)
            losses.append(_loss(had, users, items))
            if not np.isfinite(losses[-1]):
                raise TrainingError(
                    f"{plan.label}: the loss became {losses[-1]} in epoch {number}; raise regularisation"
                )
            _put(fitted.user_tower.table, _with_strangers(users, had))
            _put(fitted.item_tower.table, items)
            if plan.progress is not None:
                plan.progress(plan.label, number, total)
            if plan.judge is None:
                continue
            judged.append(plan.judge(fitted))
            if kept is None or judged[-1] > judged[best]:
                best, kept = number, [module.table.weight.clone() for module in _modules(fitted)]
            if number - best >= self.patience:
                break
        if kept is None:
            return fitted, Course(total, tuple(losses))
        for module, weight in zip(_modules(fitted), kept, strict=True):
            _put(module.table, weight)
        if plan.progress is not None and len(losses) < total:
            plan.progress(plan.label, total, total)
        return fitted, Course(best, tuple(losses), tuple(judged))

    def strength(self, had: Any) -> float:
        """Return λ for the interactions ``[users, items]`` (CSR)."""
        lengths, items = np.diff(had.indptr), len(np.unique(had.indices))
        return float(self.regularisation / self._frequencies(lengths[lengths > 0], items).mean())

    def _frequencies(self, lengths: Array, others: int) -> Array:
        """Return the relative regularisation ``[n]`` of one side's rows, given the size of the other side."""
        frequencies: Array = (lengths + self.unobserved_weight * others) ** self.frequency_exponent
        return frequencies

    def solve(self, had: Any, others: Array, strength: float) -> Array:
        """Return the optimal vectors ``[n, D]`` of one side, given those of the other, ``[m, D]``.

        ``had [n, m]`` is CSR, ``strength`` is λ.
        """
        lengths, size = np.diff(had.indptr), others.shape[1]
        everything = self.unobserved_weight * others.T @ others
        penalty = strength * self._frequencies(lengths, np.count_nonzero(others.any(1)))
        found = np.zeros((had.shape[0], size))
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > 0]
        padded = np.append(others, np.zeros((1, size)), axis=0)
        start = 0
        while start < len(order):
            # A block is as wide as its longest row; rows are sorted by length, so there is little padding.
            stop = start + max(1, min(512, _CELLS // (size * max(int(lengths[order[start]]), 1))))
            rows = order[start:stop]
            alike = int(np.searchsorted(lengths[rows], 2 * lengths[rows[0]] + 16, side="right"))
            rows = rows[:alike]
            width = np.arange(int(lengths[rows].max()))
            real = width < lengths[rows, None]
            place = np.where(real, had.indptr[rows, None] + width, 0)
            vectors = padded[np.where(real, had.indices[place], len(others))]
            squares = vectors.transpose(0, 2, 1) @ vectors + everything
            squares += penalty[rows, None, None] * np.eye(size)
            found[rows] = np.linalg.solve(squares, vectors.sum(1)[..., None])[..., 0]
            start += len(rows)
        return found

    def load(self, folder: Path, inputs: ModelInputs) -> FittedVectors:
        """Read both tables."""
        return vector_models(inputs, self.dimension).restored(folder)


def _modules(fitted: FittedVectors) -> tuple[Any, Any]:
    return fitted.user_tower, fitted.item_tower


def _put(table: Any, vectors: Any) -> None:
    with torch.no_grad():
        table.weight.copy_(torch.as_tensor(vectors))


def _with_strangers(users: Array, had: Any) -> Array:
    """Return the users' vectors, with the mean of the known users' for users without interactions."""
    known = np.diff(had.indptr) > 0
    return np.where(known[:, None], users, users[known].mean(0))


def _loss(had: Any, users: Array, items: Array) -> float:
    """Return the mean squared error of the interactions."""
    rows = np.repeat(np.arange(had.shape[0]), np.diff(had.indptr))
    blocks = np.array_split(np.arange(had.nnz), max(1, had.nnz * users.shape[1] // _CELLS))
    error = sum(
        float(np.square(1 - np.einsum("nd,nd->n", users[rows[some]], items[had.indices[some]])).sum())
        for some in blocks
    )
    return float(error / had.nnz)
