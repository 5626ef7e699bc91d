"""The differences between TensorRT and TensorRT-RTX, a row for each; all other calls have the same names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import KindUnavailable

#: A TensorRT module of either flavour; ``tensorrt-stubs`` types its objects where we annotate them.
Module = Any


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries.

    Parameters
    ----------
    name
        The name that its plans record as their builder's.
    modules
        Names under which its Python module may be installed; the first one found is used.
    since, below
        The versions (major, minor) that this builder was written for: from ``since`` on, and before
        ``below``.
    remedy
        What errors advise if it is not installed, or has another version.
    portable
        Whether a plan can be built on any machine and runs on each of ``capabilities``. If not, it is built
        on the GPU that will run it, and runs on that model only.
    capabilities
        Compute capabilities of the GPUs that it supports; empty if plans are not restricted to a list.
    timing_cache
        Whether its kernel timings can be kept for the next build. TensorRT-RTX measures none.
    """

    name: str
    modules: tuple[str, ...]
    since: tuple[int, int]
    below: tuple[int, int]
    remedy: str
    portable: bool
    capabilities: tuple[str, ...]
    timing_cache: bool


#: Every flavour by its name.
FLAVOURS: Mapping[str, Flavour] = {
    "tensorrt": Flavour(
        name="tensorrt",
        modules=("tensorrt", "tensorrt_bindings.tensorrt"),
        since=(10, 12),
        below=(12, 0),
        remedy="run this in the container that will serve (NGC Triton has TensorRT; its Python module is the "
        "wheel tensorrt-cu12-bindings or -cu13-bindings of that very version), or export for another target",
        portable=False,
        capabilities=(),
        timing_cache=True,
    ),
    "tensorrt_rtx": Flavour(
        name="tensorrt_rtx",
        modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
        since=(1, 1),
        below=(2, 0),
        remedy='run pip install "tiercel[tensorrt-rtx]"',
        portable=True,
        capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
        timing_cache=False,
    ),
}

#: Every name of the module that we use, by class. A test compares them with the real bindings.
NAMES: Mapping[str, tuple[str, ...]] = {
    "": (
        *("__version__", "Builder", "ILogger", "OnnxParser", "OnnxParserRefitter", "Refitter", "Runtime"),
        *("BuilderFlag", "MemoryPoolType", "NetworkDefinitionCreationFlag", "TensorIOMode", "nptype"),
    ),
    "Builder": (
        "create_network",
        "create_builder_config",
        "create_optimization_profile",
        "build_serialized_network",
    ),
    "BuilderFlag": ("REFIT", "TF32"),
    "IBuilderConfig": (
        "add_optimization_profile",
        "clear_flag",
        "create_timing_cache",
        "get_timing_cache",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    ),
    "ICudaEngine": (
        "create_execution_context",
        "device_memory_size_v2",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "num_io_tensors",
        "serialize",
    ),
    "IExecutionContext": (
        "execute_async_v3",
        "get_tensor_shape",
        "set_input_shape",
        "set_tensor_address",
    ),
    "INetworkDefinition": ("get_input", "get_output", "num_inputs", "num_layers", "num_outputs"),
    "IOptimizationProfile": ("set_shape",),
    "ITensor": ("dtype", "name", "shape"),
    "ITimingCache": ("serialize",),
    "ILogger": ("Severity",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "OnnxParser": ("get_error", "num_errors", "parse_from_file"),
    "OnnxParserRefitter": ("get_error", "num_errors", "refit_from_file"),
    "ParserError": ("desc", "node_name", "node_operator"),
    "Refitter": ("get_missing_weights", "refit_cuda_engine"),
    "Runtime": ("deserialize_cuda_engine",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
}


def find_module(flavour: Flavour) -> Module | None:
    """Return the flavour's module, or None if it is not installed.

    Type stubs install an empty package of the same name, which does not count.
    """
    for name in flavour.modules:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module, "Builder"):
            return module
    return None


def load(flavour: Flavour) -> Module:
    """Return the flavour's module.

    Raises
    ------
    KindUnavailable
        It is not installed, or its version is outside the supported range.
    """
    module = find_module(flavour)
    since, below = (".".join(map(str, version)) for version in (flavour.since, flavour.below))
    if module is None:
        raise KindUnavailable(
            f"{flavour.name}: expected its Python module {flavour.modules[0]} ({since} up to, not including, "
            f"{below}), which is not installed; {flavour.remedy}"
        )
    version = tuple(int(part) for part in str(module.__version__).split(".")[:2])
    if not flavour.since <= version < flavour.below:
        raise KindUnavailable(
            f"{flavour.name}: expected {since} up to, not including, {below}, got {module.__version__}; "
            f"{flavour.remedy}"
        )
    return module
