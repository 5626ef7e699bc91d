"""Data-parallel training of one model in several processes that ``torchrun`` started.

Each process holds the whole model and draws the same batches. It computes its share of a batch's rows, and
the gradients are averaged (Li et al. 2020, "PyTorch distributed: experiences on accelerating data parallel
training"). Every process has all items of a batch, so a query has the same negatives as with one process.
The loss differs only by dropout and the order of sums. torch's own ``DistributedDataParallel`` averages after
one ``forward``; here user and item modules run separately.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import TrainingError

#: Environment variables that ``torchrun`` sets for each process.
_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Batch = TypeVar("Batch")


@runtime_checkable
class Divisible(Protocol):
    """A batch that can be divided by its rows."""

    def take(self, chosen: Any) -> Any:
        """Return some of the rows."""
        ...

    @property
    def mass(self) -> float:
        """Total weight of the rows in the loss, which is a weighted mean.

        Always 1 if the loss of some rows is their part of the whole batch's loss.
        """
        ...


@dataclass(frozen=True)
class Ranks:
    """One process among ``count``; a single one communicates nothing."""

    rank: int = 0
    count: int = 1

    def share(self, batch: Batch, rows: int) -> tuple[slice, Batch, float]:
        """Return this process's rows of a batch, the batch of those rows, and the factor of its loss.

        With that factor, the mean of all processes' losses is the loss of the whole batch (see
        :attr:`Divisible.mass`). A batch that cannot be divided goes to every process whole.
        """
        if self.count == 1 or not isinstance(batch, Divisible):
            return slice(None), batch, 1.0
        mine = slice(self.rank, rows, self.count)
        part = batch.take(mine)
        return mine, part, self.count * part.mass / max(batch.mass, 1e-9)

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients by their means over all processes."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        dense = [gradient for gradient in gradients if not gradient.is_sparse]
        if dense:
            flat = torch.cat([gradient.reshape(-1) for gradient in dense])
            dist.all_reduce(flat)
            flat /= self.count
            sizes = [gradient.numel() for gradient in dense]
            for gradient, mean in zip(dense, torch.split(flat, sizes), strict=True):
                gradient.copy_(mean.view_as(gradient))
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = self._sparse_mean(parameter.grad)

    def _sparse_mean(self, gradient: Tensor) -> Tensor:
        rows = gradient.coalesce()
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, (rows.indices(), rows.values()))
        indices, values = (torch.cat([part[at] for part in found], dim=1 - at) for at in (0, 1))
        return torch.sparse_coo_tensor(indices, values / self.count, gradient.shape).coalesce()

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes."""
        if self.count == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(number)
        return float(number) / self.count

    def first(self, value: float) -> float:
        """Return the first process's number, so that all processes decide alike."""
        if self.count == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(number, 0)
        return float(number)

    def check_same(self, digest: str) -> None:
        """Raise TrainingError in every process if they learn from different data."""
        if self.count == 1:
            return
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, digest)
        others = [rank for rank, one in enumerate(found) if one != found[0]]
        if others:
            who = ", ".join(map(str, others))
            raise TrainingError(
                f"distributed training: process {who} of {self.count} sees other data or features than "
                "process 0; give every process the same recipe, seed and tables"
            )

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.count > 1:
            dist.barrier()


ALONE = Ranks()


@contextmanager
def process_group(distributed: bool, timeout_s: float = 1800.0) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, or yield :data:`ALONE` if not ``distributed``.

    Raises
    ------
    TrainingError
        If ``distributed`` and ``torchrun`` did not start this process.
    """
    if not distributed:
        yield ALONE
        return
    missing = [name for name in _TOLD if name not in os.environ]
    if missing:
        raise TrainingError(
            f"distributed training: expected a process of torchrun, but {', '.join(missing)} is not set; "
            "type `torchrun --nproc-per-node 2 --no-python tiercel train RECIPE --distributed`"
        )
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
