"""``make_onnx`` with a cache: an export takes seconds, and has its own tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import nn

from tiercel_export.models.onnx import make_onnx
from tiercel_serving.engines.onnx import Onnx


class CachedExport:
    """Caches by the module's class and weights, and by the inputs."""

    def __init__(self) -> None:
        self._models: dict[Any, dict[str, bytes]] = {}

    def __call__(self, module: nn.Module, folder: Path, *, build_id: str, **options: Any) -> tuple[str, ...]:
        if not isinstance(module, nn.Module):  # an ONNX model is only copied
            return make_onnx(module, folder, build_id=build_id, **options)
        state = [(name, value.numpy().tobytes()) for name, value in module.state_dict().items()]
        key = (type(module).__name__, tuple(state), repr(sorted(options.items())))
        if key not in self._models:
            make_onnx(module, folder, build_id="cached", **options)
            # Large weights are in a separate file.
            self._models[key] = {path.name: path.read_bytes() for path in folder.glob(f"{Onnx.file}*")}
        for name, data in self._models[key].items():
            (folder / name).write_bytes(data)
        model = onnx.load_from_string(self._models[key][Onnx.file])
        model.metadata_props[0].value = build_id
        (folder / Onnx.file).write_bytes(model.SerializeToString())
        return ()


@contextmanager
def cached_export() -> Iterator[None]:
    """Make the engine ``onnx`` use the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiercel_export.models.onnx.make_onnx", CachedExport())
        yield
