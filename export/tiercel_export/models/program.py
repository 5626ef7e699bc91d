"""torch module → ``torch.export`` program with a dynamic batch: the first step for every compiled engine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from tiercel_serving.spec import TensorSpec

from ..errors import ExportError
from .dense import example_inputs


def batch_program(
    module: torch.nn.Module, inputs: Sequence[TensorSpec], max_batch: int, what: str
) -> tuple[torch.export.ExportedProgram, dict[str, torch.Tensor]]:
    """Trace a module with a batch of 1 to ``max_batch``; return the program and its example inputs.

    Parameters
    ----------
    module
        A module as :func:`~.dense.frozen` gives it.
    inputs
        Its inputs, in the program's order.
    max_batch
        The largest batch that will be requested.
    what
        Name of the model, for messages.

    Raises
    ------
    ExportError
        If torch cannot express the module as one graph.
    """
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    # Two rows, because torch.export would specialise a batch of 1 as a constant.
    example = {name: torch.from_numpy(value).to(device) for name, value in example_inputs(inputs, 2).items()}
    batch = torch.export.Dim("batch", min=1, max=max(max_batch, 2))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module, (), example, dynamic_shapes={name: {0: batch} for name in example}, strict=False
            )
    except Exception as error:
        raise ExportError(
            f"{what}: torch could not export {type(module).__name__} with a dynamic batch: "
            f"{first_lines(error)}. The batch is axis 0 of every input and must stay free: no Python `if` "
            "on tensor values, no shape written as a number"
        ) from error
    return program, example


def first_lines(error: Exception, lines: int = 3) -> str:
    """Return the first lines of an error's message, joined into one line."""
    return " ".join(str(error).strip().splitlines()[:lines])
