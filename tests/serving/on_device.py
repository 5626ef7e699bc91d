"""Releases whose stages run in torch, on the CPU or on a GPU: the same tests for both."""

from __future__ import annotations

from typing import Any

import msgspec
import onnxruntime
import pytest
from torch import Tensor

from tiercel_serving.device.graphs_torch import Captured, Run
from tiercel_serving.release.opened import Release

#: The devices that a test of tensors runs on.
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

#: The CPU with a double of CUDA graphs.
CAPTURED = "cpu, captured"


def capture_double(run: Run, inputs: list[Tensor]) -> Captured:
    """As a graph does it: reads these buffers and writes those, whatever it is told later."""
    outputs = run(inputs)

    def replay() -> None:
        for kept, new in zip(outputs, run(inputs), strict=True):
            kept.copy_(new)

    return Captured(replay, outputs)


#: The engine of models on a GPU: on the host, where ONNX Runtime has no CUDA provider; tensors cross then.
ON_CUDA = "onnx-cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "onnx"

#: Device → the target whose stages run there, and the engine of its models.
TARGETS = {"cpu": ("torch", "onnx"), "cuda": ("gpu", ON_CUDA)}


def on_device(release: Release, device: str, **settings: Any) -> Release:
    """The same release for another target; nothing is written."""
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
