"""``aoti`` and ``aoti-cuda``: a package that AOTInductor compiled, run without the model's Python code.

The package is machine code, bound to the torch version and the device that it was compiled for. Both are
checked before it is opened, because another torch version would misread its arrays or crash the process. A
package for a GPU is compiled on the machine with that GPU, from the program that the export wrote.
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
    """The properties that both rows share."""

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
            It was compiled by another torch version, or for another device.
        """
        return AotiEngine(file, outputs, threads, cls.device)


_BUILD = "run `tiercel build-engines RELEASE` on the machine that will serve it"


class AotiCuda(_Package):
    """AOTInductor's package on a GPU, compiled where it will run: an export needs no GPU and no compiler."""

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
            It was compiled by another torch version or for another GPU, or the GPU is missing or full.
        """
        if not file.is_file():
            raise EngineNotBuilt(f"{file}: not built yet; {_BUILD}")
        return AotiEngine(file, outputs, threads, cls.device, _BUILD)

    @classmethod
    def absent(cls, file: Path) -> str | None:
        """Return why the package can't run here although the release is intact, or None."""
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
        """Compile the program of a folder, unless it is compiled already; see :class:`~.table.BuiltKind`.

        The weights are constants of the package, so other weights need a new compilation, which takes
        seconds; ``refittable`` and ``old`` have no effect.

        Raises
        ------
        DeviceUnavailable, KindUnavailable
            There is no GPU that torch can use, or no torch.
        EngineBuildFailed, ArtefactCorrupt
            The compiler is missing or failed, or the program was changed after its export.
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
        Threads within one kernel; torch has a single setting for the whole process.
    device
        ``cpu`` or ``cuda``.
    remedy
        What the error advises if it was compiled for another machine.
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
        """Run the model on tensors of its device, and return tensors of that device."""
        results = self._run([tensors[name].contiguous() for name in self.inputs])
        return {name: results[place] for name, place in self._places}

    def _tensor(self, array: Array, dtype: np.dtype[Any]) -> torch.Tensor:
        flags = array.flags
        # The package checks neither dtype nor strides, and would misread others; torch warns of read-only
        # arrays. np.require takes 6 µs a tensor even if nothing must change, hence the check before it.
        if array.dtype != dtype or not (flags.c_contiguous and flags.writeable):
            array = np.require(array, dtype, ["C", "W"])
        tensor = self._from_numpy(array)
        return tensor if self._on_host else tensor.to(self._device)

    def close(self) -> None:
        """Unload the package."""
        del self._loader, self._run


def share_cpp_library() -> None:
    """Load the C++ standard library globally, if there is one.

    A package contains parts of it as weak symbols. If nothing has loaded the library globally (torch does
    not, ONNX Runtime happens to), some symbols resolve to one copy and some to the other. The code that
    parses the device's name with a regular expression then crashes with SIGSEGV, as seen with torch 2.11 on
    Ubuntu 24.04.
    """
    with contextlib.suppress(OSError):
        ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)


def load_package(file: Path, device: str) -> Any:
    """Return torch's loader of a package, whose ``run`` maps a list of tensors to a list of tensors.

    Raises
    ------
    DeviceUnavailable
        The GPU's memory is full.
    ArtefactCorrupt
        The file is not a package, or this machine can't unpack it.
    """
    import torch

    share_cpp_library()
    index = torch.cuda.current_device() if device == "cuda" else -1
    try:
        # The loader itself, because the callable that torch wraps around it costs 60 µs a call. On a GPU it
        # does not wait for threads, which the capture of a CUDA graph forbids.
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
