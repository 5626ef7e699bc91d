"""The contract of an engine, and the table of engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

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


@runtime_checkable
class EngineKind(Protocol):
    """A kind of engine: what its row says, and how it is opened."""

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
        """
        ...


#: Every kind of engine.
ENGINES: Kinds[EngineKind] = Kinds(
    "engine",
    {
        "onnx": Kind("tiercel_serving.engines.onnx:Onnx", extra="serving"),
    },
)
