"""Checkpoints without pickle: weights as safetensors, everything else as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

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
    """Read what :func:`save_weights` wrote into a module of the same shape.

    Raises
    ------
    TrainingError
        If the file is missing, is no safetensors file, or holds other tensors than the module has.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: expected a model's weights, found no file; train again")
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise TrainingError(
            f"{path}: these are not the weights of this {type(module).__name__} ({error}); train again"
        ) from error


def save_json(data: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file; NaN and infinity, which are no JSON, are refused."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    TrainingError
        If the file is missing or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: expected a JSON file ({error}); train again") from error
    if not isinstance(data, dict):
        raise TrainingError(f"{path}: expected a JSON object, found {type(data).__name__}; train again")
    return data
