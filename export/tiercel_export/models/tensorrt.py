"""The engines ``tensorrt…``: the ONNX graph, its cast form, and the specification of the plan.

What needs the GPU is left to ``tiercel build-engines``. A portable plan (TensorRT-RTX) is built here already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from tiercel_serving.engines.onnx import Onnx
from tiercel_serving.engines.table import ENGINES, BuiltKind
from tiercel_serving.engines.trt.build import network_sha256, parser_problems
from tiercel_serving.engines.trt.flavours import FLAVOURS, find_module
from tiercel_serving.engines.trt.specification import BuildSpecification
from tiercel_serving.spec import Array, Arrays, TensorSpec

from ..errors import ExportError
from .casts import cast_graph
from .onnx import make_onnx, save_onnx
from .onnx_model import OnnxModel
from .readiness import graph_problems

#: Types of weights.
_WEIGHTS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

#: Scratch memory that a kernel may ask for.
WORKSPACE_MB = 1024


def _make(
    module: torch.nn.Module | OnnxModel,
    folder: Path,
    *,
    inputs: Sequence[TensorSpec],
    output: str,
    max_batch: int,
    build_id: str,
    kind: str,
    flavour: str,
    precision: str | None = None,
) -> tuple[str, ...]:
    """Write all but what needs the GPU; see :class:`~.prepare.Maker`.

    Parameters
    ----------
    module, folder, inputs, output, max_batch, build_id
        As every maker's.
    kind
        The engine's row.
    flavour
        Row of :data:`~tiercel_serving.engines.trt.flavours.FLAVOURS`.
    precision
        Row of :data:`~.casts.HALF_TYPES`; None is float32.

    Raises
    ------
    ExportError
        TensorRT would refuse the graph, or change its numbers silently: each layer is named.
    EngineBuildFailed
        A portable plan could not be built.
    """
    make_onnx(module, folder, inputs=inputs, output=output, max_batch=max_batch, build_id=build_id)
    file = folder / Onnx.file
    network = file if precision is None else write_cast(file, precision)
    check_ready(network, flavour)
    largest = max(max_batch, 1)
    specification = BuildSpecification(
        network.name,
        network_sha256(network),
        (1, max(1, largest // 8), largest),
        WORKSPACE_MB,
        structure_sha256(onnx.load(str(network), load_external_data=False)),
    )
    specification.write(folder)
    built: Any = ENGINES.find(kind)
    if FLAVOURS[flavour].portable and isinstance(built, BuiltKind):
        built.build(folder)
    return ()


def structure_sha256(model: onnx.ModelProto) -> str:
    """Return the checksum of a graph without the weights that a plan can be given anew: its floats.

    Integers stay in it: shapes, axes and the like decide what is built.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    for tensor in bare.graph.initializer:
        if tensor.data_type in _WEIGHTS:
            named = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            tensor.CopyFrom(named)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def write_cast(file: Path, precision: str) -> Path:
    """Write the half-precision form of an ONNX file beside it, and return its path."""
    made = file.with_name(f"{file.stem}.{precision}{file.suffix}")
    save_onnx(cast_graph(onnx.load(str(file)), precision), made)
    return made


def check_ready(file: Path, flavour: str) -> None:
    """Refuse a graph that TensorRT would refuse: by our own table, and by the real parser if installed.

    Raises
    ------
    ExportError
        One line for each layer.
    """
    place = f"{file.parent.name}/{file.name}"
    problems = [f"{place}: {one}" for one in graph_problems(onnx.load(str(file), load_external_data=False))]
    row = FLAVOURS[flavour]
    # Both flavours parse alike: the one that is installed speaks for the other.
    trt = next(filter(None, (find_module(one) for one in (row, *FLAVOURS.values()))), None)
    if not problems and trt is not None:
        problems = parser_problems(trt, file)
    if problems:
        raise ExportError("TensorRT would not take the graph:\n" + "\n".join(f"  {one}" for one in problems))


def rounded_model(file: Path, precision: str, output: str) -> Callable[[Arrays], dict[str, Array]]:
    """Return what runs a model as its half-precision plan would, on this CPU.

    Parameters
    ----------
    file
        The float32 ONNX file.
    precision
        Row of :data:`~.casts.HALF_TYPES`.
    output
        The output's name.
    """
    graph = cast_graph(onnx.load(str(file)), precision, simulate=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Its optimizer would see that a cast and the cast back cancel each other.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [put.name for put in session.get_inputs()]

    def run(arrays: Arrays) -> dict[str, Array]:
        (result,) = session.run([output], {name: arrays[name] for name in names})
        return {output: np.asarray(result)}

    return run


make_tensorrt = partial(_make, kind="tensorrt", flavour="tensorrt")
make_tensorrt_fp16 = partial(_make, kind="tensorrt-fp16", flavour="tensorrt", precision="fp16")
make_tensorrt_bf16 = partial(_make, kind="tensorrt-bf16", flavour="tensorrt", precision="bf16")
make_tensorrt_rtx = partial(_make, kind="tensorrt-rtx", flavour="tensorrt_rtx")
make_tensorrt_rtx_fp16 = partial(_make, kind="tensorrt-rtx-fp16", flavour="tensorrt_rtx", precision="fp16")
make_tensorrt_rtx_bf16 = partial(_make, kind="tensorrt-rtx-bf16", flavour="tensorrt_rtx", precision="bf16")
