"""Query stages and ``ranking``: a dense model in the engine that the manifest names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..engines.table import ENGINES, BuiltKind, Engine
from ..errors import ArtefactCorrupt, KindUnavailable
from ..release.manifest import QueryModel, RankingModel
from ..release.opened import Release
from ..spec import Array, Arrays, StageSpec
from .specs import QUERY_PREFIX, RANKING


def model_of(name: str, release: Release) -> QueryModel | RankingModel:
    """Return what the manifest says of a stage's model."""
    if name == RANKING and release.manifest.ranking is not None:
        return release.manifest.ranking
    return release.manifest.queries[name.removeprefix(QUERY_PREFIX)]


def open_engine(name: str, release: Release) -> Engine:
    """Open the engine of a stage.

    Raises
    ------
    ArtefactCorrupt
        Its file is no such model, or takes other tensors than the stage has.
    EngineNotBuilt, EngineMismatch, DeviceUnavailable
        It is to be built yet, or is not for this machine.
    KindUnavailable
        The engine's library is not installed.
    """
    spec, model = release.stages[name], model_of(name, release)
    outputs = tuple(tensor.name for tensor in spec.outputs)
    try:
        kind: Any = ENGINES.find(model.engine)
        artefact = release.artefact(name, "engine")
        # What is built later says itself that it is not there yet.
        later = isinstance(kind, BuiltKind) and artefact.path is not None
        file: Path = artefact.path / kind.file if later else artefact.file(kind.file)
        with ENGINES.using(model.engine):
            engine: Engine = kind.open(file, outputs, threads=release.settings.engine_threads)
    except KindUnavailable as error:
        raise KindUnavailable(f"stage {name}: {error}") from error
    expected = {tensor.name for tensor in spec.inputs}
    if set(engine.inputs) != expected:
        raise ArtefactCorrupt(
            f"{file}: expected the inputs {sorted(expected)}, found {sorted(engine.inputs)}; export again"
        )
    return engine


class EngineStage:
    """Run one dense model whose inputs and outputs carry the names of the stage's tensors."""

    def __init__(self, name: str, release: Release) -> None:
        self.spec: StageSpec = release.stages[name]
        self._engine = open_engine(name, release)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the model on tensors ``[B, …]`` of the dtypes in the spec."""
        return self._engine.run(arrays)

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()
