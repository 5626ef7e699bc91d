"""Triton models that consist of one engine in the engine's own Triton backend, without Python.

This project's tests can't load them, because their Triton has only the Python backend. They check the config,
and apply Triton's rules to it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from ..engines.table import ENGINES, EngineKind
from ..release.opened import Release
from ..settings import ServingSettings
from ..spec import StageSpec
from ..stages.specs import QUERY_PREFIX, RANKING

#: Device of an engine → Triton's instance group kind.
_INSTANCES: Mapping[str, str] = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}


def own_backend(release: Release, stages: Sequence[StageSpec]) -> type[EngineKind] | None:
    """Return the engine of a model of these stages if the engine has its own Triton backend, or None."""
    if len(stages) != 1:
        return None
    stage, manifest = stages[0].name, release.manifest
    if stage == RANKING and manifest.settings.kept_buckets:
        return None  # the Python process chooses which of the ranker's engines runs
    if stage == RANKING and manifest.ranking is not None:
        engine = manifest.ranking.engine
    elif stage.startswith(QUERY_PREFIX):
        engine = manifest.queries[stage.removeprefix(QUERY_PREFIX)].engine
    else:
        return None
    kind = ENGINES.find(engine)
    return None if kind.backend is None else kind


def instance_kind(kind: type[EngineKind]) -> str:
    """Return Triton's instance group kind for an engine in its own backend."""
    return _INSTANCES[kind.device]


def engine_config(
    stage: StageSpec, kind: type[EngineKind], settings: ServingSettings, dtypes: Mapping[str, int]
) -> Any:
    """Return the config of an engine in its own backend.

    Parameters
    ----------
    stage
        The stage that the engine computes.
    kind
        The engine.
    settings
        The largest batch, and the number of instances.
    dtypes
        Tensor dtype → Triton data type.
    """
    config = model_config_pb2.ModelConfig(
        name=stage.name,
        backend=kind.backend,
        default_model_filename=kind.file,
        max_batch_size=settings.max_batch_size,
    )
    for tensors, specs in ((config.input, stage.inputs), (config.output, stage.outputs)):
        for spec in specs:
            tensors.add(name=spec.name, data_type=dtypes[spec.dtype], dims=spec.dims)
    config.instance_group.add(kind=instance_kind(kind), count=settings.instances)
    if kind.device == "cuda":
        _add_graphs(config, stage, settings.max_batch_size)
    for batch in batch_sizes(settings.max_batch_size):
        warmup = config.model_warmup.add(name=f"zeros {batch}", batch_size=batch, count=1)
        for spec in stage.inputs:
            entry = warmup.inputs[spec.name]
            entry.data_type, entry.zero_data = dtypes[spec.dtype], True
            entry.dims.extend(spec.dims)
    return config


def batch_sizes(most: int) -> list[int]:
    """Return the batch sizes to capture and warm up: the powers of two up to ``most``, and ``most``."""
    return sorted({min(2**power, most) for power in range(most.bit_length() + 1)})


def _add_graphs(config: Any, stage: StageSpec, most: int) -> None:
    """Configure a CUDA graph for each of :func:`batch_sizes`; batches in between use the next larger one."""
    cuda = config.optimization.cuda
    cuda.graphs = True
    below = 0
    for batch in batch_sizes(most):
        spec = cuda.graph_spec.add(batch_size=batch)
        spec.graph_lower_bound.batch_size = below + 1
        for tensor in stage.inputs:
            spec.input[tensor.name].dim.extend(tensor.dims)
            spec.graph_lower_bound.input[tensor.name].dim.extend(tensor.dims)
        below = batch


def link_engine(release: Release, config: Any, directory: Path) -> None:
    """Link or copy an engine's file from its artefact to where its Triton backend expects it, if built."""
    if not config.default_model_filename:
        return
    name = config.default_model_filename
    file, place = release.path / "artefacts" / config.name / name, directory / config.name / "1" / name
    if not file.is_file():
        return
    place.unlink(missing_ok=True)
    try:
        os.link(file, place)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, place)
