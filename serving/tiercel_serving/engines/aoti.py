"""``aoti`` and ``aoti-cuda``: a package that AOTInductor compiled, run without the model's Python code.

The package is machine code. It is bound to the version of torch and to the device that it was compiled for,
and both are compared before it is opened: another version reads its arrays wrongly or ends the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import ArtefactCorrupt, DeviceUnavailable
from ..spec import Array, Arrays
from ..verify.compare import ENGINE, Tolerance
from .bound import Bound

if TYPE_CHECKING:
    import torch

#: The model's name inside the package; torch's own default.
MODEL = "model"


class Aoti:
    """AOTInductor's package on the CPU, in the Python process."""

    file: ClassVar[str] = "model.pt2"
    tolerance: ClassVar[Tolerance] = ENGINE
    device: ClassVar[str] = "cpu"
    backend: ClassVar[str | None] = None
    maker: ClassVar[str] = "tiercel_export.models.aoti:make_aoti"

    @classmethod
    def unmakeable(cls) -> str | None:
        """Return why an export can't make it on this machine; see :class:`~.table.NeedsTools`."""
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            device_name(cls.device)
            get_cpp_compiler()
        except DeviceUnavailable as error:
            return str(error)
        except (InvalidCxxCompiler, RuntimeError, OSError) as error:
            said = " ".join(str(error).split()[:12])
            return (
                f"engine 'aoti' compiles C++, and no compiler is found ({said}); install g++ (Debian: "
                "apt-get install g++), name one in CXX, or take --engine onnx"
            )
        return None

    @classmethod
    def open(cls, file: Path, outputs: Sequence[str], *, threads: int = 1) -> AotiEngine:
        """Open a package; see :class:`~.table.EngineKind`.

        Raises
        ------
        EngineMismatch
            It was compiled by another torch, or for another device.
        """
        return AotiEngine(file, outputs, threads, cls.device)


class AotiCuda(Aoti):
    """The same on a GPU. The package is compiled on the machine that will run it."""

    device: ClassVar[str] = "cuda"
    maker: ClassVar[str] = "tiercel_export.models.aoti:make_aoti_cuda"


def device_name(device: str) -> str:
    """Return a device of this machine as packages are bound to it: a CPU's instructions, or a GPU's model.

    Raises
    ------
    DeviceUnavailable
        There is no GPU that torch can use.
    """
    import torch

    if device == "cpu":
        import platform

        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if not torch.cuda.is_available():
        raise DeviceUnavailable(
            f"engine 'aoti-cuda': torch {torch.__version__} finds no GPU; use a machine with an NVIDIA GPU, "
            "a driver "
            "for its CUDA and a CUDA build of torch, or take --engine aoti"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"


class AotiEngine:
    """One loaded package.

    Parameters
    ----------
    file
        The package.
    outputs
        The outputs that the stage has.
    threads
        Threads within one kernel; torch has one number for the whole process.
    device
        ``cpu`` or ``cuda``.
    """

    def __init__(self, file: Path, outputs: Sequence[str], threads: int, device: str) -> None:
        import torch

        bound = Bound.read(file)
        remedy = "export again with this version, on such a machine"
        bound.check(file, tuple(outputs), str(torch.__version__), device_name(device), remedy)
        torch.set_num_threads(threads)
        self._loader = load_package(file, device)
        self._run: Any = self._loader.run
        if device == "cuda":
            from .graphs_torch import GraphedRun

            self._run = GraphedRun(self._loader.run)
        self._device = torch.device(device)
        self._dtypes = {name: np.dtype(dtype) for name, dtype in bound.inputs.items()}
        self.inputs, self.outputs = tuple(bound.inputs), tuple(outputs)
        self._places = [(name, bound.outputs.index(name)) for name in outputs]

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the model on tensors ``[B, …]``."""
        results = self._loader.run([self._tensor(arrays[name], self._dtypes[name]) for name in self.inputs])
        return {name: results[place].cpu().numpy() for name, place in self._places}

    def run_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the model on tensors of its device, and leave the results there."""
        results = self._run([tensors[name].contiguous() for name in self.inputs])
        return {name: results[place] for name, place in self._places}

    def _tensor(self, array: Array, dtype: np.dtype[Any]) -> torch.Tensor:
        import torch

        # The package checks neither dtype nor strides, and would read other numbers; torch warns of what it
        # must not write to.
        fitting = np.require(array, dtype, ["C", "W"])
        return torch.from_numpy(fitting).to(self._device)

    def close(self) -> None:
        """Unload the package."""
        del self._loader, self._run


def load_package(file: Path, device: str) -> Any:
    """Return what runs a package.

    Raises
    ------
    ArtefactCorrupt
        It is none, or this machine can't unpack it.
    """
    import torch

    index = torch.cuda.current_device() if device == "cuda" else -1
    try:
        # The loader itself: the callable that torch wraps around it costs 60 µs a call.
        # Without its own waiting for threads, which a capture as a CUDA graph does not allow.
        return torch._C._aoti.AOTIModelPackageLoader(str(file), MODEL, device == "cuda", 1, index)
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        raise ArtefactCorrupt(
            f"{file}: not a package that torch {torch.__version__} reads ({' '.join(first)}); export again. "
            "If the "
            "machine is said to be at fault: torch unpacks it into the folder for temporary files (TMPDIR), "
            "which must be "
            "writable and allow execution"
        ) from error
