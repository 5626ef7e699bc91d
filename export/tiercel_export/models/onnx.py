"""The engine ``onnx``: torch module → ``torch.export`` → ONNX, with a dynamic batch and all other axes fixed.

A model that is given as ONNX is written with the stage's names and shapes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnx
import torch

from tiercel_serving.engines.loops import refused_beside
from tiercel_serving.engines.onnx import Onnx
from tiercel_serving.spec import TensorSpec

from ..errors import ExportError
from .loops.lower import lower
from .onnx_model import DOMAINS, OnnxModel
from .program import batch_program, first_lines
from .readiness import graph_problems

#: ONNX Runtime 1.18 and later run this opset; newer opsets add nothing that these graphs use.
OPSET = 18

#: Key of the build id in the model's ``metadata_props``.
BUILD_ID_KEY = "tiercel_build_id"

#: Weights of at least this many bytes are stored in a file beside the model, which the instances of a model
#: map into memory and share. Weights inside the ONNX file are copied into the memory of each process.
EXTERNAL_DATA_BYTES = 1 << 20

#: Suffix that the name of the weights' file adds to the model's.
EXTERNAL_DATA_SUFFIX = ".data"


def write_onnx(
    module: torch.nn.Module | OnnxModel,
    folder: Path,
    *,
    inputs: Sequence[TensorSpec],
    output: str,
    max_batch: int,
    build_id: str,
    loops: bool = False,
) -> tuple[str, ...]:
    """Write the module as an ONNX file with a dynamic batch of 1 to ``max_batch``; copy an ONNX model.

    Parameters
    ----------
    module, folder, inputs, output, max_batch, build_id
        As for every maker; see :class:`~.prepare.Maker`.
    loops
        Whether to write a small graph as loops too (:mod:`.loops`), or why not.

    Returns
    -------
    Notes about layers that TensorRT would refuse; they do not affect this engine.

    Raises
    ------
    ExportError
        If torch cannot express the module as one graph, or the graph needs operators that ONNX
        Runtime does not have.
    """
    if isinstance(module, OnnxModel):
        graph = onnx.ModelProto()
        graph.CopyFrom(module.graph)
    else:
        graph = _exported(module, folder.name, inputs, output, max_batch)
    file = folder / Onnx.file
    save_onnx(_finish(graph, file, build_id), file)
    if loops and (why := lower(file)):
        refused_beside(file).write_text(why + "\n", encoding="utf-8")
    return tuple(f"{folder.name}: not ready for TensorRT: {problem}" for problem in graph_problems(graph))


#: The maker of the engine ``onnx``, which runs the loops if a model has them.
make_onnx = partial(write_onnx, loops=True)


def _exported(
    module: torch.nn.Module, what: str, inputs: Sequence[TensorSpec], output: str, max_batch: int
) -> onnx.ModelProto:
    program, example = batch_program(module, inputs, max_batch, what)
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                (),
                kwargs=example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(example),
                output_names=[output],
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"{what}: torch could not write {type(module).__name__} as ONNX: {first_lines(error)}; "
            "write that layer with plain torch operations"
        ) from error
    assert exported is not None
    return exported.model_proto


def _finish(model: onnx.ModelProto, path: Path, build_id: str) -> onnx.ModelProto:
    foreign = {node.domain for node in model.graph.node} - set(DOMAINS)
    local = {function.domain for function in model.functions}
    if foreign - local:
        raise ExportError(
            f"{path.parent.name}: the graph needs operators of {sorted(foreign - local)}, which ONNX Runtime "
            "does not have; write that layer with plain torch operations"
        )
    symbols = {
        tensor.type.tensor_type.shape.dim[0].dim_param
        for tensor in model.graph.input
        if tensor.type.tensor_type.shape.dim
    }
    for tensor in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_param in symbols and dim.dim_param:
                dim.dim_param = "batch"
    entry = model.metadata_props.add()
    entry.key, entry.value = BUILD_ID_KEY, build_id
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Check a graph and write it, with large weights in a file beside it."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights >= EXTERNAL_DATA_BYTES:
        onnx.save_model(
            model,
            str(path),
            save_as_external_data=True,
            location=path.name + EXTERNAL_DATA_SUFFIX,
            size_threshold=1024,
        )
        onnx.checker.check_model(str(path))
    else:
        onnx.checker.check_model(model, full_check=True)
        onnx.save_model(model, str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about optional packages that are not used here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
