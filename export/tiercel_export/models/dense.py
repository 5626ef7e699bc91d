"""Torch modules: their inputs and outputs, and running them on named arrays.

The names of ``forward``'s parameters select the packed tensors that the model takes; there is no other
wiring. The batch is the only dynamic axis. The number of candidates K, the history length L and the widths
of the packed tensors are constants of the graph, so an engine can plan its memory and fuse its kernels.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from tiercel_serving.spec import Array, TensorSpec

from ..errors import ExportInputError


class Runs(Protocol):
    """A model that is not a torch module, such as an ONNX graph."""

    def run(self, arrays: Mapping[str, Array]) -> Array:
        """Return its one output for its inputs ``[B, …]``."""
        ...


def forward_inputs(
    module: torch.nn.Module, available: Mapping[str, TensorSpec], what: str
) -> tuple[TensorSpec, ...]:
    """Return the specs of the tensors that ``module.forward`` takes, in the order of its parameters.

    Parameters
    ----------
    module
        The torch module.
    available
        Name → spec of every tensor that the stage can provide.
    what
        The caller's name for the module, for messages.

    Raises
    ------
    ExportInputError
        If a parameter without a default is not an available tensor, if ``forward`` takes none of them, or if
        it has ``*args``, ``**kwargs`` or positional-only parameters, which can't be passed by name.
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
                f"{what}: forward names a parameter {parameter.name!r}, which is not a tensor of this stage; "
                f"available here: {', '.join(sorted(available))}"
            )
    if not chosen:
        raise ExportInputError(
            f"{what}: forward takes none of the tensors of this stage ({', '.join(sorted(available))}), so "
            "its answer would be the same for everybody"
        )
    return tuple(chosen)


def example_inputs(inputs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Return zeros for each input, ``[batch, *dims]``; id 0 is padding in every vocabulary."""
    return {spec.name: np.zeros((batch, *spec.dims), spec.numpy_dtype) for spec in inputs}


def frozen(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of the module on the CPU, in evaluation mode; the original is not changed."""
    return copy.deepcopy(module).cpu().eval()


def check_weights(module: torch.nn.Module, what: str) -> None:
    """Refuse a module with weights that are not finite, which :func:`check_output`, on padding, may miss.

    Raises
    ------
    ExportInputError
        A parameter contains NaN or infinity, or a buffer NaN. Buffers may be infinite, as masks are.
    """
    held: list[tuple[str, torch.Tensor, torch.Tensor]] = [
        (name, weight, ~torch.isfinite(weight)) for name, weight in module.named_parameters()
    ]
    held += [(name, buffer, torch.isnan(buffer)) for name, buffer in module.named_buffers()]
    for name, weight, bad in held:
        wrong = int(bad.sum())
        if wrong:
            raise ExportInputError(
                f"{what}: {wrong} of the {weight.numel()} numbers of its weight {name!r} are NaN or "
                "infinite; the training diverged: train again with a lower learning rate, or from an earlier "
                "checkpoint"
            )


def run_module(module: torch.nn.Module | Runs, arrays: Mapping[str, Array]) -> Array:
    """Run a module on named arrays without gradients and return its one output.

    Raises
    ------
    ExportInputError
        ``forward`` does not return one tensor.
    """
    if not isinstance(module, torch.nn.Module):
        return module.run(arrays)
    with torch.inference_mode():
        result = module(**{name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    if not isinstance(result, torch.Tensor):
        raise ExportInputError(
            f"{type(module).__name__}.forward returned {type(result).__name__}; expected one tensor"
        )
    return np.asarray(result.numpy())


def check_output(
    module: torch.nn.Module | Runs, inputs: Sequence[TensorSpec], dims: Sequence[int | None], what: str
) -> tuple[int, ...]:
    """Run the module on three rows of padding and check its output.

    Parameters
    ----------
    module
        A module as returned by :func:`frozen`, or an ONNX model.
    inputs
        Its inputs, as returned by :func:`forward_inputs`.
    dims
        The expected output shape without the batch axis; None allows any length.
    what
        The caller's name for the module, for messages.

    Returns
    -------
    tuple
        The output's shape without the batch axis.

    Raises
    ------
    ExportInputError
        If the module fails on these shapes, or its output has another shape or dtype, or contains NaN for
        padding. An empty history or an empty slot must still produce a number.
    """
    batch = 3
    try:
        output = run_module(module, example_inputs(inputs, batch))
    except ExportInputError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{spec.name} {spec.dtype} {[batch, *spec.dims]}" for spec in inputs)
        how = "forward" if isinstance(module, torch.nn.Module) else "the graph"
        raise ExportInputError(f"{what}: {how} failed on ({shapes}): {error}") from error
    wanted = "[" + ", ".join(["B", *("any" if dim is None else str(dim) for dim in dims)]) + "]"
    fits = len(output.shape) == len(dims) + 1 and output.shape[0] == batch
    fits = fits and all(dim is None or dim == size for dim, size in zip(dims, output.shape[1:], strict=True))
    if not fits or output.dtype != np.float32:
        raise ExportInputError(
            f"{what}: expected float32 {wanted}, got {output.dtype} {list(output.shape)} for a batch of "
            f"{batch}"
        )
    if np.isnan(output).any():
        raise ExportInputError(
            f"{what}: the output for padding (all inputs 0, history_length 0) holds NaN; guard the division "
            "by the history's length, for example with clamp(min=1)"
        )
    return tuple(int(size) for size in output.shape[1:])
