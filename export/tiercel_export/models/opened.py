"""From models as the caller gives them, torch modules or ONNX, to models that can be run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch

from tiercel_serving.spec import Array, TensorSpec

from ..errors import ExportInputError
from .dense import check_output, check_weights, forward_inputs, frozen, run_module
from .onnx_model import OnnxModel

#: Rows per batch when a model runs over a whole table.
_BLOCK = 4096


def open_model(
    given: object, available: Mapping[str, TensorSpec], output: str, what: str
) -> tuple[torch.nn.Module | OnnxModel, tuple[TensorSpec, ...]]:
    """Return a model that :func:`~.dense.run_module` can run, and the specs of its inputs.

    Parameters
    ----------
    given
        A torch module, which is copied and frozen; the path of an ONNX file; or an ONNX graph.
    available
        Name → spec of every tensor that it may take.
    output
        The stage's name for the output.
    what
        The caller's name for the model, for messages.

    Raises
    ------
    ExportInputError
        It is none of these, its weights are not finite, or it does not fit the stage.
    """
    if isinstance(given, torch.nn.Module):
        still = frozen(given)
        check_weights(still, what)
        return still, forward_inputs(still, available, what)
    if isinstance(given, str | Path | onnx.ModelProto):
        model = OnnxModel(given, available, output, what)
        return model, model.inputs
    raise ExportInputError(
        f"{what}: expected a torch module, the path of an ONNX file or an onnx.ModelProto, got "
        f"{type(given).__name__}"
    )


def run_over_rows(
    given: object,
    available: Mapping[str, TensorSpec],
    arrays: Mapping[str, Array],
    rows: int,
    what: str,
) -> Array:
    """Run a model that computes one vector per row over whole tables, block by block.

    Parameters
    ----------
    given
        The model, as for :func:`open_model`.
    available
        Name → spec of every tensor that it may take.
    arrays
        Those tensors, ``[rows, …]``.
    rows
        The number of rows.
    what
        The caller's name for the model, for messages.

    Returns
    -------
    ``[rows, D]`` float32.

    Raises
    ------
    ExportInputError
        As for :func:`open_model`, or its output is not ``[B, D]`` float32.
    """
    model, inputs = open_model(given, available, "vectors", what)
    check_output(model, inputs, [None], what)
    blocks = [
        run_module(model, {spec.name: arrays[spec.name][start : start + _BLOCK] for spec in inputs})
        for start in range(0, rows, _BLOCK)
    ]
    return np.concatenate(blocks)
