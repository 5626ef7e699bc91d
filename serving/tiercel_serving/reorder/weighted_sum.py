"""``weighted_sum``: the final score is a weighted sum of the ranker's tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings, mistyped
from ..problems import Problem
from ..ranked import Scores
from ..spec import Arrays


class WeightedSum(Settings, frozen=True, tag="weighted_sum"):
    r"""Score by :math:`\sum_t w_t s_t` over the tasks t, summed in their order in float32.

    Parameters
    ----------
    weights
        One number a task.
    """

    weights: tuple[float, ...]

    of_ranker: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return weights that are no numbers."""
        if self.weights and not any(mistyped(self)):
            return []
        return [Problem("weights", f"expected a number a task, got {self.weights!r}", "write (1.0, 0.5)")]

    def misfits(self, tasks: int) -> list[Problem]:
        """Return another number of weights than tasks."""
        if len(self.weights) == tasks:
            return []
        problem = f"{len(self.weights)} weights, but the ranking model has {tasks or 'no'} tasks"
        return [Problem("weights", problem, "give one number a task, or leave the step out")]

    def open(self, columns: Mapping[str, Column]) -> WeightedTasks:
        """Return the step."""
        return WeightedTasks(np.array(self.weights, np.float32))

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the sums."""
        return [self._sum(candidate["rank_score"]) for candidate in candidates]

    def _sum(self, tasks: Sequence[float]) -> float:
        total = np.float32(0)
        for weight, task in zip(self.weights, tasks, strict=True):
            total = np.float32(total + np.float32(weight) * np.float32(task))
        return float(total)


class WeightedTasks:
    """The weights, as float32 ``[T]``."""

    def __init__(self, weights: npt.NDArray[np.float32]) -> None:
        self.weights = weights

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Sum task by task, in order: one definition of the sum, whatever the batch."""
        tasks = arrays["rank_score"]
        total: Scores = tasks[:, :, 0] * self.weights[0]
        for task in range(1, len(self.weights)):
            total = total + tasks[:, :, task] * self.weights[task]
        return total, None
