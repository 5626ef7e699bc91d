"""Refit a plan with new weights, for a release that differs from an earlier one only in its weights.

A plan that was built with the flag REFIT accepts other weights for the same graph, in a fraction of the time
of a build (NVIDIA's documentation, "Refitting an engine"). This project's tests have no GPU and run this
against a test double.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...errors import ArtefactCorrupt, ArtefactMissing, EngineBuildFailed
from ..bound import Bound
from .build import make_logger
from .flavours import Flavour, Module
from .specification import BuildSpecification


def unfit(old: Path, flavour: Flavour, version: str, device: str, wanted: BuildSpecification) -> str | None:
    """Return why a plan can't be refitted with the weights of another graph, or None.

    Parameters
    ----------
    old
        The plan, with its :class:`~..bound.Bound` and its specification beside it.
    flavour, version, device
        The library, its version and the device of a new build.
    wanted
        The specification of the new build.
    """
    try:
        bound, specification = Bound.read(old), BuildSpecification.read(old.parent)
    except (ArtefactMissing, ArtefactCorrupt) as error:
        return str(error)
    if not old.is_file():
        return f"{old} is not there"
    if not bound.refittable:
        return f"{old} was built without --refittable"
    there, here = (bound.library, bound.version, bound.device), (flavour.name, version, device)
    if there != here:
        built = f"{bound.library} {bound.version} for {bound.device}"
        return f"{old} was built with {built}, here is {flavour.name} {version}, {device}"
    same = {"network": "", "network_sha256": ""}
    ours, theirs = (msgspec.structs.replace(one, **same) for one in (wanted, specification))
    if not wanted.structure_sha256 or ours != theirs:
        return f"{old} was built of a graph that differs in more than its weights"
    return None


def refit_plan(trt: Module, flavour: Flavour, old: Path, network: Path) -> bytes:
    """Return a plan with the weights of another graph of the same structure.

    Parameters
    ----------
    trt
        TensorRT's or TensorRT-RTX's module.
    flavour
        Its row.
    old
        A refittable plan for this machine.
    network
        The ONNX file with the new weights.

    Raises
    ------
    EngineBuildFailed
        The library rejects the plan or the weights; the message has its reason.
    """
    said: list[str] = []
    logger = make_logger(trt, said)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(old.read_bytes())
    if engine is not None:
        refitter = trt.Refitter(engine, logger)
        parser = trt.OnnxParserRefitter(refitter, logger)
        if not parser.refit_from_file(str(network)):
            said += [parser.get_error(place).desc() for place in range(parser.num_errors)]
        elif missing := list(refitter.get_missing_weights()):
            said.append(f"the graph lacks the weights {', '.join(missing[:5])}")
        elif refitter.refit_cuda_engine():
            return bytes(engine.serialize())
    raise EngineBuildFailed(
        f"{network}: {flavour.name} {trt.__version__} could not put its weights into {old} "
        f"({' | '.join(said[-3:]) or 'it said nothing'}); build without --refit"
    )
