"""Solve weights of reorder steps for a constraint, over candidates that users of the release get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np

from tiercel_serving.reorder.table import Solved
from tiercel_serving.sources.table import Made
from tiercel_serving.spec import Array
from tiercel_serving.verify.reference import keep, plain_items, retrieve

from .golden_answers import rank
from .parts import Inputs
from .uncompiled import Uncompiled

#: Number of users whose candidates are used.
USERS = 200


def solve_weights(
    inputs: Inputs, uncompiled: Uncompiled, made: Mapping[str, Made]
) -> tuple[Inputs, Uncompiled]:
    """Return ``inputs`` and ``uncompiled`` with the weights of their reorder steps solved, where needed.

    Parameters
    ----------
    inputs, uncompiled
        The results of the export's earlier steps.
    made
        Source → its artefact.
    """
    settings = uncompiled.settings
    if not any(isinstance(step, Solved) for step in settings.reorder) or uncompiled.models.ranker is None:
        return inputs, uncompiled
    random = np.random.default_rng(inputs.seed)
    users = uncompiled.nobody
    chosen = random.choice(users, min(USERS, users), replace=False) if users else np.zeros(0, np.int64)
    lists = [_tasks(uncompiled, made, int(row)) for row in chosen]
    if not any(len(one) for one in lists):
        inputs.notes.append("reorder: there are no users to solve weights with; they are as they were given")
    steps = tuple(
        step.solved(lists, settings.k_default) if isinstance(step, Solved) else step
        for step in settings.reorder
    )
    settings = msgspec.structs.replace(settings, reorder=steps)
    return replace(inputs, settings=settings), replace(uncompiled, settings=settings)


def _tasks(uncompiled: Uncompiled, made: Mapping[str, Made], row: int) -> Array:
    """Return the ranker's scores of a user's kept candidates, ``[n, T]`` float32."""
    settings = uncompiled.settings
    tensors = uncompiled.with_queries(uncompiled.users([row]))
    user = {name: tensor[0] for name, tensor in tensors.items()}
    sources = [made[kind.name].arrays for kind in settings.sources]
    found = retrieve(settings, sources, user, uncompiled.allowed(row))
    raw = uncompiled.tables.raw_items
    item_of = plain_items({name: raw[name] for name in settings.raw_columns()})
    tasks = rank(uncompiled, tensors, keep(settings, item_of, found.candidates).candidates) or []
    return np.array(tasks, np.float32)
