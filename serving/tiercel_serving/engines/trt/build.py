"""Build a plan from an ONNX file, with the TensorRT module that is passed in.

The network is strongly typed: the graph determines what is computed in half precision
(``tiercel_export.models.casts``). Precision flags are not used, because TensorRT 11 no longer has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArtefactCorrupt, EngineBuildFailed
from .flavours import Flavour, Module
from .specification import BuildSpecification

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True)
class Plan:
    """A built plan.

    Parameters
    ----------
    plan
        The bytes that the runtime deserialises.
    inputs
        Name → NumPy dtype, in the network's order.
    outputs
        Names, in the network's order.
    layers
        The number of layers of the parsed network.
    timing_cache
        Kernel timings for the next build; empty if the flavour measures none.
    """

    plan: bytes
    inputs: dict[str, str]
    outputs: tuple[str, ...]
    layers: int
    timing_cache: bytes = b""


def network_sha256(file: Path) -> str:
    """Return the SHA-256, in hex, of a file followed by the weights beside it (``.data``), if any."""
    digest = hashlib.sha256()
    for part in (file, file.with_name(file.name + ".data")):
        if part.is_file():
            with part.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def build_plan(
    trt: Module,
    flavour: Flavour,
    folder: Path,
    specification: BuildSpecification,
    timing_cache: bytes = b"",
    *,
    refittable: bool = False,
) -> Plan:
    """Parse a graph and build its plan.

    Parameters
    ----------
    trt
        TensorRT's or TensorRT-RTX's module.
    flavour
        Its row.
    folder
        The graph's folder.
    specification
        What to build.
    timing_cache
        Kernel timings of an earlier build on this device, or empty.
    refittable
        Whether the plan must accept other weights later, which prevents fusion with constants.

    Raises
    ------
    ArtefactCorrupt
        The graph is not the one that the specification names.
    EngineBuildFailed
        The parser does not support an operator, or no kernel implements a layer; the message names the layer.
    """
    file = folder / specification.network
    if network_sha256(file) != specification.network_sha256:
        raise ArtefactCorrupt(f"{file}: the graph was changed after its export; export again")
    with _parsed(trt, file) as (builder, network, log):
        config: tensorrt.IBuilderConfig = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, specification.workspace_mb << 20)
        # TF32 rounds each factor to a 10-bit mantissa, and float32 plans would differ from torch.
        config.clear_flag(trt.BuilderFlag.TF32)
        if refittable:
            config.set_flag(trt.BuilderFlag.REFIT)
        config.add_optimization_profile(_profile(builder, network, specification.batch, file))
        if flavour.timing_cache:
            config.set_timing_cache(config.create_timing_cache(timing_cache), ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            if refittable:
                log.errors.append("a plan that takes new weights needs a GPU and its driver to be built")
            raise EngineBuildFailed(
                f"{file}: {flavour.name} {trt.__version__} could not build it: {log.said()}; change that "
                "layer, or raise workspace_mb of build.json if it speaks of memory, or export with --engine "
                "onnx"
            )
        measured = bytes(config.get_timing_cache().serialize()) if flavour.timing_cache else b""
        inputs = [network.get_input(place) for place in range(network.num_inputs)]
        return Plan(
            bytes(plan),
            {tensor.name: str(_numpy_dtype(trt, tensor)) for tensor in inputs},
            tuple(network.get_output(place).name for place in range(network.num_outputs)),
            network.num_layers,
            measured,
        )


def parser_problems(trt: Module, file: Path) -> list[str]:
    """Return the real parser's objections to a graph, one line a layer; empty if it accepts the graph."""
    try:
        with _parsed(trt, file):
            return []
    except EngineBuildFailed as error:
        return str(error).splitlines()


def _numpy_dtype(trt: Module, tensor: tensorrt.ITensor) -> Any:
    import numpy as np

    return np.dtype(trt.nptype(tensor.dtype))


class _Log:
    """The library's messages of severity error and above."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def said(self) -> str:
        """Return the last messages, in one line."""
        return " | ".join(self.errors[-3:]) or "it said nothing"


def make_logger(trt: Module, errors: list[str]) -> Any:
    """Return a logger for the library that appends errors to a list, and ignores everything else."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(" ".join(message.split()))

    return Logger()


@contextmanager
def _parsed(trt: Module, file: Path) -> Iterator[tuple[tensorrt.Builder, tensorrt.INetworkDefinition, _Log]]:
    """Yield a builder and the parsed network; the parser owns what they refer to, so it is kept alive."""
    log = _Log()
    logger = make_logger(trt, log.errors)
    builder: tensorrt.Builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        found = [parser.get_error(place) for place in range(parser.num_errors)]
        lines = [
            f"{file}: {one.node_operator() or 'the graph'} at layer {one.node_name()!r} is not supported "
            f"({one.desc()}); write that layer with other operations, or export with --engine onnx"
            for one in found
        ]
        raise EngineBuildFailed("\n".join(lines) or f"{file}: not read ({log.said()}); export again")
    yield builder, network, log
    del parser


def _profile(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    batch: tuple[int, int, int],
    file: Path,
) -> tensorrt.IOptimizationProfile:
    """Return the one profile: a batch between its bounds, and all other sizes as in the graph."""
    profile = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        first, *rest = tuple(tensor.shape)
        if first != -1 or -1 in rest:
            raise EngineBuildFailed(
                f"{file}: input {tensor.name!r} has the shape {[first, *rest]}; expected the batch, axis 0, "
                "to be its one dynamic axis: candidates K and lengths are constants of a plan, another K is "
                "another plan"
            )
        profile.set_shape(tensor.name, *((size, *rest) for size in batch))
    return profile
