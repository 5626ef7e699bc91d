"""Base of the families that train a user and an item module, combined by an inner product."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from tiercel_serving.kinds import Settings

from ..arrays.inputs import ModelInputs
from ..errors import TrainingError
from .descent import descend, seeded
from .fitted import FittedVectors
from .table import Course, Plan, RetrievalData

#: Called with the number of epochs done; yields the losses of one epoch, one for each step.
Epoch = Callable[[int], Iterable[Tensor]]


class VectorFamily(Settings, frozen=True):
    """Base of the settings of such a family, which defines the modules and an epoch.

    A subclass has the fields of :data:`~.descent.DESCENT`.
    """

    form: ClassVar[str] = "vectors"
    scale: ClassVar[float] = 1.0

    def fresh(self, inputs: ModelInputs) -> FittedVectors:
        """Return both modules with fresh weights, drawn from torch's random state."""
        raise NotImplementedError

    def epoch(self, data: RetrievalData, fitted: Any, rng: np.random.Generator, label: str) -> Epoch:
        """Return the function that runs an epoch; everything that torch does not draw comes from ``rng``."""
        raise NotImplementedError

    def fit(self, data: RetrievalData, plan: Plan) -> tuple[FittedVectors, Course]:
        """Train both modules until the judge's score no longer improves."""
        if not len(data.pairs):
            raise TrainingError(f"{plan.label}: there are no interactions to learn from")
        settings: Any = self
        with seeded(plan.seed) as rng:
            fitted = self.fresh(data.inputs)
            epoch = self.epoch(data, fitted, rng, plan.label)
            both = nn.ModuleList([fitted.user_tower, fitted.item_tower])
            course = descend(self, both, fitted, epoch, plan, max_epochs=settings.max_epochs, rng=rng)
        return fitted, course

    def load(self, folder: Path, inputs: ModelInputs) -> FittedVectors:
        """Read both modules."""
        return self.fresh(inputs).restored(folder)
