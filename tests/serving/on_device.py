"""Releases whose stages run in torch, on the CPU or on a GPU, so that one set of tests covers both."""

from __future__ import annotations

from typing import Any

import msgspec
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tiercel_serving.device.graphs_torch import Captured, Run
from tiercel_serving.release.opened import Release

#: The devices that tests of tensors run on.
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

#: The CPU with a stand-in for CUDA graph capture.
CAPTURED = "cpu, captured"


#: Operations that CUDA refuses during capture: they synchronise, or copy from or to the host.
REFUSED = (
    {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "bincount", "unique_dim"}
    | {"_unique2", "unique_consecutive", "lift_fresh", "_pin_memory", "repeat_interleave", "_to_cpu"}
)  # fmt: skip


class Capturing(TorchDispatchMode):
    """Enforces the rules of CUDA graph capture: no synchronisation, no host copies, nothing kept but outputs.

    Graphs of one instance share their memory, so a replay overwrites what an earlier run keeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[StorageWeakRef] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        picked = name.startswith("index") and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in tree_leaves(args[1:])
        )
        crosses = "device" in (kwargs or {}) and name in ("_to_copy", "copy", "copy_")
        # Not a RuntimeError: the code falls back to running without capture on that.
        if name in REFUSED or picked or crosses:
            raise AssertionError(f"{func}: CUDA refuses it in a capture")
        read = {storage_of(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and storage_of(one) not in read:
                self._made.append(StorageWeakRef(one.untyped_storage()))
        return out

    def check_kept(self, outputs: list[Tensor]) -> None:
        """Fail if a tensor made during the capture is still alive and is not an output."""
        given = {storage_of(one) for one in outputs}
        kept = [one for one in self._made if not one.expired() and one.cdata not in given]
        assert not kept, f"{len(kept)} tensors of a capture are kept: the next replay writes over them"


class Kernels(TorchDispatchMode):
    """Counts the operations for which a GPU would start a kernel: those that write, not views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = {storage_of(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        writes = name.endswith("_") or any(
            isinstance(one, Tensor) and storage_of(one) not in read for one in tree_leaves(out)
        )
        self.count += writes and "empty" not in name
        return out


def storage_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def capture_double(run: Run, inputs: list[Tensor]) -> Captured:
    """Imitate a CUDA graph: it reads these input buffers and writes these output buffers on every replay."""
    run(inputs)  # before the capture, as constants are made in the first run
    with Capturing() as capturing:
        outputs = run(inputs)
    capturing.check_kept(outputs)

    def replay() -> None:
        for kept, new in zip(outputs, run(inputs), strict=True):
            kept.copy_(new)

    return Captured(replay, outputs)


#: The engine of models on a GPU; without a CUDA provider, models run on the host and tensors are copied.
ON_CUDA = "onnx-cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "onnx"

#: Device → the target whose stages run there, and the engine of its models.
TARGETS = {"cpu": ("torch", "onnx"), "cuda": ("gpu", ON_CUDA)}


def on_device(release: Release, device: str, **settings: Any) -> Release:
    """Return the same release for another target, without writing a file."""
    target, engine = TARGETS[device.partition(",")[0]]
    manifest = release.manifest
    ranking = manifest.ranking
    return Release(
        release.path,
        msgspec.structs.replace(
            manifest,
            target=target,
            queries={
                name: msgspec.structs.replace(one, engine=engine) for name, one in manifest.queries.items()
            },
            ranking=None if ranking is None else msgspec.structs.replace(ranking, engine=engine),
            settings=msgspec.structs.replace(manifest.settings, **settings),
        ),
    )
