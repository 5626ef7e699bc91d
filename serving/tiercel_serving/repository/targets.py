"""The targets that a release can be compiled for, a row each, and the layouts and runners of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InvalidSettings
from ..problems import choose

#: The layouts in which stages can be grouped into Triton models.
FUSED, STAGED = "fused", "staged"
LAYOUTS = (FUSED, STAGED)

#: The Triton model that runs every stage in the fused layout.
FUSED_MODEL = "chain"


@dataclass(frozen=True)
class Runner:
    """What runs stages inside Triton.

    Parameters
    ----------
    backend
        Triton's name of the backend.
    in_process
        Whether it runs in the server's process. A second model of the same stages then costs little memory,
        so in the fused layout ``recommend`` and ``recommend_explain`` are two such models. If each model is
        a process, they are ensembles over one model.
    doc
        A description in one line.
    """

    backend: str
    in_process: bool
    doc: str


#: Every runner by its name.
RUNNERS: Mapping[str, Runner] = {
    "python": Runner("python", False, "Triton's Python backend, a process for each model instance"),
    "tiercel": Runner("tiercel", True, "Tiercel's own backend, in the server's process"),
}


@dataclass(frozen=True)
class Target:
    """What a release's stages run on.

    Parameters
    ----------
    engine
        A row of :data:`~tiercel_serving.engines.table.ENGINES`, the engine of the dense models unless the
        export names another.
    instance_kind
        Triton's instance group kind of the models that run stages in Python. That of an engine in its own
        backend depends on the engine's device.
    doc
        A description in one line.
    device
        The device (``cpu`` or ``cuda``) of the stages that have an implementation in torch; None runs all
        stages on the host in NumPy, without torch.
    instead
        Rows of engines to use, in order, if the export can't make ``engine`` on its machine.
    stand_in
        A target with the same stages on a device that every machine has; it is verified instead if this
        target's device is missing.
    """

    engine: str
    instance_kind: str
    doc: str
    device: str | None = None
    instead: tuple[str, ...] = ()
    stand_in: str | None = None


#: Every target by its name.
TARGETS: Mapping[str, Target] = {
    "cpu": Target("onnx", "KIND_CPU", "ONNX Runtime and faiss-cpu in Triton's Python backend"),
    "gpu": Target(
        "aoti-cuda",
        "KIND_GPU",
        "every stage on one GPU in one process, tensors kept there",
        device="cuda",
        instead=("onnx-cuda",),
        stand_in="torch",
    ),
    "torch": Target("onnx", "KIND_CPU", "the stages of target gpu on the CPU", device="cpu"),
    "tensorrt": Target("tensorrt", "KIND_CPU", "TensorRT plans, built on the GPU that will run them"),
    "tensorrt-rtx": Target("tensorrt-rtx", "KIND_CPU", "TensorRT-RTX plans, built at export for many GPUs"),
}


def find_target(name: str) -> Target:
    """Return the target's row; InvalidSettings if there is none."""
    if name not in TARGETS:
        raise InvalidSettings(f"target: there is no target {name!r}; {choose(name, TARGETS)}")
    return TARGETS[name]


def find_runner(name: str) -> Runner:
    """Return a runner's row; InvalidSettings if there is no such runner."""
    if name not in RUNNERS:
        raise InvalidSettings(f"runner: there is no runner {name!r}; {choose(name, RUNNERS)}")
    return RUNNERS[name]


def model_groups(layout: str, stages: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return Triton model → its stages, in the graph's order; InvalidSettings for an unknown layout."""
    if layout not in LAYOUTS:
        raise InvalidSettings(f"layout: there is no layout {layout!r}; {choose(layout, LAYOUTS)}")
    if layout == FUSED:
        return {FUSED_MODEL: tuple(stages)}
    return {stage: (stage,) for stage in stages}
