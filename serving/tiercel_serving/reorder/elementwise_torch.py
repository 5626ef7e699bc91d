"""Device forms, in torch, of the reorder steps that treat each candidate independently.

A form is made from the opened step and the device. ``apply`` takes tensors; numbers that requests set come
from the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..device.place_torch import Place
from .boost_items import Boosted
from .freshness import Decay
from .per_request import Amount, batch_amount
from .popularity_correction import Correction
from .score_floor import Floor
from .weighted_sum import WeightedTasks

_LOWEST = float("-inf")


class TensorStep(Protocol):
    """An opened step on a device."""

    def apply(self, scores: Tensor, arrays: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Change scores ``[B, K]``, as :meth:`~.table.Step.apply` does."""
        ...


class TensorWeightedSum:
    """``weighted_sum``: summed task by task, in order, in float32."""

    def __init__(self, step: WeightedTasks, place: Place) -> None:
        self._weights = step.weights.tolist()

    def apply(self, scores: Tensor, arrays: Mapping[str, Any]) -> tuple[Tensor, None]:
        """Sum the tasks."""
        tasks = arrays["rank_score"]
        total: Tensor = tasks[:, :, 0] * self._weights[0]
        for task in range(1, len(self._weights)):
            total = total + tasks[:, :, task] * self._weights[task]
        return total, None


class TensorCorrection:
    """``popularity_correction``."""

    def __init__(self, step: Correction, place: Place) -> None:
        self._gains, self._strength = place.table(step.gains), _Amount(step.strength, place)

    def apply(self, scores: Tensor, arrays: Mapping[str, Any]) -> tuple[Tensor, None]:
        """Add each item's gain."""
        gains = self._strength.of(arrays) * self._gains[arrays["kept_row"]]
        return (scores + gains).float(), None


class TensorFreshness:
    """``freshness``."""

    def __init__(self, step: Decay, place: Place) -> None:
        self._times, self._newest = place.table(step.times), float(step.newest)
        self._half_life = step.kind.half_life
        self._now, self._strength = _Amount(step.kind.now, place), _Amount(step.kind.strength, place)

    def apply(self, scores: Tensor, arrays: Mapping[str, Any]) -> tuple[Tensor, None]:
        """Add each item's gain."""
        now = self._now.of(arrays)
        now = torch.where(now.isnan(), self._newest, now)
        # An unknown time stays NaN here; its gain becomes 0 below.
        ages = (now - self._times[arrays["kept_row"]]).clamp(min=0)
        gains = self._strength.of(arrays) * torch.exp2(ages / -self._half_life)
        return (scores + gains.nan_to_num()).float(), None


class TensorBoost:
    """``boost_items``."""

    def __init__(self, step: Boosted, place: Place) -> None:
        self._boosted, self._by = place.table(step.boosted), _Amount(step.by, place)

    def apply(self, scores: Tensor, arrays: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Add the points."""
        boosted = self._boosted[arrays["kept_row"]] & (scores > _LOWEST)
        points = torch.where(boosted, self._by.of(arrays), 0.0)
        return (scores + points).float(), boosted.int()


class TensorFloor:
    """``score_floor``."""

    def __init__(self, step: Floor, place: Place) -> None:
        self._least = _Amount(step.least, place)

    def apply(self, scores: Tensor, arrays: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Drop items below the floor."""
        below = scores < self._least.of(arrays)
        return scores.masked_fill(below, _LOWEST), (below & (scores > _LOWEST)).int()


class _Amount:
    """A step's number on the device; copied only once if requests can't set it."""

    def __init__(self, amount: Amount, place: Place) -> None:
        self._amount, self._place = amount, place
        self._fixed = place.put(batch_amount(amount, {})) if isinstance(amount, int | float) else None

    def of(self, arrays: Mapping[str, Any]) -> Tensor:
        """Return the number for each user, ``[B, 1]`` or ``[1, 1]`` float64."""
        return self._place.put(batch_amount(self._amount, arrays)) if self._fixed is None else self._fixed
