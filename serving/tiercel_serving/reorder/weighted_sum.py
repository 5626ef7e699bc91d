"""``weighted_sum``: the final score is a weighted sum of the ranker's tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..problems import Problem, choose, named_twice
from ..ranked.order import Scores
from ..spec import Arrays


class WeightedSum(Settings, frozen=True, tag="weighted_sum"):
    r"""Score by :math:`\sum_t w_t s_t` over the tasks t, summed in their order in float32.

    Parameters
    ----------
    weights
        One number per task.
    tasks
        Names of the tasks that the weights belong to; other tasks have weight 0. Empty means all tasks, in
        the ranker's order.
    """

    weights: tuple[float, ...]
    tasks: tuple[str, ...] = ()

    of_ranker: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return missing or non-finite weights, and task names that do not match the weights."""
        if not self.weights or not all(map(isfinite, self.weights)):
            problem = f"expected a number a task, got {self.weights!r}"
            return [Problem("weights", problem, "write (1.0, 0.5)")]
        if self.tasks and len(self.tasks) != len(self.weights):
            problem = f"{len(self.tasks)} names for {len(self.weights)} weights"
            return [Problem("tasks", problem, "name the task of each weight, or none")]
        return list(named_twice(self.tasks, "tasks", "tasks"))

    def unknown(self, names: Sequence[str]) -> list[Problem]:
        """Return a problem for each task that a ranker with scores of these names does not have."""
        if self.problems():
            return []
        if self.tasks and not names:
            problem = f"the ranking model has no scores of these names: {', '.join(map(repr, self.tasks))}"
            return [Problem("tasks", problem, "give one weight a score, in their order, and no names")]
        return [
            Problem("tasks", f"the ranking model has no task {task!r}", choose(task, names))
            for task in self.tasks
            if task not in names
        ]

    def placed(self, names: Sequence[str]) -> WeightedSum:
        """Return the step with a weight for each of the ranker's scores, in their order."""
        if not self.tasks or self.problems():
            return self
        weights = dict(zip(self.tasks, self.weights, strict=True))
        return WeightedSum(tuple(weights.get(name, 0.0) for name in names))

    def misfits(self, tasks: int) -> list[Problem]:
        """Return a problem if the number of weights differs from that of tasks."""
        if self.tasks:
            return self.unknown(())
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
    """The opened step: weights ``[T]``, float32."""

    def __init__(self, weights: npt.NDArray[np.float32]) -> None:
        self.weights = weights

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Sum task by task, in order, so that the result does not depend on the batch."""
        tasks = arrays["rank_score"]
        total: Scores = tasks[:, :, 0] * self.weights[0]
        for task in range(1, len(self.weights)):
            total = total + tasks[:, :, task] * self.weights[task]
        return total, None
