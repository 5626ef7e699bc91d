"""Query stages and ``ranking`` on a device: an engine that takes tensors without copying them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..device.place_torch import Place
from ..engines.table import ENGINES, TakesTensors
from ..release.opened import Release
from ..spec import StageSpec
from .engine import EngineStage, model_of, open_engine


class TensorEngineStage:
    """Run a dense model on tensors on its own device."""

    def __init__(self, name: str, release: Release, engine: TakesTensors) -> None:
        self.spec: StageSpec = release.stages[name]
        self.tensors = frozenset(tensor.name for tensor in self.spec.inputs)
        self._engine = engine

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run the model on tensors ``[B, …]`` of the dtypes in the spec."""
        return self._engine.run_tensors(arrays)

    def close(self) -> None:
        """Release the engine's resources."""
        self._engine.close()


def open_stage(name: str, release: Release, place: Place) -> TensorEngineStage | EngineStage:
    """Return the stage on the device; on the host if its engine takes no tensors or has another device."""
    kind = ENGINES.find(model_of(name, release).engine)
    if kind.device != place.device.type:
        return EngineStage(name, release)
    with place.here():
        engine = open_engine(name, release, None if place.stream is None else place.stream.cuda_stream)
    if not isinstance(engine, TakesTensors):
        engine.close()
        return EngineStage(name, release)
    return TensorEngineStage(name, release, engine)
