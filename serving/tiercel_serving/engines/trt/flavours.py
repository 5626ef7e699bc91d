"""Where TensorRT and TensorRT-RTX differ: one row each. All else that we call has the same name in both."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import KindUnavailable

#: A TensorRT module, of either flavour. Its objects are typed by ``tensorrt-stubs`` where we hold them.
Module = Any


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries.

    Parameters
    ----------
    name
        What its plans say that they were built by.
    modules
        Names under which its Python module may be installed, the first that is there wins.
    since, below
        The versions that this builder was written for: from ``since`` on, and before ``below``.
    remedy
        What to do where it is not installed, or is of another version.
    portable
        Whether a plan is built on any machine and runs on each of ``capabilities``; else it is built on the
        GPU that will run it, and runs on that model alone.
    capabilities
        Compute capabilities of the GPUs that it supports; empty where it is not the plan's matter.
    timing_cache
        Whether what it measured of kernels can be kept for the next build. TensorRT-RTX measures nothing.
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

#: Every name of the module that the builder and the runner use. A test compares them with the real bindings.
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
    """Return the flavour's module, or None where none is installed.

    Type stubs alone make an empty package of the same name, which is none.
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
        It is not installed, or of a version that this was not written for.
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
