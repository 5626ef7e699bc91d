"""Training by gradient descent: epochs, early stopping, the best epoch, and resuming after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiercel_serving.problems import AT_LEAST_0, COUNT, POSITIVE, Range
from tiercel_serving.spec import Array, Arrays

from ..data import Progress
from .learner import Learner
from .table import Course, Plan

#: Ranges of the settings that every model trained by gradient descent has.
DESCENT: Mapping[str, Range] = {
    "learning_rate": POSITIVE,
    "weight_decay": AT_LEAST_0,
    "max_epochs": COUNT,
    "patience": COUNT,
}

#: Seconds after which an epoch first reports its progress, and seconds between its later reports.
_LONG_S, _EVERY_S = 10.0, 1.0


@contextmanager
def seeded(seed: int) -> Iterator[np.random.Generator]:
    """Seed torch inside the block and yield a NumPy generator; torch's own state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield np.random.default_rng(seed)


def tensors(arrays: Arrays, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return some of the arrays as tensors."""
    return {name: torch.from_numpy(arrays[name]) for name in names}


@dataclass
class _Descent:
    """State of a training: losses and the judge's scores so far, and the weights of the best epoch."""

    learner: Learner
    losses: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    best: int = 0
    kept: list[Tensor] = field(default_factory=list)

    def keep(self) -> None:
        """Keep the averaged weights as those of the best epoch."""
        self.best, self.kept = len(self.losses), [value.clone() for value in self.learner.average]

    def state(self, rng: np.random.Generator) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and JSON facts that determine the next epoch completely."""
        arrays = {name: value.numpy() for name, value in self.learner.state().items()}
        arrays |= {f"kept/{place}": value.numpy() for place, value in enumerate(self.kept)}
        arrays["torch_random_state"] = torch.get_rng_state().numpy()
        facts = {"steps": self.learner.steps, "losses": self.losses, "judged": self.judged}
        return arrays, {**facts, "best": self.best, "random_state": rng.bit_generator.state}

    def restore(self, arrays: Arrays, facts: Mapping[str, Any], rng: np.random.Generator) -> None:
        """Restore what :meth:`state` returned."""
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.learner.restore(state, facts["steps"])
        self.losses, self.judged, self.best = list(facts["losses"]), list(facts["judged"]), facts["best"]
        self.kept = (
            [state[f"kept/{place}"] for place in range(len(self.learner.average))] if self.judged else []
        )
        torch.set_rng_state(state["torch_random_state"])
        rng.bit_generator.state = facts["random_state"]


def _epoch(learner: Learner, losses: Iterable[Tensor], epoch: int, progress: Progress | None) -> float:
    """Take an optimiser step for each loss and return their mean; a long epoch reports its progress."""
    steps: list[float] = []
    total, begun = length_hint(losses) or None, time.monotonic()
    told, what = begun + _LONG_S - _EVERY_S, f"{learner.label}, within an epoch"
    for loss in losses:
        steps.append(learner.step(loss, epoch))
        now = time.monotonic()
        if progress is not None and now - told >= _EVERY_S:
            told, pace = now, len(steps) / (now - begun)
            note = f"epoch {epoch}, loss {np.mean(steps):.4f}, {pace:,.1f} steps/s"
            progress(f"{what}; {note}", len(steps), total)
    if progress is not None and told > begun + _LONG_S - _EVERY_S:
        progress(what, len(steps), len(steps))
    return float(np.mean(steps)) if steps else 0.0


def descend(
    settings: Any,
    model: torch.nn.Module,
    fitted: Any,
    epoch: Callable[[int], Iterable[torch.Tensor]],
    plan: Plan,
    *,
    max_epochs: int,
    rng: np.random.Generator | None = None,
) -> Course:
    """Run epochs until the judge's score has not improved for ``patience`` of them, and keep the best.

    ``epoch``, called with the number of epochs done, yields the loss of each batch, and a step is taken for
    each. The judge scores ``fitted`` while the model holds its averaged weights. ``settings`` has the fields
    of :data:`DESCENT`. With ``rng``, from which ``epoch`` draws everything that torch does not, a killed
    training resumes after its last saved epoch. Without it, training starts again and gives the same model.
    """
    learner = Learner(model, settings.learning_rate, settings.weight_decay, plan.label, plan.ranks)
    judge, progress, label = plan.judge, plan.progress, plan.label
    total = max_epochs if judge is not None or plan.epochs is None else plan.epochs
    at, states = _Descent(learner), plan.states if rng is not None else None
    found = states.read() if states is not None else None
    if found is not None and rng is not None:
        at.restore(*found, rng)
    elif judge is not None:
        at.judged.append(plan.ranks.first(judge(fitted)))
        at.keep()
    if progress is not None:
        progress(label, len(at.losses), total)
    while len(at.losses) < total and not (
        judge is not None and len(at.losses) - at.best >= settings.patience
    ):
        learner.model.train()
        at.losses.append(_epoch(learner, epoch(len(at.losses)), len(at.losses) + 1, progress))
        if progress is not None:
            progress(label, len(at.losses), total)
        if judge is not None:
            with learner.averaged():
                at.judged.append(plan.ranks.first(judge(fitted)))
            if at.judged[-1] > at.judged[at.best]:
                at.keep()
        if states is not None and rng is not None:
            learner.settle()
            states.offer(lambda: at.state(rng))
    learner.settle()
    learner.load(at.kept if judge is not None else learner.average)
    learner.model.eval()
    if progress is not None and len(at.losses) < total:
        # Training stopped early, so the progress is complete.
        progress(label, total, total)
    return Course(at.best if judge is not None else len(at.losses), tuple(at.losses), tuple(at.judged))
