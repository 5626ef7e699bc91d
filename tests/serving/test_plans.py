"""TensorRT without a GPU: plan metadata, and the runner against stand-ins for CUDA and TensorRT.

The stand-in for TensorRT computes the ONNX file, so what is tested is our own code: shapes, copies,
buffers, profiles, and every refusal of an unsuitable machine.
"""

from __future__ import annotations

import ctypes
import enum
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
from native_build import find_compiler
from test_engine_kinds import WEIGHTS, write_onnx

from tiercel_serving.engines import tensorrt as kinds
from tiercel_serving.engines.bound import Bound
from tiercel_serving.engines.table import ENGINES, TakesTensors
from tiercel_serving.engines.trt import flavours
from tiercel_serving.engines.trt.build import network_sha256
from tiercel_serving.engines.trt.cuda import ask, find_device
from tiercel_serving.engines.trt.flavours import FLAVOURS
from tiercel_serving.engines.trt.run import PlanEngine
from tiercel_serving.engines.trt.specification import BuildSpecification
from tiercel_serving.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    DeviceUnavailable,
    EngineMismatch,
    EngineNotBuilt,
    InvalidRequest,
    KindUnavailable,
)

MOST = 4
#: Address in the simulated device memory → its contents.
Memory = dict[int, Any]


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


class Cuda:
    """CUDA's runtime over memory of the host."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, name: str = "NVIDIA L4", capability: str = "8.9", free: int = 1 << 30) -> None:
        self.name, self.capability, self.free = name, capability, free
        self.count: tuple[Error, int] = (Error.cudaSuccess, 1)
        self.driver, self.memory, self.copies = 12090, {}, 0

    def cudaDriverGetVersion(self) -> Any:
        return Error.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> Any:
        return Error.cudaSuccess, 12090

    def cudaGetDeviceCount(self) -> Any:
        return self.count

    def cudaGetDevice(self) -> Any:
        return Error.cudaSuccess, 0

    def cudaGetDeviceProperties(self, device: int) -> Any:
        major, minor = self.capability.split(".")
        return Error.cudaSuccess, SimpleNamespace(name=self.name.encode(), major=int(major), minor=int(minor))

    def cudaMemGetInfo(self) -> Any:
        return Error.cudaSuccess, self.free, 1 << 34

    def cudaMalloc(self, size: int) -> Any:
        if size > self.free:
            return Error.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return Error.cudaSuccess, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> Any:
        del self.memory[address]
        return (Error.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaStreamCreate(self) -> Any:
        return Error.cudaSuccess, 7

    def cudaStreamSynchronize(self, stream: int) -> Any:
        return (Error.cudaSuccess,)

    cudaStreamDestroy = cudaStreamSynchronize

    def cudaMemcpyAsync(self, to: int, of: int, size: int, kind: int, stream: int) -> Any:
        self.copies += 1
        ctypes.memmove(to, of, size)
        return (Error.cudaSuccess,)


class TensorRT:
    """TensorRT's runtime, with ONNX files as plans."""

    __version__ = "10.14.1"
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    scratch = 1000

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if plan == b"damaged":
                self.logger.log(1, "magic tag does not match")
                return None
            return Deserialised(plan)

    @staticmethod
    def nptype(dtype: Any) -> Any:
        return dtype


class Deserialised:
    device_memory_size_v2 = 1000
    shapes: ClassVar = {"numbers": (3,), "places": (1,), "product": (4,), "shifted": (4,)}
    num_io_tensors = 4

    def __init__(self, plan: bytes) -> None:
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])

    def get_tensor_name(self, place: int) -> str:
        return ["product", "numbers", "shifted", "places"][place]

    def get_tensor_dtype(self, name: str) -> Any:
        return np.int64 if name == "places" else np.float32

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in ("numbers", "places") else "out"

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return [(size, *self.shapes[name]) for size in (1, 2, MOST)]

    def create_execution_context(self) -> Any:
        return Context(self)


class Context:
    def __init__(self, engine: Deserialised) -> None:
        self.engine, self.shapes, self.places = engine, {}, {}

    def set_input_shape(self, name: str, shape: Any) -> None:
        self.shapes[name] = tuple(shape)

    def get_tensor_shape(self, name: str) -> Any:
        return (self.shapes["numbers"][0], *self.engine.shapes[name])

    def set_tensor_address(self, name: str, address: int) -> None:
        self.places[name] = address

    def view(self, name: str) -> np.ndarray:
        shape = self.shapes.get(name) or self.get_tensor_shape(name)
        dtype = np.dtype(self.engine.get_tensor_dtype(name))
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_byte * size).from_address(self.places[name]), dtype).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        feed = {name: self.view(name) for name in ("numbers", "places")}
        for name, array in zip(
            ("product", "shifted"), self.engine.session.run(["product", "shifted"], feed), strict=True
        ):
            self.view(name)[...] = array
        return True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    double = Cuda()
    monkeypatch.setattr(kinds, "runtime", lambda: double)
    return double


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a plan as ``build-engines`` writes it on this machine."""
    network, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    write_onnx(network)
    digest = network_sha256(network)
    BuildSpecification(network.name, digest, (1, 2, MOST)).write(tmp_path)
    plan.write_bytes(network.read_bytes())
    inputs = {"numbers": "float32", "places": "int64"}
    device = "NVIDIA L4 (compute capability 8.9)"
    Bound("tensorrt", TensorRT.__version__, device, inputs, ("product", "shifted"), digest).write(plan)
    return plan


def opened(file: Path, cuda: Cuda, flavour: str = "tensorrt", outputs: Any = ("shifted",)) -> PlanEngine:
    return PlanEngine(file, outputs, FLAVOURS[flavour], TensorRT, cuda)


def test_the_runner_copies_only_the_rows_there_are(file: Path, cuda: Cuda) -> None:
    engine = opened(file, cuda)
    assert (engine.inputs, engine.outputs, engine.max_batch) == (("numbers", "places"), ("shifted",), MOST)
    rng = np.random.default_rng(0)
    for size in (3, 1, MOST):
        numbers = rng.normal(size=(size, 6)).astype(np.float32)[:, ::2]  # strided: engines cannot read it
        places = rng.integers(0, 9, (size, 1))
        out = engine.run({"numbers": numbers, "places": places, "more": numbers})
        np.testing.assert_allclose(out["shifted"], numbers @ WEIGHTS + places, rtol=1e-5)
    assert cuda.copies == 3 * 3
    first = engine.run({"numbers": numbers, "places": places})["shifted"]
    kept = first.copy()
    engine.run({"numbers": numbers + 1, "places": places})
    np.testing.assert_array_equal(first, kept)  # a later run does not overwrite an answer
    engine.close()
    assert cuda.memory == {}


def test_it_reads_and_writes_tensors_where_they_are(file: Path, cuda: Cuda) -> None:
    import torch

    engine, rng = opened(file, cuda), np.random.default_rng(0)
    assert isinstance(engine, TakesTensors)
    for size in (3, 1):
        numbers = torch.from_numpy(rng.normal(size=(size, 6)).astype(np.float32))[:, ::2]
        places = torch.from_numpy(rng.integers(0, 9, (size, 1)))
        out = engine.run_tensors({"numbers": numbers, "places": places, "more": numbers})
        assert list(out) == ["shifted"]
        np.testing.assert_allclose(out["shifted"], numbers @ WEIGHTS + places, rtol=1e-5)
    assert cuda.copies == 0
    # A run with host arrays uses the engine's own buffers again.
    arrays = {"numbers": numbers.numpy(), "places": places.numpy()}
    np.testing.assert_allclose(engine.run(arrays)["shifted"], out["shifted"])
    with pytest.raises(InvalidRequest, match="a batch of 5"):
        engine.run_tensors({"numbers": torch.zeros(5, 3), "places": torch.zeros(5, 1, dtype=torch.int64)})


def test_a_batch_above_the_profile(file: Path, cuda: Cuda) -> None:
    arrays = {"numbers": np.zeros((5, 3), np.float32), "places": np.zeros((5, 1), np.int64)}
    with pytest.raises(
        InvalidRequest, match=r"a batch of 5, but the plan was built for at most 4; send fewer"
    ):
        opened(file, cuda).run(arrays)


def changed(file: Path, **changes: Any) -> None:
    import msgspec

    msgspec.structs.replace(Bound.read(file), **changes).write(file)


def alter_graph(file: Path, cuda: Cuda) -> None:
    network = file.with_name("model.onnx")
    network.write_bytes(network.read_bytes() + b"\0")


def other_flavour(file: Path, cuda: Cuda) -> None:
    changed(file, library="tensorrt_rtx")


#: Mismatch → how to provoke it, the error, and words of its message.
MISFITS: dict[str, tuple[Any, type[Exception], str]] = {
    "another GPU": (
        lambda file, cuda: setattr(cuda, "name", "NVIDIA A10"),
        EngineMismatch,
        r"for NVIDIA L4 \(.*8\.9\), but here is device NVIDIA A10 \(.*8\.9\); run `tiercel build-engines",
    ),
    "another version": (
        lambda file, cuda: changed(file, version="11.4.0"),
        EngineMismatch,
        r"made with tensorrt 11\.4\.0 .* but here is tensorrt 10\.14\.1; run `tiercel build-engines",
    ),
    "another flavour": (other_flavour, EngineMismatch, "a plan of tensorrt_rtx, expected one of tensorrt"),
    "an altered graph": (alter_graph, EngineMismatch, "built of another graph than model.onnx beside it"),
    "a damaged plan": (
        lambda file, cuda: file.write_bytes(b"damaged"),
        EngineMismatch,
        "does not take this plan: magic tag does not match",
    ),
    "no word of what it is bound to": (
        lambda file, cuda: file.with_name("model.plan.bound.json").unlink(),
        ArtefactMissing,
        "bound to is not there; export again",
    ),
    "damaged words": (
        lambda file, cuda: file.with_name("model.plan.bound.json").write_text("{"),
        ArtefactCorrupt,
        "changed or damaged: export again",
    ),
    "little scratch memory": (
        lambda file, cuda: setattr(cuda, "free", 900),
        DeviceUnavailable,
        "needs 0 MB of scratch memory, NVIDIA L4 .* lower max_batch_size",
    ),
    "no GPU": (
        lambda file, cuda: setattr(cuda, "count", (Error.cudaErrorNoDevice, 0)),
        DeviceUnavailable,
        r"CUDA finds no GPU \(cudaErrorNoDevice\); .*--gpus all",
    ),
    "an old driver": (
        lambda file, cuda: (setattr(cuda, "driver", 11040), setattr(cuda, "count", (Error(35), 0))),
        DeviceUnavailable,
        r"supports CUDA 11\.4, this process was built for 12\.9; update the driver",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_plan_that_does_not_fit(file: Path, cuda: Cuda, what: str) -> None:
    spoil, error, words = MISFITS[what]
    spoil(file, cuda)
    with pytest.raises(error, match=words):
        opened(file, cuda)


def test_hopper_is_none_of_tensorrt_rtx(file: Path) -> None:
    changed(file, library="tensorrt_rtx")
    with pytest.raises(EngineMismatch, match=r"7\.5, .* this GPU is NVIDIA H100 .*9\.0.*--target tensorrt"):
        opened(file, Cuda("NVIDIA H100", "9.0"), "tensorrt_rtx")


def test_memory_that_runs_out_while_buffers_are_taken(cuda: Cuda) -> None:
    cuda.free = 10
    with pytest.raises(DeviceUnavailable, match="cudaMalloc of 4,000 bytes: the GPU's memory is full"):
        ask(cuda, "cudaMalloc", 4000)


def test_the_real_bindings_find_no_gpu_here() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    error, count = runtime.cudaGetDeviceCount()
    if int(error) == 0 and count:
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceUnavailable, match="CUDA finds no GPU"):
        find_device(runtime)


#: A driver that only reports its version, which CUDA's runtime asks for first.
OLD_DRIVER = """
#include <string.h>
int cuDriverGetVersion(int *version) { *version = 11040; return 0; }
static int nothing(void) { return 0; }
int cuGetProcAddress(const char *name, void **function, int cuda, unsigned long flags) {
    *function = (void *)nothing;
    if (!strcmp(name, "cuDriverGetVersion")) *function = (void *)cuDriverGetVersion;
    if (!strcmp(name, "cuGetProcAddress")) *function = (void *)cuGetProcAddress;
    return 0;
}
"""


def test_the_real_runtime_over_a_driver_that_is_too_old(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    (tmp_path / "driver.c").write_text(OLD_DRIVER)
    command = [find_compiler(), "-w", "-shared", "-fPIC", "driver.c", "-o", "libcuda.so.1"]
    subprocess.run(command, cwd=tmp_path, check=True)
    script = "from tiercel_serving.engines.trt.cuda import find_device, runtime; find_device(runtime())"
    path = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=path, capture_output=True, text=True)
    assert "driver supports CUDA 11.4, this process was built for 1" in done.stderr
    assert "update the driver of the machine (not the container)" in done.stderr


def test_a_plan_that_is_not_built(tmp_path: Path) -> None:
    kind: Any = ENGINES.find("tensorrt")
    with pytest.raises(EngineNotBuilt, match=r"model\.plan: not built yet; run `tiercel build-engines"):
        kind.open(tmp_path / kind.file, ("x",), threads=1)
    assert "not built yet" in kind.absent(tmp_path / kind.file)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def import_module(name: str) -> Any:
        if name not in found:
            raise ModuleNotFoundError(name=name)
        return found[name]

    monkeypatch.setattr(flavours, "importlib", SimpleNamespace(import_module=import_module))
    return found


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (
            "10.11.0",
            r"expected 10\.12 up to, not including, 12\.0, got 10\.11\.0; run this in the container",
        ),
        ("12.0.1", r"got 12\.0\.1"),
        (None, r"its Python module tensorrt .* is not installed; run this in the container"),
    ],
)
def test_a_library_that_is_missing_or_of_another_version(
    modules: dict[str, Any], version: str | None, words: str
) -> None:
    # With only type stubs installed, the module imports but is empty.
    modules["tensorrt"] = (
        SimpleNamespace() if version is None else SimpleNamespace(Builder=1, __version__=version)
    )
    with pytest.raises(KindUnavailable, match=words):
        flavours.load(FLAVOURS["tensorrt"])


def test_versions_that_are_taken(modules: dict[str, Any]) -> None:
    for version in ("10.12.0.36", "11.4.0.106"):
        modules["tensorrt"] = SimpleNamespace(Builder=1, __version__=version)
        assert flavours.load(FLAVOURS["tensorrt"]) is modules["tensorrt"]


@pytest.mark.parametrize("row", ["tensorrt-fp8", "tensorrt-rtx-fp8"])
def test_a_gpu_without_products_in_fp8(
    row: str, file: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.name, cuda.capability = "NVIDIA A10", "8.6"
    words = r"FP8, which GPUs of compute capability 8\.9 .* this GPU is NVIDIA A10 .*--engine tensorrt.*-int8"
    with pytest.raises(EngineMismatch, match=words):
        ENGINES.find(row).open(file, ("shifted",), threads=1)
    if row == "tensorrt-fp8":  # the others were built without a GPU
        monkeypatch.setattr(kinds, "load", lambda flavour: TensorRT)
        with pytest.raises(EngineMismatch, match=words):
            kinds.TensorRTFP8.build(file.parent)
