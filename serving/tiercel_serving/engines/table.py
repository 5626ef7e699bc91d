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
        """Names of the tensors that :meth:`run` returns."""
        ...

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Compute the outputs for the whole batch; arrays that are not inputs are ignored."""
        ...

    def close(self) -> None:
        """Release what it holds, device memory above all. It can't run afterwards."""
        ...


@runtime_checkable
class EngineKind(Protocol):
    """A kind of engine: the properties of its row, and how it is opened.

    ``open`` compares this machine with the one that the file is bound to, then loads the file and allocates
    device memory. ``run`` computes on named arrays. ``close`` releases everything.
    """

    #: The name of the model's file in its artefact.
    file: ClassVar[str]
    #: How far its outputs may differ from the torch module's.
    tolerance: ClassVar[Tolerance]
    #: Where its arrays live: ``cpu`` or ``cuda``.
    device: ClassVar[str]
    #: Triton's backend for it in the staged layout; None always runs it in the Python process.
    backend: ClassVar[str | None]
    #: ``module:function`` that makes its file from a torch module; imported by name, since it needs torch.
    maker: ClassVar[str]

    @staticmethod
    def open(file: Path, outputs: Sequence[str], *, threads: int) -> Engine:
        """Open a model file.

        Parameters
        ----------
        file
            The file that the maker wrote.
        outputs
            The outputs that the stage has.
        threads
            Threads within one operator.

        Raises
        ------
        ArtefactCorrupt
            The file is not a model of this kind, or lacks one of the outputs.
        EngineMismatch, EngineNotBuilt
            It is compiled for another device or library, or not built yet.
        DeviceUnavailable
            The device is missing, or has too little memory.
        """
        ...


@runtime_checkable
class BuiltKind(EngineKind, Protocol):
    """A kind whose file is built from a graph by ``build``, on the serving machine or already at export."""

    #: Row of the engine that runs the same graph, from the same artefact, if the built file can't run.
    stand_in: ClassVar[str]
    #: Files of the artefact that only a build reads; a built copy omits them.
    build_reads: ClassVar[tuple[str, ...]]

    @classmethod
    def absent(cls, file: Path) -> str | None:
        """Return why the file can't run here although the release is intact, or None."""
        ...

    @classmethod
    def build(
        cls, folder: Path, cache: Path | None = None, *, refittable: bool = False, old: Path | None = None
    ) -> str:
        """Build the file of an artefact, and return a short description of the result.

        Parameters
        ----------
        folder
            The artefact's folder, with the files that the maker wrote.
        cache
            A folder that keeps built files, by device and library version; None keeps nothing.
        refittable
            Whether the file must accept other weights later.
        old
            The artefact's folder in an earlier release. If the graphs differ in their weights only, its file
            is reused with the new weights.
        """
        ...


@runtime_checkable
class OnStream(EngineKind, Protocol):
    """A kind whose ``open`` takes ``stream``: the handle of the CUDA stream that its engine works on."""

    takes_stream: ClassVar[bool]


@runtime_checkable
class TakesTensors(Engine, Protocol):
    """An opened model that reads and returns torch tensors on its device, without a copy to the host."""

    def run_tensors(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the outputs as :meth:`Engine.run` does, on the current stream, without synchronising."""
        ...


@runtime_checkable
class NeedsTools(Protocol):
    """A kind whose maker needs more than its package installs, such as a compiler, a library or a device."""

    @classmethod
    def unmakeable(cls) -> str | None:
        """Return why an export on this machine can't make it and what to do, or None."""
        ...


@runtime_checkable
class FromOnnx(Protocol):
    """A kind whose maker accepts ONNX models as well as torch modules."""

    from_onnx: ClassVar[bool]


@runtime_checkable
class Lowered(EngineKind, Protocol):
    """A kind whose maker may write a second form of a model beside its file, preferred where it runs."""

    @classmethod
    def form(cls, file: Path) -> str | None:
        """Return the name of the second form beside a model's file, or None if there is none."""
        ...

    @classmethod
    def unlowered(cls, file: Path) -> str | None:
        """Return in words why the maker wrote no such form, or None if it did or was not to."""
        ...


@runtime_checkable
class Reduced(Protocol):
    """A kind that computes a ranker in a lower precision than float32."""

    #: Row of the same engine in float32, which runs the query models.
    full: ClassVar[str]


@runtime_checkable
class Calibrated(Protocol):
    """A kind whose ranker is quantised with sample requests, which show the range of each tensor."""

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
    """Return the engine's row for query models if the ranker uses ``engine``.

    Query vectors decide which candidates are found, so they are computed in float32.
    """
    kind: Any = ENGINES.find(engine)
    return str(kind.full) if isinstance(kind, Reduced) else engine


def form_of(engine: str, folder: Path) -> str | None:
    """Return the name of the second form that an artefact may run in, or None; see :class:`Lowered`."""
    kind: Any = ENGINES.find(engine)
    return kind.form(folder / kind.file) if isinstance(kind, Lowered) else None


def unlowered_of(engine: str, folder: Path) -> str | None:
    """Return why an artefact may be run as nothing else, where its engine has such forms; or None."""
    kind: Any = ENGINES.find(engine)
    return kind.unlowered(folder / kind.file) if isinstance(kind, Lowered) else None
