"""The targets a release can be compiled for. A target is a row of this table, not an ``if`` elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tiercel_serving.errors import InvalidSettings

#: The layouts in which the same stages can be put into Triton models.
LAYOUTS = ("fused", "staged")


@dataclass(frozen=True)
class Target:
    """What a release's stages run on.

    Parameters
    ----------
    name
        What ``--target`` calls it.
    engine
        The form of the dense models: ``onnx`` runs in ONNX Runtime inside the Python backend.
    instance_kind
        Triton's instance group kind of the stage models.
    fused
        The fused layout: Triton model name → the stages it runs, in the order of the served graph.
    doc
        One line for people.
    """

    name: str
    engine: str
    instance_kind: str
    fused: Mapping[str, tuple[str, ...]]
    doc: str


_ALL_STAGES = (
    "user_features",
    "user_tower",
    "retrieval",
    "filtering",
    "candidate_features",
    "ranking",
    "ordering",
)

#: Target name → what it means.
TARGETS: Mapping[str, Target] = {
    "cpu": Target(
        name="cpu",
        engine="onnx",
        instance_kind="KIND_CPU",
        # No engine leaves the Python process, so nothing forces a hop between stages.
        fused={"pipeline": _ALL_STAGES},
        doc="ONNX Runtime and faiss-cpu in Triton's Python backend",
    ),
}


def find_target(name: str) -> Target:
    """Return the target's row.

    Raises
    ------
    InvalidSettings
        If there is no such target.
    """
    if name not in TARGETS:
        raise InvalidSettings(f"target: expected one of {', '.join(TARGETS)}; came {name!r}")
    return TARGETS[name]


def model_groups(target: Target, layout: str) -> dict[str, tuple[str, ...]]:
    """Return Triton model name → its stages, in the order of the served graph.

    Raises
    ------
    InvalidSettings
        If there is no such layout.
    """
    if layout == "fused":
        return dict(target.fused)
    if layout == "staged":
        return {stage: (stage,) for group in target.fused.values() for stage in group}
    raise InvalidSettings(f"layout: expected one of {', '.join(LAYOUTS)}; came {layout!r}")
