"""Where each stage runs: the Triton models of a layout, the hops between them, and copies to and from a GPU.

The placement has the groups of stages, and the tensors between them, that :mod:`.graph` writes. A *hop* is
the tensors that the server passes from one Triton model to another, from the request, or to the answer.
Stages within one model pass arrays on without a hop. A *copy* moves tensors between the host and a GPU. An
engine on another device than its neighbours costs one in each direction, in every layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import msgspec

from ..engines.table import ENGINES, query_engine
from ..release.manifest import Manifest
from ..release.opened import Release
from ..reorder.table import REORDER
from ..spec import StageSpec, TensorSpec, model_inputs
from ..stages.engine import model_of
from ..stages.specs import ORDERING, QUERY_PREFIX, RANKING, RETRIEVAL
from ..stages.table import row_of
from .engine_models import instance_kind, own_backend
from .graph import PROPENSITY, PYTHON, RECOMMEND_OUTPUTS, graph_stages, model_outputs, needed_steps
from .targets import find_target, model_groups

#: The two ends of the served graph.
REQUEST, ANSWER = "the request", "the answer"

#: The device of arrays, unless a stage moves them.
HOST = "cpu"

#: The outputs of ``recommend``; the last only if a reorder step explores.
_PUBLIC = (*RECOMMEND_OUTPUTS, PROPENSITY)

#: What computes a stage that is not an engine.
NUMPY, TORCH = "NumPy", "torch"

#: The first stage's tensor of excluded rows, which retrieval on a device copies there.
EXCLUDED_ROW = "excluded_row"


@dataclass(frozen=True)
class PlacedStage:
    """A stage: its name, what computes it (an engine's row, NumPy or torch), and its device."""

    name: str
    by: str
    device: str


@dataclass(frozen=True)
class PlacedModel:
    """A Triton model: its backend, its instance group kind, and its stages in order of execution."""

    name: str
    backend: str
    instance_kind: str
    stages: tuple[PlacedStage, ...]


@dataclass(frozen=True)
class Hop:
    """Tensors that pass through the server between two ends: models, the request, or the answer."""

    source: str
    to: str
    tensors: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Copy:
    """Tensors that are copied for a stage from the host to its device (``to_device``), or back."""

    stage: str
    to_device: bool
    tensors: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Placement:
    """The graph of ``recommend`` for one target and layout."""

    name: str
    target: str
    layout: str
    models: tuple[PlacedModel, ...]
    hops: tuple[Hop, ...]
    copies: tuple[Copy, ...]


def place(release: Release) -> Placement:
    """Return where the stages of a release run.

    This reads only the manifest; the artefacts need not exist.
    """
    manifest, specs = release.manifest, release.stages
    groups = {
        model: tuple(specs[stage] for stage in stages)
        for model, stages in model_groups(manifest.layout, graph_stages(release)).items()
    }
    steps = needed_steps(groups, {m: model_outputs(release, groups[m]) for m in groups}, _PUBLIC)
    served = {model: groups[model] for model, _ in steps}
    models = tuple(_model(release, name, stages) for name, stages in served.items())
    copies = tuple(copy for model in models for copy in _copies(release, model, served))
    hops = tuple(_hops(served))
    return Placement(manifest.name, manifest.target, manifest.layout, models, hops, copies)


def placed_otherwise(manifest: Manifest, target: str, layout: str, engine: str | None = None) -> Manifest:
    """Return the manifest as an export for another target and layout would write it.

    Parameters
    ----------
    manifest
        The manifest of any export of the same parts.
    target, layout
        A target and a layout of :mod:`.targets`.
    engine
        The engine of the dense models; None is the target's.
    """
    row = find_target(target).engine if engine is None else engine
    queries = {
        name: msgspec.structs.replace(model, engine=query_engine(row))
        for name, model in manifest.queries.items()
    }
    ranking = manifest.ranking
    if ranking is not None:
        ranking = msgspec.structs.replace(ranking, engine=row)
    return msgspec.structs.replace(manifest, target=target, layout=layout, queries=queries, ranking=ranking)


def bytes_a_user(tensors: Sequence[TensorSpec]) -> int:
    """Return the bytes of the tensors for one user, without those for which :func:`is_sized` is False."""
    return sum(prod(one.dims) * one.numpy_dtype.itemsize for one in tensors if is_sized(one))


def is_sized(tensor: TensorSpec) -> bool:
    """Return whether a tensor has the same size for every user, that is, no text and no variable length."""
    return tensor.dtype != "bytes" and -1 not in tensor.dims


def _model(release: Release, name: str, stages: Sequence[StageSpec]) -> PlacedModel:
    kind = own_backend(release, stages)
    placed = tuple(_stage(release, spec.name) for spec in stages)
    if kind is not None:
        return PlacedModel(name, str(kind.backend), instance_kind(kind), placed)
    return PlacedModel(name, PYTHON, find_target(release.manifest.target).instance_kind, placed)


def _stage(release: Release, name: str) -> PlacedStage:
    if is_engine(name):
        engine = model_of(name, release).engine
        return PlacedStage(name, engine, ENGINES.find(engine).device)
    device = find_target(release.manifest.target).device
    if device is None or row_of(name).on_device is None:
        return PlacedStage(name, NUMPY, HOST)
    steps = [REORDER.name_of(step) for step in release.settings.reorder] if name == ORDERING else []
    without = [step for step in steps if REORDER.rows[step].on_device is None]
    if without:
        return PlacedStage(name, f"{NUMPY}, for {', '.join(without)} runs on the host alone", HOST)
    return PlacedStage(name, TORCH, device)


def is_engine(stage: str) -> bool:
    """Return whether a stage is a dense model in an engine."""
    return stage == RANKING or stage.startswith(QUERY_PREFIX)


def _copies(
    release: Release, model: PlacedModel, served: Mapping[str, Sequence[StageSpec]]
) -> Iterator[Copy]:
    """Yield the copies of a Triton model, in order of execution.

    A model's inputs and outputs are on the host. If the target keeps tensors on a device, each is copied when
    a stage first needs it on the other side. If not, every engine copies its own inputs and outputs.
    """
    keeps = find_target(release.manifest.target).device not in (None, HOST) and model.backend == PYTHON
    host = {tensor.name for tensor in model_inputs(served[model.name])}
    there: set[str] = set()
    for stage, spec in zip(model.stages, served[model.name], strict=True):
        if stage.device == HOST:
            missing = tuple(tensor for tensor in spec.inputs if tensor.name not in host)
            if missing:
                yield Copy(stage.name, False, missing)
            host |= {tensor.name for tensor in (*missing, *spec.outputs)}
            continue
        wanted = spec.inputs if is_engine(stage.name) else _carried(stage.name, spec)
        missing = tuple(tensor for tensor in wanted if tensor.name not in there)
        if missing:
            yield Copy(stage.name, True, missing)
        leaving = spec.outputs if not keeps else _leaving(model.name, spec, served)
        if leaving:
            yield Copy(stage.name, False, leaving)
        host |= {tensor.name for tensor in leaving}
        there |= {tensor.name for tensor in (*wanted, *spec.outputs)} if keeps else set()


def _carried(stage: str, spec: StageSpec) -> tuple[TensorSpec, ...]:
    """Return the host tensors that a stage on a device copies there: retrieval's excluded rows."""
    return tuple(tensor for tensor in spec.inputs if stage == RETRIEVAL and tensor.name == EXCLUDED_ROW)


def _leaving(
    model: str, spec: StageSpec, served: Mapping[str, Sequence[StageSpec]]
) -> tuple[TensorSpec, ...]:
    """Return the outputs of a stage that leave its Triton model, for other models or the answer."""
    others = {tensor.name for name in served if name != model for tensor in model_inputs(served[name])}
    return tuple(tensor for tensor in spec.outputs if tensor.name in others or tensor.name in _PUBLIC)


def _hops(served: Mapping[str, Sequence[StageSpec]]) -> Iterator[Hop]:
    """Yield the hops grouped by destination; a tensor comes from the last model that returned it."""
    made: dict[str, tuple[str, TensorSpec]] = {}
    for model, stages in served.items():
        wanted: dict[str, list[TensorSpec]] = {}
        for tensor in model_inputs(stages):
            source, _ = made.get(tensor.name, (REQUEST, tensor))
            wanted.setdefault(source, []).append(tensor)
        yield from (Hop(source, model, tuple(tensors)) for source, tensors in wanted.items())
        made |= {tensor.name: (model, tensor) for spec in stages for tensor in spec.outputs}
    answered: dict[str, list[TensorSpec]] = {}
    for name in _PUBLIC:
        if name not in made:
            continue
        source, tensor = made[name]
        answered.setdefault(source, []).append(tensor)
    yield from (Hop(source, ANSWER, tuple(tensors)) for source, tensors in answered.items())
