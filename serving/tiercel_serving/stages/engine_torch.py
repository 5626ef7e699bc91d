"""Query stages and ``ranking`` on a device: an engine that takes tensors where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..device.place_torch import Place
from ..engines.table import ENGINES, TakesTensors
from ..release.opened import Release
from ..repository.engine_models import batch_sizes
from ..spec import StageSpec
from .engine import EngineStage, model_of, open_engine


class TensorEngineStage:
    """Run a dense model on tensors of its own device."""

    def __init__(self, name: str, release: Release, engine: TakesTensors) -> None:
        self.spec: StageSpec = release.stages[name]
        self.tensors = frozenset(tensor.name for tensor in self.spec.inputs)
        self._engine = engine

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run the model on tensors ``[B, …]`` of the dtypes in the spec."""
        return self._engine.run_tensors(arrays)

    def warm(self, batches: Sequence[int], place: Place) -> None:
        """Run each of these batches once, on zeros: kernels are chosen and graphs captured now, not later."""
        for batch in batches:
            zeros = (np.zeros((batch, *one.dims), one.numpy_dtype) for one in self.spec.inputs)
            self.run({one.name: place.put(array) for one, array in zip(self.spec.inputs, zeros, strict=True)})

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()


def open_stage(name: str, release: Release, place: Place) -> TensorEngineStage | EngineStage:
    """Return the stage on the device; on the host if its engine takes no tensors, or lives elsewhere."""
    kind = ENGINES.find(model_of(name, release).engine)
    if kind.device != place.device.type:
        return EngineStage(name, release)
    with place.here():
        engine = open_engine(name, release, None if place.stream is None else place.stream.cuda_stream)
    if not isinstance(engine, TakesTensors):
        engine.close()
        return EngineStage(name, release)
    stage = TensorEngineStage(name, release, engine)
    if place.stream is not None:
        with place.here():
            stage.warm(batch_sizes(release.settings.max_batch_size), place)
    return stage
