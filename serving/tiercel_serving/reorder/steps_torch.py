"""The reorder steps of a recommender, applied in order on a device: :mod:`.steps`, in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..device.place_torch import Place
from ..settings import FALLBACK, UNKNOWN, ServingSettings
from .elementwise_torch import TensorStep
from .steps import reasons_of
from .table import ReorderKind

_LOWEST = float("-inf")


class TensorSteps:
    """Turn the ranker's scores into final ones; see :class:`~.steps.Steps`.

    Parameters
    ----------
    settings
        The settings.
    steps
        Each step's settings, with its form on the device. None of them explores.
    items
        I, the pad row.
    place
        The device.
    """

    def __init__(
        self,
        settings: ServingSettings,
        steps: Sequence[tuple[ReorderKind, TensorStep]],
        items: int,
        place: Place,
    ) -> None:
        self._pad, self._place, self._steps = items, place, tuple(steps)
        self._bypass = settings.unknown_users == FALLBACK
        self._has_reasons = bool(reasons_of(settings.reorder))

    def apply(self, arrays: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute the final scores of the kept from the arrays of :meth:`.steps.Steps.apply`.

        ``status`` is a NumPy array on the host; all others are tensors.

        Returns
        -------
        ``[B, K, T]`` float32 scores: the first of the last axis is the final score, and :meth:`blank` must
        still be applied; ``[B, K]`` rows; ``[B, K]`` int32 reasons, or None. If there is nothing to do, the
        scores are the ranker's own tensor.
        """
        kept, tasks = arrays["kept_row"], arrays.get("rank_score")
        unknown = arrays["status"] == UNKNOWN
        bypass: Tensor | None = None
        if self._bypass and tasks is not None and unknown.any():
            bypass = self._place.put(unknown)
        if tasks is not None and bypass is None and not self._steps:
            return tasks, kept, None
        scores: Tensor = arrays["kept_score"] if tasks is None else tasks[:, :, 0]
        if bypass is not None:
            scores = torch.where(bypass, arrays["kept_score"], scores)
        rows, scores = kept, self.blank(scores, kept) if self._steps else scores
        reasons = torch.zeros_like(kept, dtype=torch.int32) if self._has_reasons else None
        first = 1
        for kind, step in self._steps:
            changed, why = step.apply(scores, arrays)
            if bypass is not None and kind.of_ranker:
                changed, why = torch.where(bypass, scores, changed), None if why is None else why * ~bypass
            rows = rows.masked_fill((changed == _LOWEST) & (scores != _LOWEST), self._pad)
            if why is not None and reasons is not None:
                reasons = torch.where(why > 0, why + (first - 1), reasons)
            scores, first = self.blank(changed, rows), first + len(kind.reasons)
        return scores[:, :, None], rows, reasons

    def blank(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Set the scores of empty slots, and NaN from a broken model, to -inf, so that they come last."""
        told = scores.nan_to_num(nan=_LOWEST, posinf=float("inf"), neginf=_LOWEST)
        return told.masked_fill(rows == self._pad, _LOWEST)
