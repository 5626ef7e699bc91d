"""Dense models: torch module → ``torch.export`` → ONNX, with a dynamic batch and everything else fixed.

The names of ``forward``'s parameters say which packed tensors the model takes; there is no other
wiring. The batch is the only dynamic axis: the candidates K, the history length L and the widths of
the packed tensors are constants of the graph, so an engine can plan its memory and fuse its kernels.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch

from tiercel_serving.spec import Array, TensorSpec

from ..errors import ExportError, ExportInputError

#: ONNX Runtime 1.18 and later run this opset; newer ones bring nothing that these graphs use.
OPSET = 18

#: The key under which the build id lies in the model's ``metadata_props``.
BUILD_ID_KEY = "tiercel_build_id"

#: Protobuf ends at 2 GiB; from here on the weights go into a file beside the model.
EXTERNAL_DATA_BYTES = 1 << 30

#: Operator domains that ONNX Runtime carries by itself.
_PLAIN_DOMAINS = {"", "ai.onnx"}


def forward_inputs(
    module: torch.nn.Module, available: Mapping[str, TensorSpec], what: str
) -> tuple[TensorSpec, ...]:
    """Return the specs of the tensors that ``module.forward`` names, in its order.

    Parameters
    ----------
    module
        The torch module.
    available
        Name → spec of every tensor that the stage could hand over.
    what
        What the caller calls the module, for messages.

    Raises
    ------
    ExportInputError
        If a parameter without a default is no packed tensor, or ``forward`` takes ``*args`` or
        ``**kwargs``, whose names cannot be known.
    """
    chosen = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ExportInputError(
                f"{what}: forward takes {parameter}, but each parameter must be named after the tensor it "
                f"wants; available here: {', '.join(sorted(available))}"
            )
        if parameter.name in available:
            chosen.append(available[parameter.name])
        elif parameter.default is parameter.empty:
            raise ExportInputError(
                f"{what}: forward names a parameter {parameter.name!r}, which is no tensor of this stage; "
                f"available here: {', '.join(sorted(available))}"
            )
    if not chosen:
        raise ExportInputError(
            f"{what}: forward takes none of the tensors of this stage ({', '.join(sorted(available))}), so "
            "its answer would be the same for everybody"
        )
    return tuple(chosen)


def example_inputs(inputs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Return zeros for each input, ``[batch, *dims]``. Id 0 is the pad of every vocabulary."""
    return {spec.name: np.zeros((batch, *spec.dims), spec.numpy_dtype) for spec in inputs}


def frozen(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of the module on the CPU, in evaluation mode; the original is left as it was."""
    return copy.deepcopy(module).cpu().eval()


def run_module(module: torch.nn.Module, arrays: Mapping[str, Array]) -> Array:
    """Run a module on named arrays without gradients and return its one output."""
    with torch.inference_mode():
        result = module(**{name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    if not isinstance(result, torch.Tensor):
        raise ExportInputError(
            f"{type(module).__name__}.forward returned {type(result).__name__}; expected one tensor"
        )
    return np.asarray(result.numpy())


def check_output(
    module: torch.nn.Module, inputs: Sequence[TensorSpec], dims: Sequence[int | None], what: str
) -> tuple[int, ...]:
    """Run the module on three rows of padding and check its output.

    Parameters
    ----------
    module
        A module as :func:`frozen` gives it.
    inputs
        Its inputs, as :func:`forward_inputs` gives them.
    dims
        The expected output shape without the batch axis; None is a free length.
    what
        What the caller calls the module, for messages.

    Returns
    -------
    tuple
        The output's shape without the batch axis.

    Raises
    ------
    ExportInputError
        If the module fails on these shapes, or its output has another shape or dtype, or is NaN for
        padding: an empty history or an empty slot must still give a number.
    """
    batch = 3
    try:
        output = run_module(module, example_inputs(inputs, batch))
    except ExportInputError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{spec.name} {spec.dtype} {[batch, *spec.dims]}" for spec in inputs)
        raise ExportInputError(f"{what}: forward failed on ({shapes}): {error}") from error
    wanted = "[" + ", ".join(["B", *("any" if dim is None else str(dim) for dim in dims)]) + "]"
    fits = len(output.shape) == len(dims) + 1 and output.shape[0] == batch
    fits = fits and all(dim is None or dim == size for dim, size in zip(dims, output.shape[1:], strict=True))
    if not fits or output.dtype != np.float32:
        raise ExportInputError(
            f"{what}: expected float32 {wanted}, came {output.dtype} {list(output.shape)} for a batch of "
            f"{batch}"
        )
    if np.isnan(output).any():
        raise ExportInputError(
            f"{what}: the output for padding (all inputs 0, history_length 0) holds NaN; guard the division "
            "by the history's length, for example with clamp(min=1)"
        )
    return tuple(int(size) for size in output.shape[1:])


def export_onnx(
    module: torch.nn.Module,
    path: Path,
    *,
    inputs: Sequence[TensorSpec],
    output: str,
    max_batch: int,
    build_id: str,
) -> None:
    """Write the module as an ONNX file with a dynamic batch of 1 to ``max_batch``.

    Parameters
    ----------
    module
        A module as :func:`frozen` gives it.
    path
        The file to write; its folder exists.
    inputs
        The inputs, in the order of the graph's inputs.
    output
        The name of the one output.
    max_batch
        The largest batch that will be asked for.
    build_id
        Goes into the model's metadata.

    Raises
    ------
    ExportError
        If torch cannot express the module as one graph, or the graph needs operators that ONNX
        Runtime does not have.
    """
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
    if weights > EXTERNAL_DATA_BYTES:
        onnx.save_model(
            model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024
        )
        onnx.checker.check_model(str(path))
    else:
        onnx.checker.check_model(model, full_check=True)
        onnx.save_model(model, str(path))


def onnx_build_id(path: Path) -> str | None:
    """Return the build id that lies in an ONNX file's metadata, or None."""
    model = onnx.load(str(path), load_external_data=False)
    return next((entry.value for entry in model.metadata_props if entry.key == BUILD_ID_KEY), None)


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
