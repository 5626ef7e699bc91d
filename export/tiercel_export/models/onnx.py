"""The engine ``onnx``: torch module → ``torch.export`` → ONNX, with a dynamic batch and the rest fixed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from tiercel_serving.engines.onnx import Onnx
from tiercel_serving.spec import TensorSpec

from ..errors import ExportError
from .dense import example_inputs

#: ONNX Runtime 1.18 and later run this opset; newer ones bring nothing that these graphs use.
OPSET = 18

#: The key under which the build id lies in the model's ``metadata_props``.
BUILD_ID_KEY = "tiercel_build_id"

#: From here on the weights go into a file beside the model, which the instances of a model map and so share;
#: what is inside of the ONNX file each process reads into memory of its own.
EXTERNAL_DATA_BYTES = 1 << 20

#: What that file is called: the model's name and this.
EXTERNAL_DATA_SUFFIX = ".data"

#: Operator domains that ONNX Runtime carries by itself.
_PLAIN_DOMAINS = {"", "ai.onnx"}


def make_onnx(
    module: torch.nn.Module,
    folder: Path,
    *,
    inputs: Sequence[TensorSpec],
    output: str,
    max_batch: int,
    build_id: str,
) -> None:
    """Write the module as an ONNX file with a dynamic batch of 1 to ``max_batch``.

    Raises
    ------
    ExportError
        If torch cannot express the module as one graph, or the graph needs operators that ONNX
        Runtime does not have.
    """
    path = folder / Onnx.file
    # Two rows: torch.export would take a batch of 1 for a constant.
    example = {name: torch.from_numpy(value) for name, value in example_inputs(inputs, 2).items()}
    batch = torch.export.Dim("batch", min=1, max=max(max_batch, 2))
    try:
        with _quiet():
            program = torch.export.export(
                module, (), example, dynamic_shapes={name: {0: batch} for name in example}, strict=False
            )
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
            f"{path.parent.name}: torch could not export {type(module).__name__} with a dynamic batch: "
            f"{_first_lines(error)}. The batch is axis 0 of every input and must stay free: no Python `if` "
            "on tensor values, no shape written as a number"
        ) from error
    assert exported is not None
    _save(_finish(exported.model_proto, path, build_id), path)


def _finish(model: onnx.ModelProto, path: Path, build_id: str) -> onnx.ModelProto:
    foreign = {node.domain for node in model.graph.node} - _PLAIN_DOMAINS
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


def _save(model: onnx.ModelProto, path: Path) -> None:
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


def _first_lines(error: Exception, lines: int = 3) -> str:
    return " ".join(str(error).strip().splitlines()[:lines])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes about packages that nobody here asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
