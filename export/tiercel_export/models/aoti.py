"""The engines ``aoti`` and ``aoti-cuda``: torch module → ``torch.export`` → AOTInductor's package."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from tiercel_serving.engines.aoti import Aoti, device_name
from tiercel_serving.engines.bound import Bound
from tiercel_serving.errors import DeviceUnavailable, EngineBuildFailed
from tiercel_serving.spec import TensorSpec

from ..errors import ExportError
from .program import batch_program, first_lines

#: Threads are a matter of the host that serves, not of the one that compiles.
_OPTIONS = {"cpp.dynamic_threads": True}


def _make(
    module: torch.nn.Module,
    folder: Path,
    *,
    inputs: Sequence[TensorSpec],
    output: str,
    max_batch: int,
    build_id: str,
    device: str,
) -> tuple[str, ...]:
    """Compile the module for a device of this machine; see :class:`~.prepare.Maker`.

    Raises
    ------
    ExportError
        torch can't express the module as one graph.
    EngineBuildFailed
        There is no compiler, or it failed.
    DeviceUnavailable
        There is no such device.
    """
    where = device_name(device)
    missing = Aoti.unmakeable()
    if missing is not None:
        raise EngineBuildFailed(f"{folder.name}: {missing}")
    # The module that was given stays where it is: it is the oracle.
    there = module if device == "cpu" else copy.deepcopy(module).to(device)
    program, _ = batch_program(there, inputs, max_batch, folder.name)
    file = folder / Aoti.file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(file.resolve()), inductor_configs=dict(_OPTIONS)
            )
    except (ExportError, DeviceUnavailable):
        raise
    except Exception as error:
        raise EngineBuildFailed(
            f"{folder.name}: AOTInductor could not compile {type(module).__name__} for {where}: "
            f"{first_lines(error)}; take --engine onnx"
        ) from error
    dtypes = {spec.name: str(spec.numpy_dtype) for spec in inputs}
    Bound("torch", str(torch.__version__), where, dtypes, (output,)).write(file)
    return ()


make_aoti = partial(_make, device="cpu")
make_aoti_cuda = partial(_make, device="cuda")
