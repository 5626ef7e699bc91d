"""The goal of an export, chosen before any work: target, engine, layout and runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tiercel_serving.engines.table import ENGINES, FromOnnx, NeedsTools
from tiercel_serving.errors import KindUnavailable
from tiercel_serving.repository.targets import find_runner, find_target, model_groups

from ..errors import ExportInputError
from ..forms import ServedForm
from .parts import Goal


def make_goal(
    name: str,
    target: str,
    engine: str | None,
    layout: str,
    runner: str,
    origin: Mapping[str, Mapping[str, Any]],
    tasks: Sequence[str],
) -> Goal:
    """Return the goal; refuse a target, engine, layout or runner that does not exist.

    With ``engine`` None, the best of the target's engines that this machine can make is chosen.

    Raises
    ------
    InvalidSettings
        There is no such target, layout or runner.
    KindUnavailable
        There is no such engine.
    """
    engines = _engines(target, engine)
    chosen = next((name for name in engines if unmakeable(name) is None), engines[0])
    model_groups(layout, ())
    find_runner(runner)
    return Goal(name, target, chosen, layout, runner, origin, tuple(tasks))


def _engines(target: str, engine: str | None) -> tuple[str, ...]:
    """Return the acceptable engines, best first."""
    row = find_target(target)
    return (row.engine, *row.instead) if engine is None else (engine,)


def refuse_unmakeable(target: str, engine: str | None) -> None:
    """Refuse a target if this machine can make none of its engines."""
    reasons = [unmakeable(name) for name in _engines(target, engine)]
    if None not in reasons:
        told = "; and ".join(reason for reason in reasons if reason is not None)
        raise KindUnavailable(f"target {target!r} can't be made on this machine: {told}")


def check_onnx(engine: str, retrieval: Mapping[str, ServedForm], ranker: object) -> None:
    """Refuse ONNX models if the engine accepts only torch modules."""
    given = {
        f"retrieval[{source!r}].query": getattr(form, "query", None) for source, form in retrieval.items()
    }
    for what, model in {**given, "ranker": ranker}.items():
        if model is None or isinstance(model, torch.nn.Module) or isinstance(ENGINES.find(engine), FromOnnx):
            continue
        taking = [name for name in ENGINES if isinstance(ENGINES.find(name), FromOnnx)]
        raise ExportInputError(
            f"{what}: it is not a torch module, and the engine {engine!r} needs torch modules; use "
            f"one of {', '.join(taking)}"
        )


def unmakeable(engine: str) -> str | None:
    """Return why this machine can't make an engine, or None if it can."""
    kind: Any = ENGINES.find(engine)
    return kind.unmakeable() if isinstance(kind, NeedsTools) else None
