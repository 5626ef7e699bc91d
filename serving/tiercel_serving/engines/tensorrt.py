"""``tensorrt…`` and ``tensorrt-rtx…``: a plan that TensorRT or TensorRT-RTX built from the ONNX graph.

Each row is a flavour and a precision. A row below float32 is for rankers only. A release with such a ranker
runs its query models with the row :attr:`~.table.Reduced.full`, because their outputs decide which candidates
are found, and they gain little: they multiply one row per user.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from ..errors import ArtefactCorrupt, DeviceUnavailable, EngineMismatch, EngineNotBuilt, KindUnavailable
from ..verify.compare import ENGINE, Tolerance
from .bound import SUFFIX, Bound
from .trt.build import build_plan, network_sha256
from .trt.cuda import Device, find_device, runtime
from .trt.flavours import FLAVOURS, Flavour, find_module, load
from .trt.refit import refit_plan, unfit
from .trt.specification import BuildSpecification

if TYPE_CHECKING:
    from .trt.run import PlanEngine

#: The file beside the plan that keeps TensorRT's kernel timings on this device.
TIMING_CACHE = "timing.cache"

#: For FP16 and BF16, whose factors have 11 and 8 significant bits: the error of their products, accumulated
#: in float32 through a ranker's layers, and the least share of rankings whose best items stay the same.
HALF, BRAIN = Tolerance(2e-2, 1e-2, same_top=0.99), Tolerance(1e-1, 5e-2, same_top=0.99)

#: For FP8, with 4 significant bits, and INT8, with 8 bits at a fixed scale: in one of twenty rankings the
#: best items may differ.
EIGHT = Tolerance(2e-1, 1e-1, same_top=0.95)

#: The lowest compute capability that supports FP8 products.
FP8_SINCE = (8, 9)


class TensorRT:
    """TensorRT in float32, on the GPU that built it."""

    file: ClassVar[str] = "model.plan"
    tolerance: ClassVar[Tolerance] = ENGINE
    device: ClassVar[str] = "cuda"
    backend: ClassVar[str | None] = "tensorrt"
    maker: ClassVar[str] = "tiercel_export.models.tensorrt:make_tensorrt"
    stand_in: ClassVar[str] = "onnx"
    # None, because opening a plan compares it with the graph beside it.
    build_reads: ClassVar[tuple[str, ...]] = ()
    from_onnx: ClassVar[bool] = True
    #: A row of :data:`~.trt.flavours.FLAVOURS`.
    flavour: ClassVar[str] = "tensorrt"
    #: The lowest compute capability that supports its products.
    since: ClassVar[tuple[int, int]] = (0, 0)

    @classmethod
    def open(cls, file: Path, outputs: Sequence[str], *, threads: int = 1) -> PlanEngine:
        """Open a plan; see :class:`~.table.EngineKind`.

        Raises
        ------
        EngineNotBuilt
            There is no plan yet.
        EngineMismatch, DeviceUnavailable, KindUnavailable
            The plan is not for this machine, or the machine lacks a GPU, memory or the library.
        """
        if not file.is_file():
            raise EngineNotBuilt(f"{file}: not built yet; {_BUILD}")
        from .trt.run import PlanEngine

        flavour = FLAVOURS[cls.flavour]
        if any(cls.since):
            cls._refuse_older(file, find_device(runtime()))
        return PlanEngine(file, outputs, flavour, load(flavour), runtime())

    @classmethod
    def absent(cls, file: Path) -> str | None:
        """Return why the plan can't run here although the release is intact, or None."""
        if not file.is_file():
            return f"the plan is not built yet; {_BUILD}"
        try:
            find_device(runtime())
        except (DeviceUnavailable, ModuleNotFoundError) as error:
            return f"the plan can't run here: {error}"
        return None

    @classmethod
    def build(
        cls, folder: Path, cache: Path | None = None, *, refittable: bool = False, old: Path | None = None
    ) -> str:
        """Build the plan that a folder specifies, unless it exists; see :class:`~.table.BuiltKind`.

        Raises
        ------
        KindUnavailable, DeviceUnavailable
            The machine lacks the library, or the GPU that the plan is for.
        EngineBuildFailed, ArtefactCorrupt
            The graph can't be built, or was changed after its export.
        """
        flavour = FLAVOURS[cls.flavour]
        trt, device = load(flavour), _device(flavour)
        if device is not None:
            cls._refuse_older(folder / cls.file, device)
        wanted, file = BuildSpecification.read(folder), folder / cls.file
        version, here = str(trt.__version__), _described(flavour, device)
        refittable = refittable or old is not None
        if _is_of(file, flavour, version, here, wanted, refittable):
            return "was built before"
        stored = None if cache is None else cache / _key(flavour, version, here, wanted, refittable)
        if stored is not None and _is_of(stored / cls.file, flavour, version, here, wanted, refittable):
            _copy(stored, folder, cls.file)
            return "from the cache"
        reason = "" if old is None else unfit(old / cls.file, flavour, version, here, wanted)
        if old is not None and reason is None:
            said = _refit(trt, flavour, folder, old, cls.file)
        else:
            said = _build(trt, flavour, folder, cls.file, here, refittable)
            said += f"; built anew: {reason}" if reason else ""
        if stored is not None:
            stored.mkdir(parents=True, exist_ok=True)
            _copy(folder, stored, cls.file)
        return said

    @classmethod
    def _refuse_older(cls, file: Path, device: Device) -> None:
        """Refuse a GPU that does not support this row's products."""
        if tuple(int(part) for part in device.capability.split(".")) < cls.since:
            least, row = ".".join(map(str, cls.since)), cls.flavour.replace("_", "-")
            raise EngineMismatch(
                f"{file}: it multiplies in FP8, which GPUs of compute capability {least} and later do; this "
                f"GPU is {device}. Export with --engine {row}-int8 or {row}-fp16"
            )


class TensorRTHalf(TensorRT):
    """Matrix products in FP16."""

    tolerance: ClassVar[Tolerance] = HALF
    maker: ClassVar[str] = "tiercel_export.models.tensorrt:make_tensorrt_fp16"
    full: ClassVar[str] = "tensorrt"


class TensorRTBrain(TensorRT):
    """Matrix products in BF16."""

    tolerance: ClassVar[Tolerance] = BRAIN
    maker: ClassVar[str] = "tiercel_export.models.tensorrt:make_tensorrt_bf16"
    full: ClassVar[str] = "tensorrt"


class TensorRTInt8(TensorRT):
    """Wide matrix products in INT8."""

    tolerance: ClassVar[Tolerance] = EIGHT
    maker: ClassVar[str] = "tiercel_export.models.tensorrt:make_tensorrt_full"
    calibrator: ClassVar[str] = "tiercel_export.models.tensorrt:calibrate_tensorrt_int8"
    full: ClassVar[str] = "tensorrt"

    @classmethod
    def unmakeable(cls) -> str | None:
        """Return why an export can't make it on this machine; see :class:`~.table.NeedsTools`."""
        return _no_modelopt()


class TensorRTFP8(TensorRTInt8):
    """Wide matrix products in FP8."""

    calibrator: ClassVar[str] = "tiercel_export.models.tensorrt:calibrate_tensorrt_fp8"
    since: ClassVar[tuple[int, int]] = FP8_SINCE


class TensorRTRTX(TensorRT):
    """TensorRT-RTX in float32: built at export on any machine, compiled further where it is loaded."""

    # Its plans need TensorRT-RTX's own runtime, which Triton's TensorRT backend lacks.
    backend: ClassVar[str | None] = None
    maker: ClassVar[str] = "tiercel_export.models.tensorrt:make_tensorrt_rtx"
    flavour: ClassVar[str] = "tensorrt_rtx"

    @classmethod
    def unmakeable(cls) -> str | None:
        """Return why an export can't make it on this machine; see :class:`~.table.NeedsTools`."""
        try:
            load(FLAVOURS[cls.flavour])
        except KindUnavailable as error:
            return str(error)
        return None


class TensorRTRTXHalf(TensorRTRTX):
    """Matrix products in FP16."""

    tolerance: ClassVar[Tolerance] = HALF
    maker: ClassVar[str] = "tiercel_export.models.tensorrt:make_tensorrt_rtx_fp16"
    full: ClassVar[str] = "tensorrt-rtx"


class TensorRTRTXBrain(TensorRTRTX):
    """Matrix products in BF16."""

    tolerance: ClassVar[Tolerance] = BRAIN
    maker: ClassVar[str] = "tiercel_export.models.tensorrt:make_tensorrt_rtx_bf16"
    full: ClassVar[str] = "tensorrt-rtx"


class TensorRTRTXInt8(TensorRTRTX):
    """Wide matrix products in INT8."""

    tolerance: ClassVar[Tolerance] = EIGHT
    maker: ClassVar[str] = "tiercel_export.models.tensorrt:make_tensorrt_rtx_full"
    calibrator: ClassVar[str] = "tiercel_export.models.tensorrt:calibrate_tensorrt_rtx_int8"
    full: ClassVar[str] = "tensorrt-rtx"

    @classmethod
    def unmakeable(cls) -> str | None:
        """Return why an export can't make it on this machine; see :class:`~.table.NeedsTools`."""
        return super().unmakeable() or _no_modelopt()


class TensorRTRTXFP8(TensorRTRTXInt8):
    """Wide matrix products in FP8."""

    calibrator: ClassVar[str] = "tiercel_export.models.tensorrt:calibrate_tensorrt_rtx_fp8"
    since: ClassVar[tuple[int, int]] = FP8_SINCE


_BUILD = "run `tiercel build-engines RELEASE` on the machine that will serve it"


def _no_modelopt() -> str | None:
    """Return that ModelOpt, which computes the scales, is not installed and what to do, or None."""
    if find_spec("modelopt") is not None:
        return None
    return (
        "a ranker in eight bits gets its scales from NVIDIA ModelOpt, which is not installed; pip install "
        '"tiercel[modelopt]", or export in half precision'
    )


def _build(trt: Any, flavour: Flavour, folder: Path, name: str, here: str, refittable: bool) -> str:
    """Build a plan, write it and its :class:`~.bound.Bound`, and describe it."""
    specification, file, timings = BuildSpecification.read(folder), folder / name, folder / TIMING_CACHE
    known = timings.read_bytes() if timings.is_file() else b""
    plan = build_plan(trt, flavour, folder, specification, known, refittable=refittable)
    file.write_bytes(plan.plan)
    if plan.timing_cache:
        timings.write_bytes(plan.timing_cache)
    digest, version = network_sha256(folder / specification.network), str(trt.__version__)
    Bound(flavour.name, version, here, plan.inputs, plan.outputs, digest, refittable).write(file)
    return f"{plan.layers} layers, {len(plan.plan) / 1e6:.1f} MB"


def _refit(trt: Any, flavour: Flavour, folder: Path, old: Path, name: str) -> str:
    """Write the old plan with the new weights and its :class:`~.bound.Bound`, and describe it."""
    specification, file = BuildSpecification.read(folder), folder / name
    network = folder / specification.network
    digest = network_sha256(network)
    if digest != specification.network_sha256:
        raise ArtefactCorrupt(f"{network}: the graph was changed after its export; export again")
    plan = refit_plan(trt, flavour, old / name, network)
    file.write_bytes(plan)
    msgspec.structs.replace(Bound.read(old / name), network=digest).write(file)
    return f"refitted with new weights, {len(plan) / 1e6:.1f} MB"


def _device(flavour: Flavour) -> Device | None:
    """Return the GPU that a plan is built for; None if its plans are portable."""
    return None if flavour.portable else find_device(runtime())


def _described(flavour: Flavour, device: Device | None) -> str:
    return f"compute capabilities {', '.join(flavour.capabilities)}" if device is None else str(device)


def _is_of(
    file: Path, flavour: Flavour, version: str, device: str, wanted: BuildSpecification, refittable: bool
) -> bool:
    """Return whether an existing plan is the one that would be built."""
    if not file.is_file() or not file.with_name(file.name + SUFFIX).is_file():
        return False
    bound = Bound.read(file)
    here = (flavour.name, version, device, wanted.network_sha256)
    there = (bound.library, bound.version, bound.device, bound.network)
    return there == here and bound.refittable >= refittable


def _key(flavour: Flavour, version: str, device: str, wanted: BuildSpecification, refittable: bool) -> str:
    """Return the name of a plan's folder in the cache, a digest of everything that decides what is built."""
    named = (flavour.name, version, device, *(("refittable",) if refittable else ()))
    digest = hashlib.sha256("\n".join(named).encode())
    digest.update(msgspec.json.encode(wanted))
    return digest.hexdigest()[:32]


def _copy(source: Path, to: Path, name: str) -> None:
    for file in (name, name + SUFFIX, TIMING_CACHE):
        if (source / file).is_file():
            shutil.copyfile(source / file, to / file)


def installed(flavour: str) -> bool:
    """Return whether a flavour's library is installed here."""
    return find_module(FLAVOURS[flavour]) is not None
