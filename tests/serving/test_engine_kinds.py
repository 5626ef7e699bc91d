"""The contract of an engine, for every row of ``ENGINES``."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from kind_contracts import check_rows
from onnx import TensorProto, helper, numpy_helper

from tiercel_serving.engines.bound import Bound
from tiercel_serving.engines.table import ENGINES, BuiltKind, Calibrated, Engine, EngineKind, Reduced
from tiercel_serving.engines.trt.build import network_sha256
from tiercel_serving.engines.trt.specification import BuildSpecification
from tiercel_serving.errors import ArtefactCorrupt, DeviceUnavailable, EngineMismatch
from tiercel_serving.spec import TensorSpec
from tiercel_serving.verify.compare import Tolerance, compare

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def write_onnx(file: Path) -> None:
    """Write ``product``, ``numbers [B, 3] @ WEIGHTS``, and ``shifted``, that plus ``places [B, 1]``."""
    inputs = [("numbers", TensorProto.FLOAT, 3), ("places", TensorProto.INT64, 1)]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["numbers", "w"], ["product"]),
            helper.make_node("Cast", ["places"], ["p"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["product", "p"], ["shifted"]),
        ],
        "g",
        [helper.make_tensor_value_info(name, dtype, ["B", width]) for name, dtype, width in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 4]) for n in ("product", "shifted")],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(file))


def write_package(file: Path, device: str = "cpu") -> None:
    """Write that model, compiled by AOTInductor, with two outputs where exports have one."""
    import torch

    from tiercel_export.models.program import batch_program
    from tiercel_serving.engines.aoti_torch import build_package, write_program

    class Model(torch.nn.Module):
        def forward(self, numbers: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            product = numbers @ torch.from_numpy(WEIGHTS).to(numbers.device)
            return product, product + places

    inputs = [TensorSpec("numbers", "float32", (3,)), TensorSpec("places", "int64", (1,))]
    program, _ = batch_program(Model(), inputs, 64, "m")
    dtypes = {one.name: one.dtype for one in inputs}
    write_program(program, file.parent, Bound("torch", str(torch.__version__), "any", dtypes, ("product",)))
    build_package(file.parent, file.name, device)
    bound = Bound.read(file)
    msgspec.structs.replace(bound, outputs=("product", "shifted")).write(file)


def write_plan(file: Path, kind: str) -> None:
    """Write that model, built by TensorRT or TensorRT-RTX."""
    write_onnx(file.with_name("model.onnx"))
    network = file.with_name("model.onnx")
    BuildSpecification(network.name, network_sha256(network), (1, 8, 64)).write(file.parent)
    ENGINES.find(kind).build(file.parent)


#: Kind → a function that writes the model of :func:`write_onnx` for it.
EXAMPLES: dict[str, Callable[[Path], None]] = {
    "onnx": write_onnx,
    "onnx-cuda": write_onnx,
    "aoti": write_package,
    "aoti-cuda": partial(write_package, device="cuda"),
    **{name: partial(write_plan, kind=name) for name in ENGINES if name.startswith("tensorrt")},
}

#: Kinds that are slow to build (AOTInductor compiles C++) or need a GPU.
MARKS = {"aoti": [pytest.mark.slow], "onnx": []}


def test_every_kind_is_here() -> None:
    check_rows(ENGINES, EXAMPLES)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=MARKS.get(name, [pytest.mark.gpu])) for name in EXAMPLES]
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kind(name: str) -> type[EngineKind]:
    return ENGINES.find(name)


@pytest.fixture(scope="module")
def file(name: str, kind: type[EngineKind], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model file, which tests must not change."""
    folder = tmp_path_factory.mktemp(name)
    EXAMPLES[name](folder / kind.file)
    return folder / kind.file


@pytest.fixture
def engine(kind: type[EngineKind], file: Path) -> Engine:
    return kind.open(file, ("shifted", "product"), threads=1)


@pytest.mark.parametrize("row", EXAMPLES)
def test_a_row_says_what_an_engine_is(row: str) -> None:
    kind: Any = ENGINES.find(row)
    assert isinstance(kind, EngineKind)
    assert re.fullmatch(r"[a-z]+\.[a-z0-9]+", kind.file)
    assert isinstance(kind.tolerance, Tolerance)
    assert kind.device in ("cpu", "cuda")
    assert kind.backend is None or kind.backend.isidentifier()
    assert re.fullmatch(r"[\w.]+:\w+", kind.maker)
    module, _, maker = kind.maker.partition(":")
    assert callable(getattr(importlib.import_module(module), maker))
    assert (kind.tolerance.same_top is not None) == isinstance(kind, Reduced)
    if isinstance(kind, Reduced):
        assert ENGINES.find(kind.full).file == kind.file
    if isinstance(kind, Calibrated):
        assert isinstance(kind, Reduced), "query models are asked before there are requests"
        module, _, calibrator = kind.calibrator.partition(":")
        assert callable(getattr(importlib.import_module(module), calibrator))
    if isinstance(kind, BuiltKind):
        assert not isinstance(ENGINES.find(kind.stand_in), BuiltKind)


@pytest.mark.parametrize("users", [1, 2, 64])
def test_it_computes_the_model(kind: type[EngineKind], engine: Engine, users: int) -> None:
    rng = np.random.default_rng(users)
    numbers = rng.normal(size=(users, 3)).astype(np.float32)
    places = rng.integers(0, 9, (users, 1))
    arrays = {"numbers": numbers, "places": places, "something else": numbers}
    out = engine.run(arrays)
    assert sorted(engine.inputs) == ["numbers", "places"]
    assert engine.outputs == tuple(out) == ("shifted", "product")
    product = numbers @ WEIGHTS
    want = {"product": product, "shifted": (product + places).astype(np.float32)}
    difference = compare(out, want, kind.tolerance)
    assert difference.ok, difference.where
    for user in range(min(users, 3)):
        alone = engine.run({name: array[[user]] for name, array in arrays.items()})
        difference = compare(alone, {name: array[[user]] for name, array in out.items()}, kind.tolerance)
        assert difference.ok, difference.where


def test_only_the_outputs_asked_for(kind: type[EngineKind], file: Path) -> None:
    engine = kind.open(file, ("product",), threads=1)
    out = engine.run({"numbers": np.zeros((2, 3), np.float32), "places": np.zeros((2, 1), np.int64)})
    assert {name: array.shape for name, array in out.items()} == {"product": (2, 4)}


def test_it_is_closed(kind: type[EngineKind], file: Path) -> None:
    engine = kind.open(file, ("product",), threads=1)
    engine.close()
    arrays = {"numbers": np.zeros((1, 3), np.float32), "places": np.zeros((1, 1), np.int64)}
    with pytest.raises((AttributeError, IndexError, TypeError)):
        engine.run(arrays)


def test_a_model_without_an_output(kind: type[EngineKind], file: Path) -> None:
    with pytest.raises(ArtefactCorrupt, match=f"{kind.file}: expected the outputs .*quotient.*export again"):
        kind.open(file, ("quotient",), threads=1)


def test_a_file_that_is_no_model(kind: type[EngineKind], file: Path, tmp_path: Path) -> None:
    shutil.copytree(file.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / kind.file).write_bytes(b"no model")
    with pytest.raises((ArtefactCorrupt, EngineMismatch), match=kind.file):
        kind.open(tmp_path / kind.file, ("product",), threads=1)


def test_onnx_runtime_without_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, kind = tmp_path / "model.onnx", ENGINES.find("onnx-cuda")
    write_onnx(file)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(DeviceUnavailable, match=r"has no CUDAExecutionProvider; install onnxruntime-gpu"):
            kind.open(file, ("product",), threads=1)

    class OnTheCpu(onnxruntime.InferenceSession):
        """Behaves as the GPU build on a machine without a GPU: it falls back to the CPU."""

        def __init__(self, file: str, options: Any, providers: Any) -> None:
            super().__init__(file, options, providers=["CPUExecutionProvider"])

    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnTheCpu)
    with pytest.raises(DeviceUnavailable, match=r"found no device for CUDAExec.*NVIDIA GPU .*driver"):
        kind.open(file, ("product",), threads=1)

    def full(*given: Any, **options: Any) -> None:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; file=cuda_allocator.cc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(DeviceUnavailable, match=r"memory is full \(CUDA failure 2: out of memory"):
        kind.open(file, ("product",), threads=1)


def test_the_cpp_library_is_there_for_what_is_loaded_later() -> None:
    code = (
        "import ctypes; from tiercel_serving.engines.aoti import share_cpp_library as share; "
        "share(); share(); assert ctypes.CDLL(None)._ZSt4cout"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
