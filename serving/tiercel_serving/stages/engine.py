"""Query stages and ``ranking``: a dense model in the engine that the manifest names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..engines.buckets import BucketedEngine
from ..engines.table import ENGINES, BuiltKind, Engine, OnStream
from ..errors import ArtefactCorrupt, KindUnavailable
from ..release.manifest import QueryModel, RankingModel
from ..release.opened import Release
from ..spec import Array, Arrays, StageSpec
from .specs import QUERY_PREFIX, RANKING, Tensors, bucket_name, is_ranker


def model_of(name: str, release: Release) -> QueryModel | RankingModel:
    """Return the manifest's entry for an engine's model."""
    if is_ranker(name) and release.manifest.ranking is not None:
        return release.manifest.ranking
    return release.manifest.queries[name.removeprefix(QUERY_PREFIX)]


def engine_names(release: Release) -> list[str]:
    """Return the artefact names of all engines: query stages, the ranker, and its smaller buckets."""
    names = [name for name in release.stages if name.startswith(QUERY_PREFIX)]
    if release.manifest.ranking is not None:
        names += [RANKING, *map(bucket_name, release.settings.kept_buckets)]
    return names


def open_engine(name: str, release: Release, stream: int | None = None) -> Engine:
    """Open the engine of a stage, or one of the ranker's smaller buckets, by name.

    Parameters
    ----------
    name
        A name from :func:`engine_names`. For the ranker's, the result dispatches to smaller buckets.
    release
        The release.
    stream
        The CUDA stream to run on, for engines that take one; None lets the engine choose.

    Raises
    ------
    ArtefactCorrupt
        The file is not such a model, or its inputs differ from those in the manifest.
    EngineNotBuilt, EngineMismatch, DeviceUnavailable
        The engine is not built yet, or does not fit this machine.
    KindUnavailable
        The engine's library is not installed.
    """
    buckets = release.settings.kept_buckets
    if name != RANKING or not buckets:
        return _open_one(name, release, stream)
    pad = release.manifest.catalogue.items
    tensors = Tensors(release.settings, release.manifest.catalogue, release.manifest.packed)
    smaller = {k: _open_one(bucket_name(k), release, stream) for k in buckets}
    return BucketedEngine(_open_one(RANKING, release, stream), smaller, tensors.by_candidate, pad)


def _open_one(name: str, release: Release, stream: int | None) -> Engine:
    spec, model = release.stages[RANKING if is_ranker(name) else name], model_of(name, release)
    outputs = tuple(tensor.name for tensor in spec.outputs)
    try:
        kind: Any = ENGINES.find(model.engine)
        artefact = release.artefact(name, "engine")
        # An engine that is built on the serving machine reports itself that its file is missing.
        later = isinstance(kind, BuiltKind) and artefact.path is not None
        file: Path = artefact.path / kind.file if later else artefact.file(kind.file)
        with ENGINES.using(model.engine):
            options = {"stream": stream} if stream is not None and isinstance(kind, OnStream) else {}
            engine: Engine = kind.open(file, outputs, threads=release.settings.engine_threads, **options)
    except KindUnavailable as error:
        raise KindUnavailable(f"stage {name}: {error}") from error
    expected = set(model.inputs)
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
        """Release the engine's resources."""
        self._engine.close()
