"""Forms of a dense model that an export compares: torch, and TensorRT on its GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel_serving.spec import Array, Arrays, TensorSpec

from ..errors import ExportError

if TYPE_CHECKING:
    import torch


class TorchRunner:
    """The module as it was trained: the oracle.

    Parameters
    ----------
    module
        A torch module whose ``forward`` parameters are named after tensors.
    inputs
        Those names.
    output
        The name of its one output.
    """

    name = "torch"

    def __init__(self, module: torch.nn.Module, inputs: Sequence[str], output: str) -> None:
        # Imported here: the other runners must work where torch is not installed.
        from .dense import frozen, run_module

        self._module = frozen(module)
        self._run = run_module
        self.inputs = tuple(inputs)
        self.outputs = (output,)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the module without gradients."""
        return {self.outputs[0]: self._run(self._module, {name: arrays[name] for name in self.inputs})}


class TensorRTRunner:
    """An ONNX file as a TensorRT engine, built here and run on this GPU through torch's memory.

    A plan is bound to the TensorRT version and the GPU that built it, so it is never taken from
    another machine. Networks are strongly typed: the precision is the graph's own.

    Parameters
    ----------
    path
        The ONNX file.
    inputs
        Specs of the inputs; -1 never occurs in their dims.
    max_batch
        The largest batch of the optimisation profile.
    workspace
        Bytes that a layer may use for scratch.
    """

    name = "tensorrt"

    def __init__(
        self, path: Path, inputs: Sequence[TensorSpec], max_batch: int, workspace: int = 1 << 30
    ) -> None:
        trt = _tensorrt()
        logger = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise ExportError(f"{path}: TensorRT cannot read it: {errors}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        profile = builder.create_optimization_profile()
        for spec in inputs:
            shapes = [(batch, *spec.dims) for batch in (1, max(1, max_batch // 2), max_batch)]
            profile.set_shape(spec.name, *shapes)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ExportError(f"{path}: TensorRT built no engine; its log above says why")
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(name for name in names if is_input[name])
        self.outputs = tuple(name for name in names if not is_input[name])

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Copy the inputs to the GPU, run the engine, and copy the outputs back."""
        import torch

        # Every buffer stays referenced until the stream has been synchronised.
        buffers = {name: torch.from_numpy(np.array(arrays[name])).cuda() for name in self.inputs}
        for name, buffer in buffers.items():
            self._context.set_input_shape(name, tuple(buffer.shape))
        for name in self.outputs:
            kind = torch.from_numpy(np.empty(0, _numpy_dtype(self._engine.get_tensor_dtype(name)))).dtype
            shape = tuple(self._context.get_tensor_shape(name))
            buffers[name] = torch.empty(shape, dtype=kind, device="cuda")
        for name, buffer in buffers.items():
            self._context.set_tensor_address(name, buffer.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ExportError("tensorrt: the engine failed; its log says why")
        stream.synchronize()
        return {name: np.asarray(buffers[name].cpu().numpy()) for name in self.outputs}


def tensorrt_available() -> bool:
    """Whether the TensorRT libraries can be loaded (the packages on PyPI alone are stubs)."""
    try:
        _tensorrt()
    except ExportError:
        return False
    return True


def _tensorrt() -> Any:
    try:
        import tensorrt
    except Exception as error:
        raise ExportError(
            f"tensorrt: the TensorRT libraries cannot be loaded ({error}); run this in the Triton "
            "container whose TensorRT will serve the plan"
        ) from error
    return tensorrt


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    return np.dtype(_tensorrt().nptype(dtype))
