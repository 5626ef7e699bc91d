"""Training by gradient descent: steps, epochs, early stopping, and what is kept of the best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tiercel_serving.problems import AT_LEAST_0, COUNT, POSITIVE, Range
from tiercel_serving.spec import Arrays

from ..errors import TrainingError
from .table import Course, Plan

#: The kept weights are a moving average over about 1 / (1 - this) steps: it is as good as letting the
#: learning rate fall, and unlike that it is good at every epoch, so that one may stop at any.
AVERAGE_DECAY = 0.98

#: What the settings of a model that is trained so may be.
DESCENT: Mapping[str, Range] = {
    "learning_rate": POSITIVE,
    "weight_decay": AT_LEAST_0,
    "max_epochs": COUNT,
    "patience": COUNT,
}


@contextmanager
def seeded(seed: int) -> Iterator[np.random.Generator]:
    """Seed torch inside the block and give a NumPy generator; torch's own state returns afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield np.random.default_rng(seed)


def tensors(arrays: Arrays, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return some of the arrays as tensors."""
    return {name: torch.from_numpy(arrays[name]) for name in names}


class Learner:
    """A model, its optimiser (AdamW), and the moving average of its weights, which is what training keeps."""

    def __init__(self, model: torch.nn.Module, learning_rate: float, weight_decay: float, label: str):
        self.model = model
        self.label = label
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.steps = 0

    def step(self, loss: torch.Tensor) -> float:
        """Take one step down the loss and return its value."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.label}: the loss became {value} in step {self.steps + 1}; lower the learning rate, "
                "raise the temperature, or look for numbers among the features that no Normalize() tames"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.steps += 1
        # The first steps weigh more, so that the average soon forgets the random start.
        share = max(1 - AVERAGE_DECAY, 1 / (self.steps + 1))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, share)
        return value

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average into the model inside the block."""
        current = [parameter.detach().clone() for parameter in self.parameters]
        self.load(self.average)
        yield
        self.load(current)

    def load(self, weights: list[torch.Tensor]) -> None:
        """Copy weights into the model."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights, strict=True):
                parameter.copy_(value)


def descend(
    settings: Any,
    model: torch.nn.Module,
    fitted: Any,
    epoch: Callable[[], Iterable[torch.Tensor]],
    plan: Plan,
    *,
    max_epochs: int,
) -> Course:
    """Run epochs until the judge has seen nothing better for ``patience`` of them, and keep the best.

    ``epoch`` yields the loss of each batch, down which a step is taken; the judge judges ``fitted``, in which
    the model's averaged weights lie then. ``settings`` have the fields of :data:`DESCENT`.
    """
    learner = Learner(model, settings.learning_rate, settings.weight_decay, plan.label)
    judge, progress, label = plan.judge, plan.progress, plan.label
    total = max_epochs if judge is not None or plan.epochs is None else plan.epochs
    losses: list[float] = []
    judged = [judge(fitted)] if judge is not None else []
    best, kept = 0, [value.clone() for value in learner.average]
    if progress is not None:
        progress(label, 0, total)
    for number in range(total):
        learner.model.train()
        steps = [learner.step(loss) for loss in epoch()]
        losses.append(float(np.mean(steps)) if steps else 0.0)
        if progress is not None:
            progress(label, number + 1, total)
        if judge is None:
            continue
        with learner.averaged():
            judged.append(judge(fitted))
        if judged[-1] > judged[best]:
            best, kept = number + 1, [value.clone() for value in learner.average]
        if number + 1 - best >= settings.patience:
            break
    learner.load(kept if judge is not None else learner.average)
    learner.model.eval()
    if progress is not None and len(losses) < total:
        # It stopped early: nothing is left to wait for.
        progress(label, total, total)
    return Course(best if judge is not None else len(losses), tuple(losses), tuple(judged))
