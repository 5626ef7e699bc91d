"""Fitted models that are torch modules: their outputs, their weights on disk, and their served forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from tiercel_serving.spec import Array, Arrays

from ..arrays.counted import Counted
from .descent import descend, seeded, tensors
from .layers import PackedModule, run_module
from .table import Course, Plan, RankingData
from .views import drop_history
from .weights import load_weights, save_weights

#: Users with histories of similar length that run as one batch.
_ALIKE = 32


def run_by_length(module: PackedModule, users: Arrays) -> Array:
    """Run a module on many users, in batches of similar history length.

    This avoids the padding that a batch shares, which is most of what histories hold. The output for a
    history does not depend on how much padding follows it.
    """
    named = {name: users[name] for name in module.input_names}
    if "history_cat" not in named or "history_length" not in named or len(named["history_cat"]) <= _ALIKE:
        return run_module(module, named)
    length = named["history_length"][:, 0]
    order = np.argsort(length, kind="stable")
    parts = []
    for start in range(0, len(order), _ALIKE):
        some = order[start : start + _ALIKE]
        arrays = {name: array[some] for name, array in named.items()}
        arrays["history_cat"] = arrays["history_cat"][:, : max(1, int(length[some[-1]]))]
        parts.append(run_module(module, arrays))
    return np.concatenate(parts)[np.argsort(order)]


class FittedVectors:
    """A user module ``→ [B, D]`` and an item module ``→ [I, D]``, combined by an inner product."""

    def __init__(self, user_tower: PackedModule, item_tower: PackedModule) -> None:
        self.user_tower, self.item_tower = user_tower, item_tower

    def query(self, users: Arrays) -> Array:
        """Return the queries ``[B, D]``."""
        return run_by_length(self.user_tower, users)

    def form(self, items: Arrays) -> dict[str, Array]:
        """Return ``vectors [I, D]``."""
        return {"vectors": run_module(self.item_tower, items)}

    def save(self, folder: Path) -> None:
        """Write the weights of both."""
        save_weights(self.user_tower, folder / "user_tower.safetensors")
        save_weights(self.item_tower, folder / "item_tower.safetensors")

    def restored(self, folder: Path) -> FittedVectors:
        """Load what :meth:`save` wrote into these modules, whose shapes must match, and return ``self``."""
        load_weights(self.user_tower.eval(), folder / "user_tower.safetensors")
        load_weights(self.item_tower.eval(), folder / "item_tower.safetensors")
        return self

    def served(self) -> Any:
        """Return the query module, and the module that makes the item vectors."""
        from tiercel_export import Vectors

        return Vectors(query=self.user_tower, items=self.item_tower)


class FittedRanker:
    """A module over user tensors and candidates that gives ``rank_score [B, K, T]``."""

    def __init__(self, module: PackedModule) -> None:
        self.module = module

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return self.module.input_names

    def scores(self, arrays: Arrays) -> Array:
        """Return ``rank_score [B, K, T]``."""
        return run_by_length(self.module, arrays)

    def save(self, folder: Path) -> None:
        """Write the weights."""
        save_weights(self.module, folder / "weights.safetensors")

    def restored(self, folder: Path) -> FittedRanker:
        """Load what :meth:`save` wrote into this module, whose shapes must match, and return ``self``."""
        load_weights(self.module.eval(), folder / "weights.safetensors")
        return self

    def served(self) -> nn.Module:
        """Return the module."""
        return self.module


def fit_ranker(settings: Any, data: RankingData, plan: Plan) -> tuple[FittedRanker, Course]:
    """Train a ranker on lists; if no epoch improves on the initial model, return the initial model.

    The family's ``build(inputs, scale)`` makes the module with fresh weights, its ``task`` is the objective,
    and its ``history_dropout`` and the fields of :data:`~.descent.DESCENT` control the training.
    """
    packed, pad = data.packed, data.packed.n_items
    with seeded(plan.seed) as rng:
        model: PackedModule = settings.build(data.inputs, data.scale)
        objective = settings.task.start(data.lists, data.kept, pad)

        def loss(batch: Any) -> Tensor:
            history = drop_history(batch.history, settings.history_dropout, pad, rng)
            # Histories are left aligned: after the longest there is only padding.
            history = history[:, : max(1, int((history != pad).sum(axis=1).max()))]
            arrays = packed.user_tensors(batch.contexts, history)
            arrays.update({name: array[batch.rows] for name, array in packed.item.items()})
            arrays.update(kept_score=batch.scores, kept_source=batch.sources)
            rows, mine, weight = plan.ranks.share(batch, len(batch))
            shown = {name: array[rows] for name, array in arrays.items()}
            found: Tensor = objective.loss(model(**tensors(shown, model.input_names)), mine) * weight
            return found

        def epoch(number: int) -> Counted[Tensor]:
            return Counted(objective.epoch(rng)).through(loss)

        fitted = FittedRanker(model)
        # Without lists there is nothing to learn: the initial model keeps retrieval's order.
        epochs = settings.max_epochs if len(data.lists) else 0
        course = descend(settings, model, fitted, epoch, plan, max_epochs=epochs, rng=rng)
    return fitted, course
