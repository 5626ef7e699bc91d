"""Run a plan in the Python process: allocate buffers once; per batch copy in, launch, and copy out.

This project's tests have no GPU and run this against test doubles of CUDA and TensorRT.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DeviceUnavailable, EngineMismatch, InvalidRequest
from ...spec import Array, Arrays
from ..bound import Bound, check_outputs
from .build import make_logger, network_sha256
from .cuda import Device, ask, find_device
from .flavours import Flavour, Module
from .specification import BuildSpecification

if TYPE_CHECKING:
    import torch

#: What errors advise if a plan does not fit this machine.
REBUILD = "run `tiercel build-engines RELEASE` on this machine"


@dataclass
class _Buffer:
    """Buffers of one tensor for the largest batch: page-locked host memory, and device memory."""

    name: str
    host: Array
    pinned: Any
    device: int

    def rows(self, count: int) -> Array:
        return self.host[:count]


def check_plan(file: Path, flavour: Flavour, trt: Module, device: Device, outputs: Sequence[str]) -> Bound:
    """Refuse a plan that this machine can't run, before the plan itself is read.

    Raises
    ------
    EngineMismatch
        It was built by another version or flavour, for another GPU, or from another graph than the one
        beside it.
    """
    bound = Bound.read(file)
    if bound.library != flavour.name:
        raise EngineMismatch(f"{file}: a plan of {bound.library}, expected one of {flavour.name}; {REBUILD}")
    if flavour.capabilities and device.capability not in flavour.capabilities:
        raise EngineMismatch(
            f"{file}: {flavour.name} runs on compute capabilities {', '.join(flavour.capabilities)}; this "
            f"GPU is {device}. Export with --target tensorrt and build on this machine, or with --engine "
            "aoti-cuda"
        )
    here = bound.device if flavour.portable else str(device)
    bound.check(file, tuple(outputs), trt.__version__, here, REBUILD)
    specification = BuildSpecification.read(file.parent)
    if network_sha256(file.parent / specification.network) != bound.network:
        raise EngineMismatch(
            f"{file}: the plan was built of another graph than {specification.network} beside it; export "
            f"again, or {REBUILD}"
        )
    return bound


class PlanEngine:
    """A deserialised plan with its buffers.

    Parameters
    ----------
    file
        The plan.
    outputs
        The outputs that the stage has.
    flavour, trt
        The flavour's row and module.
    cudart
        CUDA's runtime API.

    Raises
    ------
    EngineMismatch
        See :func:`check_plan`; or the runtime rejects the plan, and the message has its reason.
    DeviceUnavailable
        There is no GPU, its driver is too old, or it has too little memory left.
    """

    def __init__(
        self, file: Path, outputs: Sequence[str], flavour: Flavour, trt: Module, cudart: Any
    ) -> None:
        self._cudart = cudart
        device = find_device(cudart)
        bound = check_plan(file, flavour, trt, device, outputs)
        said: list[str] = []
        # The runtime and its logger must outlive the engine.
        self._logger = make_logger(trt, said)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            raise EngineMismatch(
                f"{file}: {flavour.name} {trt.__version__} does not take this plan: "
                f"{' | '.join(said[-2:])}; {REBUILD}"
            )
        self._refuse_too_large(file, device)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise DeviceUnavailable(f"{file}: no execution context: {' | '.join(said[-2:])}")
        self._stream = ask(cudart, "cudaStreamCreate")
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        # Inputs first, because they determine the shapes of the outputs.
        names.sort(key=lambda name: name not in bound.inputs)
        buffers = [self._buffer(trt, name) for name in names]
        self._in = [b for b in buffers if b.name in bound.inputs]
        self._out = {b.name: b for b in buffers if b.name not in bound.inputs}
        check_outputs(file, tuple(outputs), tuple(self._out))
        self.inputs, self.outputs = tuple(bound.inputs), tuple(outputs)
        self.max_batch = len(buffers[0].host)
        self._file = file

    def _refuse_too_large(self, file: Path, device: Device) -> None:
        needed = int(self._engine.device_memory_size_v2)
        if needed > device.free_bytes:
            raise DeviceUnavailable(
                f"{file}: the plan needs {needed / 1e6:,.0f} MB of scratch memory, {device} has "
                f"{device.free_bytes / 1e6:,.0f} MB free; lower max_batch_size or the number of instances, "
                "or stop what else runs on this GPU"
            )

    def _buffer(self, trt: Module, name: str) -> _Buffer:
        """Allocate the buffers of one tensor for the profile's largest batch."""
        dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
        if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            shape = tuple(self._engine.get_tensor_profile_shape(name, 0)[2])
            self._context.set_input_shape(name, shape)
        else:
            shape = tuple(self._context.get_tensor_shape(name))
        size = int(np.prod(shape)) * dtype.itemsize
        pinned = ask(self._cudart, "cudaMallocHost", size)
        raw = memoryview((ctypes.c_byte * size).from_address(int(pinned)))
        device = int(ask(self._cudart, "cudaMalloc", size))
        self._context.set_tensor_address(name, device)
        return _Buffer(name, np.frombuffer(raw, dtype).reshape(shape), pinned, device)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the plan on tensors ``[B, …]``.

        Raises
        ------
        InvalidRequest
            The batch is larger than the plan's profile allows.
        """
        batch, kinds = self._batch(arrays), self._cudart.cudaMemcpyKind
        for buffer in self._in:
            rows = buffer.rows(batch)
            np.copyto(rows, arrays[buffer.name], casting="same_kind")
            self._copy(buffer.device, buffer.pinned, rows.nbytes, kinds.cudaMemcpyHostToDevice)
            self._context.set_tensor_address(buffer.name, buffer.device)
            self._context.set_input_shape(buffer.name, rows.shape)
        for buffer in self._out.values():
            self._context.set_tensor_address(buffer.name, buffer.device)
        self._start(batch, int(self._stream))
        for name in self.outputs:
            buffer = self._out[name]
            size = buffer.rows(batch).nbytes
            self._copy(buffer.pinned, buffer.device, size, kinds.cudaMemcpyDeviceToHost)
        ask(self._cudart, "cudaStreamSynchronize", self._stream)
        return {name: self._out[name].rows(batch).copy() for name in self.outputs}

    def run_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the plan on torch tensors without a copy, on torch's current stream, without synchronising.

        Raises
        ------
        InvalidRequest
            The batch is larger than the plan's profile allows.
        """
        import torch

        batch = self._batch(tensors)
        # Inputs must live until the plan is enqueued; later reuse of their memory is ordered on the stream.
        given = {name: tensors[name].contiguous() for name in self.inputs}
        for name, tensor in given.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
            self._context.set_input_shape(name, tuple(tensor.shape))
        device, made = tensor.device, {}
        for name, buffer in self._out.items():
            like = torch.from_numpy(buffer.rows(0))
            made[name] = torch.empty((batch, *like.shape[1:]), dtype=like.dtype, device=device)
            self._context.set_tensor_address(name, made[name].data_ptr())
        on_gpu = device.type == "cuda"
        self._start(batch, torch.cuda.current_stream().cuda_stream if on_gpu else int(self._stream))
        return {name: made[name] for name in self.outputs}

    def _batch(self, arrays: Mapping[str, Any]) -> int:
        """Return the batch size in users; refuse one above the plan's maximum."""
        batch = len(arrays[self.inputs[0]])
        if batch > self.max_batch:
            raise InvalidRequest(
                f"{self._file}: a batch of {batch}, but the plan was built for at most {self.max_batch}; "
                "send fewer users at once, or export with a larger max_batch_size and build again"
            )
        return batch

    def _start(self, batch: int, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise RuntimeError(f"{self._file}: TensorRT could not start the plan on a batch of {batch}")

    def _copy(self, to: Any, of: Any, size: int, kind: Any) -> None:
        ask(self._cudart, "cudaMemcpyAsync", to, of, size, kind, self._stream)

    def close(self) -> None:
        """Free the device memory and the page-locked memory."""
        buffers = [*self._in, *self._out.values()]
        self._in, self._out = [], {}
        self._context = self._engine = self._runtime = None
        for buffer in buffers:
            ask(self._cudart, "cudaFree", buffer.device)
            ask(self._cudart, "cudaFreeHost", buffer.pinned)
        ask(self._cudart, "cudaStreamDestroy", self._stream)
