"""Weights as safetensors, without pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tiercel_serving.machine_faults import fault_of

from ..errors import TrainingError


def save_weights(module: torch.nn.Module, path: Path) -> None:
    """Write a module's parameters as one safetensors file.

    Tensors that the module shares under several names are written under each.
    """
    # safetensors refuses views of one storage, hence the copies.
    save_file(
        {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}, path
    )


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Read what :func:`save_weights` wrote into a module of the same shape; else raise TrainingError."""
    if not path.is_file():
        raise TrainingError(f"{path}: expected a model's weights, found no file; train again")
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise fault_of(error, path) or TrainingError(
            f"{path}: these are not the weights of this {type(module).__name__} ({error}); train again"
        ) from error
