"""The engines ``tensorrt…``: the ONNX graph, its reduced-precision form, and the specification of the plan.

``tiercel build-engines`` builds the plans that need the GPU. A portable plan (TensorRT-RTX) is built here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from tiercel_serving.engines.onnx import Onnx
from tiercel_serving.engines.table import ENGINES, BuiltKind
from tiercel_serving.engines.trt.build import network_sha256, parser_problems
from tiercel_serving.engines.trt.flavours import FLAVOURS, find_module
from tiercel_serving.engines.trt.specification import BuildSpecification
from tiercel_serving.spec import Array, Arrays, TensorSpec

from ..errors import ExportError
from .casts import cast_graph
from .onnx import save_onnx, write_onnx
from .onnx_model import OnnxModel
from .quantized import EIGHT_BITS, open_graph, quantize_graph
from .readiness import graph_problems

#: The element types of weights that a plan can be refitted with.
_WEIGHTS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

#: Scratch memory that a kernel may use, in MiB.
WORKSPACE_MB = 1024


def _make(
    module: torch.nn.Module | OnnxModel,
    folder: Path,
    *,
    inputs: Sequence[TensorSpec],
    output: str,
    max_batch: int,
    build_id: str,
    flavour: str,
    kind: str | None = None,
    precision: str | None = None,
) -> tuple[str, ...]:
    """Write everything that needs no GPU; see :class:`~.prepare.Maker`.

    Parameters
    ----------
    module, folder, inputs, output, max_batch, build_id
        As for every maker.
    flavour
        Row of :data:`~tiercel_serving.engines.trt.flavours.FLAVOURS`.
    kind
        The engine's row; None if :func:`_calibrate` finishes the graph.
    precision
        Row of :data:`~.casts.HALF_TYPES`; None is float32.

    Raises
    ------
    ExportError
        TensorRT would refuse the graph, or change its numbers silently. The message names each layer.
    EngineBuildFailed
        A portable plan could not be built.
    """
    write_onnx(module, folder, inputs=inputs, output=output, max_batch=max_batch, build_id=build_id)
    file = folder / Onnx.file
    network = file if precision is None else write_cast(file, precision)
    if kind is None:
        check_ready(network, flavour)
    else:
        _specify(network, kind=kind, flavour=flavour, max_batch=max_batch)
    return ()


def _calibrate(
    folder: Path, requests: Sequence[Arrays], *, max_batch: int, kind: str, flavour: str, precision: str
) -> None:
    """Write the 8-bit graph and its specification; see :class:`~.prepare.Calibrator`.

    Parameters
    ----------
    folder, requests, max_batch
        As for every calibrator.
    kind, flavour
        As for :func:`_make`.
    precision
        Row of :data:`~.quantized.EIGHT_BITS`.

    Raises
    ------
    ExportError, ExportInputError, EngineBuildFailed
        As for :func:`~.quantized.quantize_graph` and :func:`_make`.
    """
    network = _reduced(folder / Onnx.file, precision)
    save_onnx(quantize_graph(onnx.load(str(folder / Onnx.file)), precision, requests, folder.name), network)
    _specify(network, kind=kind, flavour=flavour, max_batch=max_batch)


def _specify(network: Path, *, kind: str, flavour: str, max_batch: int) -> None:
    """Check a graph, and write the specification of its plan; build the plan if it is portable."""
    check_ready(network, flavour)
    folder, largest = network.parent, max(max_batch, 1)
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


def _reduced(file: Path, precision: str) -> Path:
    """Return the path of an ONNX file's form in another precision."""
    return file.with_name(f"{file.stem}.{precision}{file.suffix}")


def structure_sha256(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of a graph without its float weights, with which a plan can be refitted.

    Integer tensors are included, because shapes, axes and similar constants determine the plan.
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
    made = _reduced(file, precision)
    save_onnx(cast_graph(onnx.load(str(file)), precision), made)
    return made


def check_ready(file: Path, flavour: str) -> None:
    """Refuse a graph that TensorRT would refuse, by our own table and by TensorRT's parser if installed.

    Raises
    ------
    ExportError
        The graph has layers that TensorRT would refuse; the message has one line for each.
    """
    place = f"{file.parent.name}/{file.name}"
    problems = [f"{place}: {one}" for one in graph_problems(onnx.load(str(file), load_external_data=False))]
    row = FLAVOURS[flavour]
    # Both flavours have the same parser, so either one that is installed will do.
    trt = next(filter(None, (find_module(one) for one in (row, *FLAVOURS.values()))), None)
    if not problems and trt is not None:
        problems = parser_problems(trt, file)
    if problems:
        raise ExportError("TensorRT would not take the graph:\n" + "\n".join(f"  {one}" for one in problems))


def rounded_model(file: Path, precision: str, output: str) -> Callable[[Arrays], dict[str, Array]]:
    """Return a function that runs a model on this CPU as its reduced-precision plan would.

    Parameters
    ----------
    file
        The float32 ONNX file; for 8-bit precisions, the quantized file beside it is run.
    precision
        Row of :data:`~.casts.HALF_TYPES` or :data:`~.quantized.EIGHT_BITS`.
    output
        The output's name.
    """
    if precision in EIGHT_BITS:
        session = open_graph(onnx.load(str(_reduced(file, precision))))
    else:
        session = open_graph(cast_graph(onnx.load(str(file)), precision, simulate=True))
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

#: The makers of the 8-bit rows; a calibrator finishes their graph once the release has requests.
make_tensorrt_full = partial(_make, flavour="tensorrt")
make_tensorrt_rtx_full = partial(_make, flavour="tensorrt_rtx")
calibrate_tensorrt_int8 = partial(_calibrate, kind="tensorrt-int8", flavour="tensorrt", precision="int8")
calibrate_tensorrt_fp8 = partial(_calibrate, kind="tensorrt-fp8", flavour="tensorrt", precision="fp8")
calibrate_tensorrt_rtx_int8 = partial(
    _calibrate, kind="tensorrt-rtx-int8", flavour="tensorrt_rtx", precision="int8"
)
calibrate_tensorrt_rtx_fp8 = partial(
    _calibrate, kind="tensorrt-rtx-fp8", flavour="tensorrt_rtx", precision="fp8"
)
