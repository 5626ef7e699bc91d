"""A device with its stream; the only place where arrays are copied to it and tensors from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import torch
from torch import Tensor

from ..errors import DeviceUnavailable
from ..spec import Array, Arrays
from .graphs_torch import Capture, GraphedRun, Run, lasting, one_instance

#: Bytes of the pieces in which a table is copied, so that a mapped file is never in memory as a whole.
PIECE = 1 << 26

#: Alignment in bytes of a request's arrays, on which kernels may rely.
ALIGNED = 16

#: The most combinations of names and shapes with buffers of their own; other arrays are copied one by one.
MOST_STAGED = 64

#: Type of device → makes the function that captures one instance's work as graphs.
CAPTURES: dict[str, Callable[[], Capture]] = {"cuda": one_instance}


class Place:
    """Where the tensors of one model instance live.

    Parameters
    ----------
    device
        ``cpu``, ``cuda`` or ``cuda:<number>``.

    Raises
    ------
    DeviceUnavailable
        There is no such device, or its driver is too old for this torch.

    Attributes
    ----------
    device : torch.device
        The device.
    stream : torch.cuda.Stream or None
        The stream of all stages and engines of the instance; None on the CPU.
    capture : Capture or None
        Made by a row of :data:`CAPTURES`; None on a device without one.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self.device = torch.device("cuda", _usable_gpu(self.device.index or 0))
            torch.cuda.set_device(self.device)
            # TF32 would round the factors of every product to a 10-bit mantissa.
            torch.backends.cuda.matmul.allow_tf32 = False
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        captures = CAPTURES.get(self.device.type)
        self.capture = None if captures is None else captures()
        self._staged: dict[Hashable, Staging] = {}

    def here(self) -> AbstractContextManager[object]:
        """Return the context in which an instance works: its stream, and no gradients."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        if self.stream is not None:
            stack.enter_context(torch.cuda.stream(self.stream))
        return stack

    def graphed(self, run: Run) -> Run:
        """Return a function that runs work on batches ``[B, …]`` from CUDA graphs, if the device has them."""
        return run if self.capture is None else GraphedRun(run, self.capture)

    def put(self, array: Array) -> Tensor:
        """Copy an array of a request to the device; on the CPU it is the same memory."""
        # A writeable copy, because torch warns of read-only arrays; such arrays are small.
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        if self.device.type == "cpu":
            return tensor
        # From page-locked memory the copy is asynchronous.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def put_all(self, arrays: Arrays) -> dict[str, Tensor]:
        """Copy arrays of a request to the device; if work is captured, by one copy into lasting tensors.

        The next request's arrays with the same names and shapes overwrite these tensors.
        """
        if self.capture is None:
            return {name: self.put(array) for name, array in arrays.items()}
        key = tuple((name, array.shape) for name, array in arrays.items())
        staging = self._staged.get(key)
        if staging is None:
            if len(self._staged) == MOST_STAGED:
                return {name: self.put(array) for name, array in arrays.items()}
            staging = self._staged[key] = Staging(arrays, self.device)
        return staging.put(arrays)

    def take(self, tensor: Tensor) -> Array:
        """Copy a tensor to the host, after all earlier work on the stream."""
        array: Array = tensor.cpu().numpy()
        return array

    def table(self, array: Array, dtype: torch.dtype | None = None) -> Tensor:
        """Copy a table ``[I, …]`` to the device in pieces, converted to ``dtype`` if given.

        Raises
        ------
        DeviceUnavailable
            The device has too little free memory.
        """
        kind = torch.from_numpy(np.empty(0, array.dtype)).dtype if dtype is None else dtype
        self.require_bytes(array.size * kind.itemsize, f"a table {list(array.shape)}")
        out = torch.empty(array.shape, dtype=kind, device=self.device)
        step = max(1, PIECE // max(array[:1].nbytes, 1))
        for begin in range(0, len(array), step):
            out[begin : begin + step] = torch.from_numpy(np.array(array[begin : begin + step])).to(kind)
        return out

    def require_bytes(self, needed: int, what: str) -> None:
        """Check that a GPU has enough free memory; the CPU's memory is not checked.

        Raises
        ------
        DeviceUnavailable
            It has not; the message has the needed and the free size.
        """
        if self.device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(self.device)
        if needed > free:
            raise DeviceUnavailable(no_room(what, needed, free, str(self.device)))


class Staging:
    """Buffers for arrays of given shapes, in page-locked host memory and on the device, for a single copy.

    Parameters
    ----------
    arrays
        Arrays with the names, shapes and dtypes.
    device
        The device.
    """

    def __init__(self, arrays: Arrays, device: torch.device) -> None:
        begins, size = list[int](), 0
        for array in arrays.values():
            begins.append(size)
            size += -(-array.nbytes // ALIGNED) * ALIGNED
        # From page-locked memory the copy is asynchronous.
        self._here = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._there = torch.empty(size, dtype=torch.uint8, device=device)
        packed = self._here.numpy()
        self._slots: dict[str, Array] = {}
        self._tensors: dict[str, Tensor] = {}
        for (name, array), begin in zip(arrays.items(), begins, strict=True):
            place = slice(begin, begin + array.nbytes)
            self._slots[name] = packed[place].view(array.dtype).reshape(array.shape)
            kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
            self._tensors[name] = lasting(self._there[place].view(kind).view(array.shape))

    def put(self, arrays: Arrays) -> dict[str, Tensor]:
        """Copy arrays of these shapes; the previous ones must have been read, or be no longer needed."""
        for name, array in arrays.items():
            self._slots[name][...] = array
        self._there.copy_(self._here, non_blocking=True)
        return self._tensors


def no_room(what: str, needed: int, free: int, device: str) -> str:
    """Return the error message for a device with too little memory; sizes are in bytes."""
    return (
        f"{device}: {what} needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; set the index's "
        "precision to float16, lower `instances`, stop what else runs on this GPU, or take a larger one"
    )


def _usable_gpu(index: int) -> int:
    """Return the number of a GPU after checking that torch can use it."""
    remedy = (
        "run it on a machine with an NVIDIA GPU and a driver for this torch's CUDA (in a container: docker "
        "run --gpus all), or export with --target torch, which is the same on the CPU, or --target cpu"
    )
    if torch.version.cuda is None:
        raise DeviceUnavailable(
            f"target gpu: torch {torch.__version__} is built without CUDA; install a CUDA build, and {remedy}"
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        count = torch.cuda.device_count()
    except (RuntimeError, AssertionError) as error:
        said = " ".join(str(error).split()[:30])
        raise DeviceUnavailable(
            f"target gpu: torch {torch.__version__} (CUDA {torch.version.cuda}) can use no GPU: {said}; "
            f"{remedy}"
        ) from error
    if index >= count:
        raise DeviceUnavailable(f"target gpu: there is no GPU {index}, {count} are there; {remedy}")
    return index
