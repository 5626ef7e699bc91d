"""The contract of an engine, and the table of engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from ..kinds import Kind, Kinds
from ..spec import Array, Arrays
from ..verify.compare import Tolerance


class Engine(Protocol):
    """An opened dense model."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that :meth:`run` reads."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that :meth:`run` gives."""
        ...

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Compute the outputs for all rows at once. Tensors that are no input are ignored."""
        ...

    def close(self) -> None:
        """Give back what it holds: memory of a device above all. It runs no more."""
        ...


@runtime_checkable
class EngineKind(Protocol):
    """A kind of engine: what its row says, and how it is opened.

    The life of every engine: ``open`` loads a file and takes the device's memory, after it has compared what
    the file is bound to with this machine; ``run`` computes on named arrays; ``close`` gives everything back.
    """

    #: The model's file in its artefact.
    file: ClassVar[str]
    #: How far its outputs may lie from the torch module's.
    tolerance: ClassVar[Tolerance]
    #: Where its arrays live: ``cpu`` or ``cuda``.
    device: ClassVar[str]
    #: Triton's backend for it in the staged layout; None runs it in the Python process always.
    backend: ClassVar[str | None]
    #: ``module:function`` that makes its file from a torch module; found by name, since it needs torch.
    maker: ClassVar[str]

    @staticmethod
    def open(file: Path, outputs: Sequence[str], *, threads: int) -> Engine:
        """Open a model file.

        Parameters
        ----------
        file
            What the maker wrote.
        outputs
            The outputs that the stage has.
        threads
            Threads within one operator.

        Raises
        ------
        ArtefactCorrupt
            The file is not such a model.
        EngineMismatch, EngineNotBuilt
            It is compiled for another device or library, or not built yet.
        DeviceUnavailable
            The device is not there, or has too little memory.
        """
        ...


@runtime_checkable
class BuiltKind(EngineKind, Protocol):
    """A kind whose file is built from a graph by ``build``: where it will run, or already at export."""

    #: Row of the engine that runs the same graph, from the same artefact, where the built file can't run.
    stand_in: ClassVar[str]
    #: Files of the artefact that a build alone reads: a built copy goes without them.
    build_reads: ClassVar[tuple[str, ...]]

    @classmethod
    def absent(cls, file: Path) -> str | None:
        """Return why the file can't run here though nothing is wrong with the release, or None."""
        ...

    @classmethod
    def build(
        cls, folder: Path, cache: Path | None = None, *, refittable: bool = False, old: Path | None = None
    ) -> str:
        """Build the file of an artefact, and return the result in a few words.

        Parameters
        ----------
        folder
            The artefact's folder, with whatever the maker wrote.
        cache
            A folder that keeps built files, by device and library version; None keeps nothing.
        refittable
            Whether the file must be able to take other weights later.
        old
            The artefact's folder in a release that may differ only in its weights: its file is reused with
            the new weights, if it fits.
        """
        ...


@runtime_checkable
class OnStream(EngineKind, Protocol):
    """A kind whose ``open`` takes ``stream``: the CUDA stream, as a number, that its engine shall work on."""

    takes_stream: ClassVar[bool]


@runtime_checkable
class TakesTensors(Engine, Protocol):
    """An opened model that reads and gives torch tensors on its device, without a copy to the host."""

    def run_tensors(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the outputs, as :meth:`Engine.run` does, on the current stream; nothing is waited for."""
        ...


@runtime_checkable
class NeedsTools(Protocol):
    """A kind whose maker needs more than its package installs: a compiler, a library, a device."""

    @classmethod
    def unmakeable(cls) -> str | None:
        """Return why an export on this machine can't make it and what to do, or None."""
        ...


@runtime_checkable
class FromOnnx(Protocol):
    """A kind whose maker accepts ONNX models too, not only torch modules."""

    from_onnx: ClassVar[bool]


@runtime_checkable
class Lowered(EngineKind, Protocol):
    """A kind whose maker may write another form of a model beside its file, which runs where possible."""

    @classmethod
    def form(cls, file: Path) -> str | None:
        """Return what the form beside a model's file is called, or None."""
        ...

    @classmethod
    def unlowered(cls, file: Path) -> str | None:
        """Return in words why the maker wrote no such form, or None if it did or was not to."""
        ...


@runtime_checkable
class Reduced(Protocol):
    """A kind that computes a ranker in less than float32."""

    #: Row of the same engine in float32: it takes the query models.
    full: ClassVar[str]


@runtime_checkable
class Calibrated(Protocol):
    """A kind whose ranker is finished only with sample requests, which show the range of each number."""

    #: ``module:function`` that finishes what the maker wrote.
    calibrator: ClassVar[str]


#: Every kind of engine.
ENGINES: Kinds[EngineKind] = Kinds(
    "engine",
    {
        "onnx": Kind("tiercel_serving.engines.onnx:Onnx", extra="serving"),
        "onnx-cuda": Kind("tiercel_serving.engines.onnx:OnnxCuda", extra="serving"),
        "aoti": Kind("tiercel_serving.engines.aoti:Aoti", extra="aoti"),
        "aoti-cuda": Kind("tiercel_serving.engines.aoti:AotiCuda", extra="aoti"),
        "tensorrt": Kind("tiercel_serving.engines.tensorrt:TensorRT", extra="tensorrt"),
        "tensorrt-fp16": Kind("tiercel_serving.engines.tensorrt:TensorRTHalf", extra="tensorrt"),
        "tensorrt-bf16": Kind("tiercel_serving.engines.tensorrt:TensorRTBrain", extra="tensorrt"),
        "tensorrt-int8": Kind("tiercel_serving.engines.tensorrt:TensorRTInt8", extra="tensorrt"),
        "tensorrt-fp8": Kind("tiercel_serving.engines.tensorrt:TensorRTFP8", extra="tensorrt"),
        "tensorrt-rtx": Kind("tiercel_serving.engines.tensorrt:TensorRTRTX", extra="tensorrt-rtx"),
        "tensorrt-rtx-fp16": Kind("tiercel_serving.engines.tensorrt:TensorRTRTXHalf", extra="tensorrt-rtx"),
        "tensorrt-rtx-bf16": Kind("tiercel_serving.engines.tensorrt:TensorRTRTXBrain", extra="tensorrt-rtx"),
        "tensorrt-rtx-int8": Kind("tiercel_serving.engines.tensorrt:TensorRTRTXInt8", extra="tensorrt-rtx"),
        "tensorrt-rtx-fp8": Kind("tiercel_serving.engines.tensorrt:TensorRTRTXFP8", extra="tensorrt-rtx"),
    },
)


def query_engine(engine: str) -> str:
    """Return the row for query models if the ranker uses ``engine``.

    Queries, which find candidates, are computed in full precision.
    """
    kind: Any = ENGINES.find(engine)
    return str(kind.full) if isinstance(kind, Reduced) else engine


def form_of(engine: str, folder: Path) -> str | None:
    """Return what else than its engine's file an artefact may be run as, or None; see :class:`Lowered`."""
    kind: Any = ENGINES.find(engine)
    return kind.form(folder / kind.file) if isinstance(kind, Lowered) else None


def unlowered_of(engine: str, folder: Path) -> str | None:
    """Return why an artefact may be run as nothing else, where its engine has such forms; or None."""
    kind: Any = ENGINES.find(engine)
    return kind.unlowered(folder / kind.file) if isinstance(kind, Lowered) else None
