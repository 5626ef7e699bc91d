"""``aoti`` and ``aoti-cuda``: a package that AOTInductor compiled, run without the model's Python code.

The package is machine code. It is bound to the version of torch and to the device that it was compiled for,
and both are compared before it is opened: another version reads its arrays wrongly or ends the process. One
for a GPU is compiled on the machine that has it, of the program that the export wrote.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import ArtefactCorrupt, DeviceUnavailable, EngineNotBuilt, KindUnavailable
from ..spec import Array, Arrays
from ..verify.compare import ENGINE, Tolerance
from .bound import SUFFIX, Bound
from .compiler import PROGRAM, device_name, no_compiler

if TYPE_CHECKING:
    import torch

#: The model's name inside the package; torch's own default.
MODEL = "model"


class _Package:
    """What both rows say."""

    file: ClassVar[str] = "model.pt2"
    tolerance: ClassVar[Tolerance] = ENGINE
    backend: ClassVar[str | None] = None


class Aoti(_Package):
    """AOTInductor's package on the CPU, in the Python process, compiled at export."""

    device: ClassVar[str] = "cpu"
    maker: ClassVar[str] = "tiercel_export.models.aoti:make_aoti"

    @classmethod
    def unmakeable(cls) -> str | None:
        """Return why an export can't make it on this machine; see :class:`~.table.NeedsTools`."""
        return no_compiler(cls.device)

    @classmethod
    def open(cls, file: Path, outputs: Sequence[str], *, threads: int = 1) -> AotiEngine:
        """Open a package; see :class:`~.table.EngineKind`.

        Raises
        ------
        EngineMismatch
            It was compiled by another torch, or for another device.
        """
        return AotiEngine(file, outputs, threads, cls.device)


_BUILD = "run `tiercel build-engines RELEASE` on the machine that will serve it"


class AotiCuda(_Package):
    """The same on a GPU, compiled on the machine that will run it: an export needs no GPU and no compiler."""

    device: ClassVar[str] = "cuda"
    maker: ClassVar[str] = "tiercel_export.models.aoti:make_aoti_cuda"
    stand_in: ClassVar[str] = "onnx"
    build_reads: ClassVar[tuple[str, ...]] = (PROGRAM, PROGRAM + SUFFIX)

    @classmethod
    def open(cls, file: Path, outputs: Sequence[str], *, threads: int = 1) -> AotiEngine:
        """Open a package; see :class:`~.table.EngineKind`.

        Raises
        ------
        EngineNotBuilt
            There is no package yet.
        EngineMismatch, DeviceUnavailable
            It was compiled by another torch or for another GPU, or there is none, or no room on it.
        """
        if not file.is_file():
            raise EngineNotBuilt(f"{file}: not built yet; {_BUILD}")
        return AotiEngine(file, outputs, threads, cls.device, _BUILD)

    @classmethod
    def absent(cls, file: Path) -> str | None:
        """Return why the package can't run here though nothing is wrong with the release, or None."""
        if not file.is_file():
            return f"the package is not built yet; {_BUILD}"
        try:
            device_name(cls.device)
        except (DeviceUnavailable, ModuleNotFoundError) as error:
            return f"the package can't run here: {error}"
        return None

    @classmethod
    def build(
        cls, folder: Path, cache: Path | None = None, *, refittable: bool = False, old: Path | None = None
    ) -> str:
        """Compile the program of a folder, unless that was done; see :class:`~.table.BuiltKind`.

        A package is compiled anew for other weights: it takes seconds, and keeps them among its constants.

        Raises
        ------
        DeviceUnavailable, KindUnavailable
            There is no GPU that torch can use, or no torch.
        EngineBuildFailed, ArtefactCorrupt
            There is no compiler, it failed, or the program was changed after its export.
        """
        try:
            from .aoti_torch import build_package
        except ModuleNotFoundError as error:
            raise KindUnavailable(
                f"engine 'aoti-cuda' needs torch ({error}): pip install \"tiercel[aoti]\""
            ) from error
        return build_package(folder, cls.file, cls.device, cache)


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
    remedy
        What to do where it was compiled for another machine.
    """

    def __init__(
        self,
        file: Path,
        outputs: Sequence[str],
        threads: int,
        device: str,
        remedy: str = "export again with this version, on such a machine",
    ) -> None:
        import torch

        bound = Bound.read(file)
        bound.check(file, tuple(outputs), str(torch.__version__), device_name(device), remedy)
        torch.set_num_threads(threads)
        self._loader = load_package(file, device)
        self._run: Any = self._loader.run
        if device == "cuda":
            from ..device.graphs_torch import GraphedRun, one_instance

            self._run = GraphedRun(self._loader.run, one_instance())
        self._device, self._on_host = torch.device(device), device == "cpu"
        self._from_numpy = torch.from_numpy
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
        flags = array.flags
        # The package checks neither dtype nor strides, and would read other numbers; torch warns of what it
        # must not write to. Where nothing is amiss np.require takes 6 µs a tensor to find so.
        if array.dtype != dtype or not (flags.c_contiguous and flags.writeable):
            array = np.require(array, dtype, ["C", "W"])
        tensor = self._from_numpy(array)
        return tensor if self._on_host else tensor.to(self._device)

    def close(self) -> None:
        """Unload the package."""
        del self._loader, self._run


def share_cpp_library() -> None:
    """Load the C++ standard library for every later library of this process, where there is one.

    A package carries parts of it as weak symbols. Where nothing has loaded it globally (torch does not;
    ONNX Runtime happens to), they are resolved partly from one copy and partly from the other, and what reads
    the device's name by a regular expression ends the process with SIGSEGV: seen with torch 2.11 on Ubuntu
    24.04.
    """
    with contextlib.suppress(OSError):
        ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)


def load_package(file: Path, device: str) -> Any:
    """Return what runs a package.

    Raises
    ------
    DeviceUnavailable
        The GPU has no room for it.
    ArtefactCorrupt
        It is none, or this machine can't unpack it.
    """
    import torch

    share_cpp_library()
    index = torch.cuda.current_device() if device == "cuda" else -1
    try:
        # The loader itself: the callable that torch wraps around it costs 60 µs a call.
        # Without its own waiting for threads, which a capture as a CUDA graph does not allow.
        return torch._C._aoti.AOTIModelPackageLoader(str(file), MODEL, device == "cuda", 1, index)
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        if "out of memory" in str(error):
            raise DeviceUnavailable(
                f"{file}: the GPU's memory is full ({' '.join(first)}); stop what else runs on it, lower the "
                "number of instances, or take a larger GPU"
            ) from error
        raise ArtefactCorrupt(
            f"{file}: not a package that torch {torch.__version__} reads ({' '.join(first)}); export again. "
            "If the machine is said to be at fault: torch unpacks it into the folder for temporary files "
            "(TMPDIR), which must be writable and allow execution"
        ) from error
