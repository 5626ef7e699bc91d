"""``onnx``: an ONNX file in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import onnxruntime

from ..errors import ArtefactCorrupt
from ..spec import Array, Arrays
from ..verify.compare import ENGINE, Tolerance


class Onnx:
    """ONNX Runtime's CPU provider, in the Python process."""

    file: ClassVar[str] = "model.onnx"
    tolerance: ClassVar[Tolerance] = ENGINE
    device: ClassVar[str] = "cpu"
    backend: ClassVar[str | None] = None
    maker: ClassVar[str] = "tiercel_export.models.onnx:make_onnx"

    @staticmethod
    def open(file: Path, outputs: Sequence[str], *, threads: int = 1) -> OnnxEngine:
        """Open an ONNX file; see :class:`~.table.EngineKind`."""
        return OnnxEngine(file, outputs, threads)


class OnnxEngine:
    """One ONNX session.

    Parameters
    ----------
    file
        The ONNX file.
    outputs
        The outputs to ask for.
    threads
        Threads within one operator.
    """

    def __init__(self, file: Path, outputs: Sequence[str], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait would take the cores from the other stages.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ArtefactCorrupt(f"{file}: not a model that ONNX Runtime reads ({error})") from error
        self.inputs = tuple(put.name for put in self._session.get_inputs())
        self.outputs = tuple(outputs)
        self._wanted = list(outputs)
        missing = set(outputs) - {put.name for put in self._session.get_outputs()}
        if missing:
            raise ArtefactCorrupt(f"{file}: expected the outputs {sorted(missing)}; export again")

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the model on tensors ``[B, …]``."""
        feed = {name: arrays[name] for name in self.inputs}
        return dict(zip(self._wanted, self._session.run(self._wanted, feed), strict=True))
