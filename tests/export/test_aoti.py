"""AOTInductor: package metadata, machines that lack something, and one release with real packages."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from small_release import Parts, small_release
from test_dense_models import AVAILABLE, MAX, Model, batch

from benchmarks.engines.run import measure
from brief_server import brief_server
from tiercel_client import Recommender
from tiercel_export.errors import ExportError
from tiercel_export.models.aoti import make_aoti, make_aoti_cuda
from tiercel_export.models.dense import forward_inputs, frozen, run_module
from tiercel_export.release import goal
from tiercel_serving.commands.shell import Refused
from tiercel_serving.engines.aoti import Aoti, AotiCuda
from tiercel_serving.engines.aoti_torch import build_package
from tiercel_serving.engines.bound import Bound
from tiercel_serving.engines.compiler import PROGRAM, device_name
from tiercel_serving.engines.install import build_engines
from tiercel_serving.engines.onnx import OnnxCuda
from tiercel_serving.engines.trt.build import network_sha256
from tiercel_serving.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    DeviceUnavailable,
    EngineBuildFailed,
    EngineMismatch,
    EngineNotBuilt,
    KindUnavailable,
)
from tiercel_serving.release.opened import Release
from tiercel_serving.verify.checks import verify_release

INPUTS = {name: str(spec.numpy_dtype) for name, spec in AVAILABLE.items()}


def make(folder: Path, module: Any = None, maker: Any = make_aoti) -> None:
    module = frozen(Model()) if module is None else module
    specs = forward_inputs(module, AVAILABLE, "m")
    maker(module, folder, inputs=specs, output="out", max_batch=MAX, build_id="b")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a file that is no package, with metadata as if it was compiled on this machine."""
    file = tmp_path / "model.pt2"
    file.write_bytes(b"no package")
    Bound("torch", str(torch.__version__), device_name("cpu"), INPUTS, ("out",)).write(file)
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "2.6.0"}, r"made with torch 2\.6\.0 .*, but here is torch 2.*; export again with this"),
        ({"device": "x86_64 AVX1024"}, r"for x86_64 AVX1024, but here is device \S+ \w+; export again"),
        ({"device": "NVIDIA L4 (compute capability 8.9)"}, r"for NVIDIA L4 .*but here is device"),
    ],
)
def test_another_torch_or_device(package: Path, change: dict[str, str], words: str) -> None:
    msgspec.structs.replace(Bound.read(package), **change).write(package)
    with pytest.raises(EngineMismatch, match=words):
        Aoti.open(package, ("out",))


def test_a_package_that_is_none(package: Path) -> None:
    with pytest.raises(ArtefactCorrupt, match=r"model\.pt2: not a package that torch .*TMPDIR"):
        Aoti.open(package, ("out",))
    with pytest.raises(ArtefactCorrupt, match=r"expected the outputs \['query'\]"):
        Aoti.open(package, ("query",))
    package.with_name("model.pt2.bound.json").unlink()
    with pytest.raises(ArtefactMissing, match="export again"):
        Aoti.open(package, ("out",))


def test_too_little_memory(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", full)
    with pytest.raises(DeviceUnavailable, match=r"memory is full \(CUDA error: out of memory\); stop what"):
        Aoti.open(package, ("out",))


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def nothing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", nothing)
    with pytest.raises(EngineBuildFailed, match=r"no compiler is found .*install g\+\+ .*--engine onnx"):
        make(tmp_path)


def test_no_compiler_is_told_before_any_work(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aoti, "unmakeable", classmethod(lambda cls: "engine 'aoti': no compiler"))
    told: list[str] = []
    with pytest.raises(KindUnavailable, match="no compiler"):
        small_release(
            tmp_path / "r", parts, engine="aoti", progress=lambda step, done, total: told.append(step)
        )
    assert told == ["checking the inputs"]


def test_a_compiler_that_fails_and_a_module_that_is_no_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("C++ compile error\nline 1\nline 2\nline 3")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    with pytest.raises(
        EngineBuildFailed, match=r"could not compile the model for .*: C\+\+ compile error line 1"
    ):
        make(tmp_path)

    class Fixed(torch.nn.Module):
        def forward(self, user_num):
            return user_num.reshape(2, 3)

    with pytest.raises(ExportError, match="batch is axis 0"):
        make(tmp_path, Fixed())


@pytest.fixture(scope="module")
def for_a_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that an export makes for a GPU. Read-only."""
    folder = tmp_path_factory.mktemp("for a gpu")
    make(folder, maker=make_aoti_cuda)
    return folder


def test_no_gpu(tmp_path: Path, package: Path, for_a_gpu: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceUnavailable, match=r"torch .* finds no GPU \(.*\); .*--engine aoti"):
        AotiCuda.open(package, ("out",))
    assert "can't run here: engine 'aoti-cuda'" in str(AotiCuda.absent(package))

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "init", too_old)
        with pytest.raises(DeviceUnavailable, match=r"driver .* is too old .*a driver for its CUDA"):
            AotiCuda.open(package, ("out",))
    folder = shutil.copytree(for_a_gpu, tmp_path / "m")
    assert {file.name for file in folder.iterdir()} >= {"model.onnx", PROGRAM}
    assert "not built yet; run `tiercel build-engines" in str(AotiCuda.absent(folder / AotiCuda.file))
    with pytest.raises(EngineNotBuilt, match="build-engines"):
        AotiCuda.open(folder / AotiCuda.file, ("out",))
    with pytest.raises(DeviceUnavailable, match="finds no GPU"):
        AotiCuda.build(folder)


def test_a_program_that_was_changed_and_one_that_is_none(tmp_path: Path, for_a_gpu: Path) -> None:
    shutil.copytree(for_a_gpu, tmp_path, dirs_exist_ok=True)
    program = tmp_path / PROGRAM
    program.write_bytes(b"no program")
    with pytest.raises(ArtefactCorrupt, match=r"program\.pt2: it was changed after its export"):
        build_package(tmp_path, "model.pt2", "cpu")
    changed = msgspec.structs.replace(Bound.read(program), network=network_sha256(program), version="9.9")
    changed.write(program)
    with pytest.raises(EngineBuildFailed, match=r"reads no program that torch 9\.9 exported"):
        build_package(tmp_path, "model.pt2", "cpu")


def test_the_target_takes_the_first_engine_that_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(engine: str | None = None) -> str:
        goal.refuse_unmakeable("gpu", engine)
        return goal.make_goal("n", "gpu", engine, "fused", "python", {}, ()).engine

    assert chosen() == "aoti-cuda"
    why = classmethod(lambda cls: "engine 'aoti-cuda': no torch")
    monkeypatch.setattr(AotiCuda, "unmakeable", why, raising=False)
    monkeypatch.setattr(OnnxCuda, "unmakeable", classmethod(lambda cls: "engine 'onnx-cuda': no -gpu"))
    with pytest.raises(KindUnavailable, match=r"target 'gpu' .*'aoti-cuda': .*'onnx-cuda': .*-gpu"):
        chosen()
    monkeypatch.setattr(OnnxCuda, "unmakeable", classmethod(lambda cls: None))
    assert chosen() == "onnx-cuda"
    assert chosen("onnx-cuda") == "onnx-cuda"


def test_a_built_copy_goes_without_its_program(tmp_path: Path, for_a_gpu: Path) -> None:
    here, file = device_name("cpu"), tmp_path / "model.pt2"
    shutil.copytree(for_a_gpu, tmp_path, dirs_exist_ok=True)
    built = msgspec.structs.replace(Bound.read(tmp_path / PROGRAM), device=here)
    built.write(file)
    for name in AotiCuda.build_reads:
        (tmp_path / name).unlink()
    assert not list(tmp_path.glob("program*"))
    assert build_package(tmp_path, file.name, "cpu") == "was built before"
    msgspec.structs.replace(built, version="2.6.0").write(file)
    words = r"program\.pt2: the program was left out of this copy, .* for torch 2\.6\.0 .*build-engines"
    with pytest.raises(ArtefactMissing, match=words):
        build_package(tmp_path, file.name, "cpu")


@pytest.mark.slow
def test_a_release_for_a_gpu_is_exported_where_none_is(parts: Parts, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    release = small_release(tmp_path / "r", parts, target="gpu")
    assert {release.manifest.ranking.engine, release.manifest.target} == {"aoti-cuda", "gpu"}
    report = verify_release(release)
    report.raise_if_failed()
    said = {row.artefact: row.detail for row in report.rows if row.warning}
    assert "onnx ran the same graph instead" in said["ranking"]
    assert "torch ran the same stages instead" in said["answers"]
    with pytest.raises(DeviceUnavailable, match="finds no GPU"):
        build_engines(release.path)


# -------------------------------------------------------------------------------------- real packages


@pytest.mark.slow
def test_it_equals_torch_at_every_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = frozen(Model())
    make(tmp_path, module)
    engine = Aoti.open(tmp_path / Aoti.file, ("out",))
    assert engine.inputs == tuple(AVAILABLE)
    for rows in (1, 2, 3, MAX):
        arrays = batch(rows, rows)
        # Arrays as a store or a gather may pass them: read-only, strided, or of a narrower integer type.
        odd = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in arrays.items()}
        odd["kept_source"] = odd["kept_source"].astype(np.int16)
        for array in odd.values():
            array.flags.writeable = False
        np.testing.assert_allclose(engine.run(odd)["out"], run_module(module, arrays), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_program_is_compiled_later_once(tmp_path: Path) -> None:
    module, folder, cache = frozen(Model()), tmp_path / "m", tmp_path / "cache"
    folder.mkdir()
    make(folder, module, make_aoti_cuda)
    assert build_package(folder, "model.pt2", "cpu", cache).startswith("compiled for ")
    assert build_package(folder, "model.pt2", "cpu", cache) == "was built before"
    (folder / "model.pt2").unlink()
    assert build_package(folder, "model.pt2", "cpu", cache) == "from the cache"
    arrays = batch(3, 3)
    got = Aoti.open(folder / "model.pt2", ("out",)).run(arrays)["out"]
    np.testing.assert_allclose(got, run_module(module, arrays), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def compiled(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return small_release(tmp_path_factory.mktemp("aoti") / "small", parts, engine="aoti")


@pytest.mark.slow
def test_it_is_served_and_answers_as_onnx_does(compiled: Release, release: Release, parts: Parts) -> None:
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("the embedded Triton is not installed")
    users = parts.users["user_id"].tolist()[:12]
    answers = []
    for one in (compiled, release):
        with brief_server(one, grpc_port=0, http_port=0, metrics_port=0) as server:
            with Recommender(server.grpc_url, timeout_s=60.0) as recommender:
                answers.append(recommender.recommend_many(users, k=8))
    for ours, theirs in zip(*answers, strict=True):
        assert [item.item_id for item in ours.items] == [item.item_id for item in theirs.items]
        np.testing.assert_allclose(
            [item.score for item in ours.items], [item.score for item in theirs.items], rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_engines_are_measured_side_by_side(compiled: Release, release: Release) -> None:
    figures = measure([release.path, compiled.path], rounds=20, seconds=0.5, command="a test")
    assert set(figures["served"]) == {"onnx", "aoti"}
    assert all(us > 0 for of in figures["ranker_us"].values() for us in of.values())
    with pytest.raises(Refused, match="different engines, got onnx, onnx"):
        measure([release.path, release.path], rounds=20, seconds=0.5, command="a test")
