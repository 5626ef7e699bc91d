"""Adam for large embedding tables: a step's cost depends on the batch's rows, not on the table's size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: Decay rates of the two moments, and the term that prevents a division by 0: AdamW's defaults.
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class RowWiseAdam:
    r"""One table's optimiser, and the moving average of its weights.

    A row moves only in steps that have a gradient for it ("lazy" Adam). The second moment is one number per
    row, the mean square of its gradients, as in FBGEMM's ``PARTIAL_ROWWISE_ADAM``. Both moments count only
    the row's own steps:

    .. math:: m = \beta_1 m + (1 - \beta_1) g, \quad v = \beta_2 v + (1 - \beta_2) \overline{g^2}, \quad
              p = \gamma p - \eta \hat m / (\sqrt{\hat v} + \epsilon)

    Weight decay (:math:`\gamma = 1 - \eta \lambda`) and the average (:math:`a = d\,a + (1 - d)\,p`) apply to
    every row in every step. Over :math:`n` steps without a gradient for a row they have a closed form, which
    is applied when the row is next needed:

    .. math:: a \leftarrow d^n a + (1 - d)\, p\, \gamma \frac{\gamma^n - d^n}{\gamma - d}, \qquad
              p \leftarrow \gamma^n p

    Parameters
    ----------
    table
        ``[R, E]`` float32, whose gradients are sparse (``nn.Embedding(..., sparse=True)``).
    learning_rate, weight_decay
        :math:`\eta` and :math:`\lambda`.
    decay
        d of the average. Early steps weigh more: step t has the share max(1 - d, 1 / (t + 1)).
    """

    def __init__(self, table: Tensor, learning_rate: float, weight_decay: float, decay: float) -> None:
        self.table, self.average = table, table.detach().clone()
        self._rate, self._shrink, self._decay = learning_rate, 1 - learning_rate * weight_decay, decay
        rows = len(table)
        self._mean = torch.zeros_like(self.average)
        self._square, self._count = torch.zeros(rows), torch.zeros(rows, dtype=torch.int32)
        #: The step up to which each row is up to date.
        self._settled = torch.zeros(rows, dtype=torch.int32)

    @torch.no_grad()
    def step(self, number: int) -> None:
        """Take step ``number`` (from 1) with the table's gradient."""
        gradient = self.table.grad
        if gradient is None:
            return
        gradient = gradient.coalesce() if gradient.is_sparse else gradient.to_sparse(1).coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        share = max(1 - self._decay, 1 / (number + 1))
        early = share > 1 - self._decay
        self.settle(number - 1, None if early else rows)
        if early:
            # The share still changes from step to step, so there is no closed form; such steps are few.
            self.table.mul_(self._shrink)
            self.table.index_add_(0, rows, self._change(rows, values))
            self.average.lerp_(self.table, share)
            self._settled.fill_(number)
            return
        moved = self.table[rows] * self._shrink + self._change(rows, values)
        self.table[rows] = moved
        self.average[rows] = self.average[rows].lerp(moved, share)
        self._settled[rows] = number

    def _change(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return what the step adds to ``rows [r]``, ``[r, E]``, and update their moments."""
        count = self._count[rows] + 1
        mean = self._mean[rows].lerp(gradient, 1 - BETA1)
        square = self._square[rows].lerp(gradient.square().mean(1), 1 - BETA2)
        self._count[rows], self._mean[rows], self._square[rows] = count, mean, square
        first = (1 - BETA1 ** count.double()).float()
        second = (1 - BETA2 ** count.double()).float()
        return -self._rate * mean / first[:, None] / ((square / second).sqrt() + EPSILON)[:, None]

    @torch.no_grad()
    def settle(self, number: int, rows: Tensor | None = None) -> None:
        """Bring ``rows``, or all if None, up to date with the end of step ``number``."""
        late = torch.nonzero(self._settled < number).flatten() if rows is None else rows
        steps = (number - self._settled[late]).double()
        late, steps = late[steps > 0], steps[steps > 0]
        decay, shrink = self._decay, self._shrink
        # In pieces, which need little memory.
        for some, left in zip(torch.split(late, _ROWS), torch.split(steps, _ROWS), strict=True):
            kept, shrunk = decay**left, shrink**left
            if abs(shrink - decay) < 1e-9:
                added = (1 - decay) * left * kept
            else:
                added = (1 - decay) * shrink * (shrunk - kept) / (shrink - decay)
            weights = self.table[some]
            self.average[some] = self.average[some] * kept.float()[:, None] + weights * added.float()[:, None]
            self.table[some] = weights * shrunk.float()[:, None]
        self._settled[late] = number

    def state(self) -> dict[str, Tensor]:
        """Return everything that :meth:`restore` needs, except the table and its average."""
        return {
            "mean": self._mean,
            "square": self._square,
            "count": self._count,
            "settled": self._settled,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


#: Rows that are brought up to date at once.
_ROWS = 1 << 16
