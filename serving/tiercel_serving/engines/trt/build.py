"""The one builder: an ONNX file → a plan, by the TensorRT module that it is given.

The network is strongly typed: what is computed in half precision is said by the graph
(``tiercel_export.models.casts``), not by flags, which TensorRT 11 no longer has.
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
        What the runtime deserialises.
    inputs
        Name → NumPy dtype, in the network's order.
    outputs
        Names, in the network's order.
    layers
        How many layers the parsed network has.
    timing_cache
        What was measured of kernels, for the next build; empty where the flavour measures nothing.
    """

    plan: bytes
    inputs: dict[str, str]
    outputs: tuple[str, ...]
    layers: int
    timing_cache: bytes = b""


def network_sha256(file: Path) -> str:
    """Return the checksum of an ONNX file and of the weights beside it."""
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
        Where the graph lies.
    specification
        What to build.
    timing_cache
        What an earlier build on this device measured.
    refittable
        Whether it shall take other weights later, at the price of what is fused with constants.

    Raises
    ------
    ArtefactCorrupt
        The graph is not the one that the specification speaks of.
    EngineBuildFailed
        The parser lacks an operator, or no kernel does what a layer asks for; the message names the layer.
    """
    file = folder / specification.network
    if network_sha256(file) != specification.network_sha256:
        raise ArtefactCorrupt(f"{file}: the graph was changed after its export; export again")
    with _parsed(trt, file) as (builder, network, log):
        config: tensorrt.IBuilderConfig = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, specification.workspace_mb << 20)
        # TF32 keeps ten bits of each factor: what shall be float32 would be compared with torch in vain.
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
    """Return what the real parser has against a graph, one line a layer; empty if it takes it."""
    try:
        with _parsed(trt, file):
            return []
    except EngineBuildFailed as error:
        return str(error).splitlines()


def _numpy_dtype(trt: Module, tensor: tensorrt.ITensor) -> Any:
    import numpy as np

    return np.dtype(trt.nptype(tensor.dtype))


class _Log:
    """What the library said that was worse than a warning."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def said(self) -> str:
        """Return the last of it."""
        return " | ".join(self.errors[-3:]) or "it said nothing"


def make_logger(trt: Module, errors: list[str]) -> Any:
    """Return a logger of the library's that appends errors to a list, and is silent otherwise."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(" ".join(message.split()))

    return Logger()


@contextmanager
def _parsed(trt: Module, file: Path) -> Iterator[tuple[tensorrt.Builder, tensorrt.INetworkDefinition, _Log]]:
    """Give a builder and the parsed network; they hold what the parser read, so it lives as long."""
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
    """Return the one profile: the batch between its bounds, everything else as the graph says."""
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
