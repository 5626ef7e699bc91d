"""A model, its optimisers, and the moving average of its weights, which training keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from .ranks import ALONE, Ranks
from .row_wise import RowWiseAdam

#: The kept weights are a moving average over about 1 / (1 - this) steps. It is as good as a decaying learning
#: rate and, unlike that, is good after every epoch, so that training may stop at any.
AVERAGE_DECAY = 0.98

#: Embedding tables with more rows are updated row by row: AdamW's passes over such a table would cost more
#: than the batch.
LARGE_TABLE = 100_000


class Learner:
    """AdamW, row-wise Adam for large embedding tables, and the moving average of all weights."""

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        weight_decay: float,
        label: str,
        ranks: Ranks = ALONE,
    ):
        self.model, self.label, self.steps, self._ranks = model, label, 0, ranks
        self._names = [name for name, _ in model.named_parameters()]
        self.parameters: list[Tensor] = list(model.parameters())
        large = [
            table
            for table in model.modules()
            if isinstance(table, nn.Embedding)
            and table.num_embeddings > LARGE_TABLE
            and table.weight.requires_grad
        ]
        for table in large:
            table.sparse = True
        apart = {id(table.weight) for table in large}
        self._tables = {
            name: RowWiseAdam(parameter, learning_rate, weight_decay, AVERAGE_DECAY)
            for name, parameter in model.named_parameters()
            if id(parameter) in apart
        }
        self._dense = {name: p for name, p in model.named_parameters() if name not in self._tables}
        # Fused: one pass over the weights instead of ten.
        self._adam = (
            torch.optim.AdamW(self._dense.values(), lr=learning_rate, weight_decay=weight_decay, fused=True)
            if self._dense
            else None
        )
        dense = {name: parameter.detach().clone() for name, parameter in self._dense.items()}
        tables = {name: table.average for name, table in self._tables.items()}
        self.average = [{**dense, **tables}[name] for name in self._names]
        self._dense_average = list(dense.values())

    def step(self, loss: Tensor, epoch: int) -> float:
        """Take one optimiser step and return the loss; raise TrainingError if it is not finite."""
        value = self._ranks.mean(float(loss.detach()))
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.label}: the loss became {value} in step {self.steps + 1}, epoch {epoch}"
                f"{self._where()}; lower the learning rate, raise the temperature if there is one, or look "
                "for numbers among the features that no Normalize() tames"
            )
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._ranks.average(self.parameters)
        self.steps += 1
        if self._adam is not None:
            self._adam.step()
            # The first steps weigh more, so that the average soon forgets the random start.
            share = max(1 - AVERAGE_DECAY, 1 / (self.steps + 1))
            with torch.no_grad():
                torch._foreach_lerp_(self._dense_average, list(self._dense.values()), share)
        for table in self._tables.values():
            table.step(self.steps)
        return value

    def _where(self) -> str:
        """Name the weights that are no longer finite: then a step before this one went wrong."""
        wrong = [
            name
            for name, weights in zip(self._names, self.parameters, strict=True)
            if not bool(torch.isfinite(weights).all())
        ]
        return f" (weights that are no longer finite: {', '.join(wrong[:3])})" if wrong else ""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold the averaged weights inside the block."""
        self.settle()
        current = [parameter.data for parameter in self.parameters]
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data = average
        try:
            yield
        finally:
            for parameter, weights in zip(self.parameters, current, strict=True):
                parameter.data = weights

    def settle(self) -> None:
        """Bring every row of the large tables, and its average, up to date with the last step."""
        for table in self._tables.values():
            table.settle(self.steps)

    def load(self, weights: list[Tensor]) -> None:
        """Copy weights into the model."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights, strict=True):
                parameter.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Return weights, averages and moments by name, with which :meth:`restore` continues bit for bit."""
        made: dict[str, Tensor] = {}
        for name, parameter, average in zip(self._names, self.parameters, self.average, strict=True):
            made |= {f"weight/{name}": parameter.detach(), f"average/{name}": average}
        for name, table in self._tables.items():
            made |= {f"rows/{name}/{key}": value for key, value in table.state().items()}
        for name, parameter in self._dense.items():
            moments = {} if self._adam is None else self._adam.state[parameter]
            made |= {f"adam/{name}/{key}": value for key, value in moments.items()}
        return made

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Restore what :meth:`state` returned after ``steps`` steps."""
        self.steps = steps
        self.load([state[f"weight/{name}"] for name in self._names])
        for name, average in zip(self._names, self.average, strict=True):
            average.copy_(state[f"average/{name}"])
        for name, table in self._tables.items():
            table.restore({key: state[f"rows/{name}/{key}"] for key in table.state()})
        for name, parameter in self._dense.items():
            begin = f"adam/{name}/"
            moments = {key[len(begin) :]: value for key, value in state.items() if key.startswith(begin)}
            if moments and self._adam is not None:
                self._adam.state[parameter] = {key: value.clone() for key, value in moments.items()}
