"""``onnx`` and ``onnx-cuda``: an ONNX file in ONNX Runtime, on the CPU or a GPU, or as loops in C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnxruntime

from ..errors import ArtefactCorrupt, DeviceUnavailable
from ..spec import Array, Arrays
from ..verify.compare import ENGINE, Tolerance
from .bound import check_outputs
from .loops import listed_beside, open_loops, refused_beside

if TYPE_CHECKING:
    import torch

    from .table import Engine


class Onnx:
    """ONNX Runtime's CPU provider, in the Python process, or the loops beside the file (:mod:`.loops`)."""

    file: ClassVar[str] = "model.onnx"
    tolerance: ClassVar[Tolerance] = ENGINE
    device: ClassVar[str] = "cpu"
    backend: ClassVar[str | None] = None
    maker: ClassVar[str] = "tiercel_export.models.onnx:make_onnx"
    from_onnx: ClassVar[bool] = True

    @classmethod
    def open(cls, file: Path, outputs: Sequence[str], *, threads: int = 1) -> Engine:
        """Open an ONNX file; see :class:`~.table.EngineKind`."""
        # The loops are single-threaded.
        loops = open_loops(file, outputs) if threads == 1 else None
        return OnnxEngine(file, outputs, threads, PROVIDERS[cls.device]) if loops is None else loops

    @classmethod
    def form(cls, file: Path) -> str | None:
        """Return "loops" if the export wrote them beside the file; see :class:`~.table.Lowered`."""
        return "loops" if listed_beside(file).is_file() else None

    @classmethod
    def unlowered(cls, file: Path) -> str | None:
        """Return why there are no loops; see :class:`~.table.Lowered`."""
        refused = refused_beside(file)
        return f"not as loops: {refused.read_text(encoding='utf-8').strip()}" if refused.is_file() else None


class OnnxCuda(Onnx):
    """ONNX Runtime's CUDA provider, on the file that :class:`Onnx` reads."""

    device: ClassVar[str] = "cuda"
    maker: ClassVar[str] = "tiercel_export.models.onnx:write_onnx"
    takes_stream: ClassVar[bool] = True

    @classmethod
    def open(
        cls, file: Path, outputs: Sequence[str], *, threads: int = 1, stream: int | None = None
    ) -> OnnxEngine:
        """Open an ONNX file, to run on a CUDA stream; see :class:`~.table.OnStream`."""
        _load_cuda()
        return OnnxEngine(file, outputs, threads, on_stream(PROVIDERS[cls.device], stream))

    @classmethod
    def unmakeable(cls) -> str | None:
        """Return why an export can't open it on this machine; see :class:`~.table.NeedsTools`."""
        name, _ = PROVIDERS[cls.device]
        if name in onnxruntime.get_available_providers():
            return None
        return (
            f"engine 'onnx-cuda': this ONNX Runtime {onnxruntime.__version__} has no {name}; install "
            "onnxruntime-gpu in place of onnxruntime"
        )


#: Device → ONNX Runtime's provider, and its options. TF32 would round the factors of every product to a
#: 10-bit mantissa.
PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


def _load_cuda() -> None:
    """Load CUDA's libraries from the wheels beside ONNX Runtime, if they are installed.

    It is not needed if torch is loaded or the system has the libraries. ONNX Runtime offers it from 1.21 on.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        # It prints what it does not find; a session reports by itself what it lacks.
        with redirect_stdout(StringIO()):
            preload()


def on_stream(provider: tuple[str, dict[str, Any]], stream: int | None) -> tuple[str, dict[str, Any]]:
    """Return a row of :data:`PROVIDERS` that works on a CUDA stream; None gives the session its own.

    On a shared stream, work that others enqueued before runs before, without synchronisation.
    """
    name, options = provider
    given = {"has_user_compute_stream": "1", "user_compute_stream": str(stream)}
    return name, options if stream is None else {**options, **given}


#: ONNX Runtime's name of a tensor type → NumPy dtype.
NUMPY_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


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
    provider
        A row of :data:`PROVIDERS`.

    Raises
    ------
    ArtefactCorrupt
        The file is not a model, or lacks one of the outputs.
    DeviceUnavailable
        This ONNX Runtime lacks the provider, or the device is missing or out of memory.
    """

    def __init__(
        self,
        file: Path,
        outputs: Sequence[str],
        threads: int,
        provider: tuple[str, dict[str, Any]] = PROVIDERS["cpu"],
    ) -> None:
        name, provider_options = provider
        if name not in onnxruntime.get_available_providers():
            raise DeviceUnavailable(
                f"{file}: this ONNX Runtime {onnxruntime.__version__} has no {name}; install onnxruntime-gpu "
                "in place of onnxruntime, or export for the CPU"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait would take cores from the other stages.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=[(name, provider_options)]
            )
        except Exception as error:
            if "out of memory" in str(error) or "Failed to allocate" in str(error):
                raise DeviceUnavailable(
                    f"{file}: memory is full ({' '.join(str(error).split()[:20])}); stop what else runs "
                    "there, lower the number of instances, or take a larger machine"
                ) from error
            raise ArtefactCorrupt(f"{file}: not a model that ONNX Runtime reads ({error})") from error
        if self._session.get_providers()[0] != name:
            # ONNX Runtime falls back to the CPU, and reports it only in its log.
            raise DeviceUnavailable(
                f"{file}: ONNX Runtime found no device for {name}; run it on a machine with an NVIDIA GPU "
                "and its driver, or export for the CPU"
            )
        self.inputs = tuple(put.name for put in self._session.get_inputs())
        self.outputs = tuple(outputs)
        self._wanted = list(outputs)
        # The C++ session that the session's own `run` calls. It skips checks in Python that a stage's tensors
        # always pass, and that take as long as a small model.
        self._call = getattr(self._session, "_sess", self._session).run
        # On the caller's stream, later work is ordered without synchronisation.
        self._unwaited: Any = None
        if "user_compute_stream" in provider_options:
            self._unwaited = onnxruntime.RunOptions()
            self._unwaited.add_run_config_entry("disable_synchronize_execution_providers", "1")
        there = [*self._session.get_inputs(), *self._session.get_outputs()]
        check_outputs(file, self.outputs, tuple(put.name for put in self._session.get_outputs()))
        self._dtypes = {put.name: NUMPY_TYPES[put.type] for put in there if put.type in NUMPY_TYPES}
        self._dims = {put.name: tuple(put.shape[1:]) for put in there}

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the model on tensors ``[B, …]``."""
        feed = {name: arrays[name] for name in self.inputs}
        return dict(zip(self._wanted, self._call(self._wanted, feed, None), strict=True))

    def run_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the model on tensors of its device by IO binding, without copies."""
        import torch

        binding, device = self._session.io_binding(), tensors[self.inputs[0]].device
        kind, number = device.type, device.index or 0
        # Bound tensors must outlive the run.
        given = {name: tensors[name].contiguous() for name in self.inputs}
        for name, tensor in given.items():
            dtype = self._dtypes[name]
            binding.bind_input(name, kind, number, dtype, tuple(tensor.shape), tensor.data_ptr())
        batch, made = len(given[self.inputs[0]]), {}
        for name in self._wanted:
            dtype, dims = self._dtypes[name], self._dims[name]
            dtype_there = torch.from_numpy(np.empty(0, dtype)).dtype
            out = made[name] = torch.empty((batch, *dims), dtype=dtype_there, device=device)
            binding.bind_output(name, kind, number, dtype, tuple(out.shape), out.data_ptr())
        self._session.run_with_iobinding(binding, self._unwaited)
        return made

    def close(self) -> None:
        """Release the session; a second call does nothing."""
        for held in ("_call", "_session"):
            self.__dict__.pop(held, None)
