"""Every error of the pipelines, in one tree.

::

    TiercelError                     (tiercel_serving.errors)
    └── PipelineError
        ├── RecipeError              the recipe is invalid; lists every mistake
        ├── DataError
        │   ├── DataMissing          the data was not found, and could not be downloaded
        │   └── DataCorrupt          the data was found, but is truncated, changed or not what its schema says
        ├── TrainingError            training cannot continue, or a run cannot be read
        │   └── RunMissing           there is no run where one was expected
        └── EvaluationError          what is served and what it is evaluated with do not belong together

A message names the stage or file, what was expected, what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tiercel_serving.errors import TiercelError
from tiercel_serving.problems import Problem


class PipelineError(TiercelError):
    """Base of every error of the pipelines package."""


class RecipeError(PipelineError):
    """The recipe is invalid.

    Parameters
    ----------
    recipe
        The recipe's name or file.
    problems
        Every problem that was found, not only the first.
    """

    def __init__(self, recipe: str, problems: Iterable[Problem]):
        self.recipe = recipe
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"recipe {recipe}: {count} mistake{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is otherwise unpickled from its message alone.
        return type(self), (self.recipe, self.problems)


class DataError(PipelineError):
    """A data set cannot be used."""


class DataMissing(DataError):
    """The data was not found, and could not be downloaded."""


class DataCorrupt(DataError):
    """The data was found, but is truncated, changed, or not what its schema says."""


class TrainingError(PipelineError):
    """Training cannot continue, or a run cannot be read."""


class RunMissing(TrainingError):
    """There is no run where one was expected."""


class EvaluationError(PipelineError):
    """What is served and what it is evaluated with do not belong together."""
