"""The engines ``aoti`` and ``aoti-cuda``: torch module → ``torch.export`` → AOTInductor package.

``tiercel build-engines`` compiles the package for a GPU, on a machine with that GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tiercel_serving.engines.aoti import Aoti, AotiCuda
from tiercel_serving.engines.aoti_torch import compile_program, write_program
from tiercel_serving.engines.bound import Bound
from tiercel_serving.engines.compiler import device_name
from tiercel_serving.spec import TensorSpec

from .onnx import write_onnx
from .program import batch_program


def make_aoti(
    module: torch.nn.Module,
    folder: Path,
    *,
    inputs: Sequence[TensorSpec],
    output: str,
    max_batch: int,
    build_id: str,
) -> tuple[str, ...]:
    """Compile the module for this machine's CPU; see :class:`~.prepare.Maker`.

    Raises
    ------
    ExportError
        torch can't express the module as one graph.
    EngineBuildFailed
        There is no compiler, or compilation failed.
    """
    where, file = device_name(Aoti.device), folder / Aoti.file
    program, _ = batch_program(module, inputs, max_batch, folder.name)
    compile_program(program, file, folder.name, where)
    _bound(where, inputs, output).write(file)
    return ()


def make_aoti_cuda(
    module: torch.nn.Module,
    folder: Path,
    *,
    inputs: Sequence[TensorSpec],
    output: str,
    max_batch: int,
    build_id: str,
) -> tuple[str, ...]:
    """Write the program for compilation on the GPU machine, and an ONNX graph; see :class:`~.prepare.Maker`.

    If this machine has a GPU, the program is compiled now.

    Raises
    ------
    ExportError
        torch can't express the module as one graph.
    EngineBuildFailed
        There is a GPU but no compiler, or compilation failed.
    """
    write_onnx(module, folder, inputs=inputs, output=output, max_batch=max_batch, build_id=build_id)
    program, _ = batch_program(module, inputs, max_batch, folder.name)
    write_program(program, folder, _bound("any", inputs, output))
    if torch.cuda.is_available():
        AotiCuda.build(folder)
    return ()


def _bound(where: str, inputs: Sequence[TensorSpec], output: str) -> Bound:
    dtypes = {spec.name: str(spec.numpy_dtype) for spec in inputs}
    return Bound("torch", str(torch.__version__), where, dtypes, (output,))
