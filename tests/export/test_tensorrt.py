"""The TensorRT builder, executed with TensorRT-RTX, which needs no GPU; and releases with its plans."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from small_release import Parts, small_release
from test_dense_models import AVAILABLE, MAX, Model, batch
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from tiercel_export.errors import ExportError, ExportInputError
from tiercel_export.models import tensorrt as makers
from tiercel_export.models.dense import check_weights, forward_inputs, frozen, run_module
from tiercel_export.models.tensorrt import rounded_model
from tiercel_serving.engines import tensorrt as kinds
from tiercel_serving.engines.bound import Bound
from tiercel_serving.engines.install import build_engines
from tiercel_serving.engines.table import ENGINES
from tiercel_serving.engines.trt.build import build_plan, network_sha256
from tiercel_serving.engines.trt.flavours import FLAVOURS, load
from tiercel_serving.engines.trt.specification import BuildSpecification
from tiercel_serving.errors import (
    ArtefactCorrupt,
    DeviceUnavailable,
    EngineBuildFailed,
    EngineNotBuilt,
    KindUnavailable,
    VerificationFailed,
)
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.repository.validate import validate_repository
from tiercel_serving.stages.table import build_stage
from tiercel_serving.verify.checks import verify_release
from tiercel_serving.verify.compare import same_top

RTX = FLAVOURS["tensorrt_rtx"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """Return a model with wide layers, and a folder with its FP16 form and plan specification."""
    torch.manual_seed(0)
    module = frozen(Wide())
    folder = tmp_path_factory.mktemp("ranking")
    with pytest.MonkeyPatch.context() as patch:
        # Without the library only the plan is missing.
        patch.setattr(makers, "find_module", lambda flavour: None)
        makers.make_tensorrt_fp16(
            module,
            folder,
            inputs=forward_inputs(module, AVAILABLE, "m"),
            output="out",
            max_batch=MAX,
            build_id="b",
        )
    return module, folder


class Wide(Model):
    """The model of ``test_dense_models``, with layers wide enough for half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item, self.last = nn.Linear(15, 32), nn.Linear(10, 32), nn.Linear(64, 2)


def test_all_but_the_plan_is_written(made: tuple[nn.Module, Path]) -> None:
    _, folder = made
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "model.fp16.onnx", "build.json"}
    specification = BuildSpecification.read(folder)
    assert specification.network == "model.fp16.onnx"
    assert specification.batch == (1, 2, MAX)
    assert specification.network_sha256 == network_sha256(folder / specification.network)


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", [None, "fp16", "bf16"])
def test_a_plan_is_built(made: tuple[nn.Module, Path], precision: str | None, tmp_path: Path) -> None:
    module, folder = made
    shutil.copyfile(folder / "model.onnx", tmp_path / "model.onnx")
    network = tmp_path / "model.onnx"
    if precision is not None:
        network = makers.write_cast(network, precision)
        arrays = batch(500, 1)
        inputs = {spec.name: arrays[spec.name] for spec in forward_inputs(module, AVAILABLE, "m")}
        got = rounded_model(tmp_path / "model.onnx", precision, "out")(inputs)["out"]
        want = run_module(module, inputs)
        assert 0 < np.abs(got - want).max() < {"fp16": 5e-3, "bf16": 5e-2}[precision] * np.abs(want).max()
        assert same_top(got, want, 3).mean() > {"fp16": 0.99, "bf16": 0.97}[precision]
    makers.check_ready(network, "tensorrt_rtx")
    specification = BuildSpecification(network.name, network_sha256(network), (1, 4, MAX))
    plan = build_plan(load(RTX), RTX, tmp_path, specification)
    assert list(plan.inputs) == list(AVAILABLE)
    assert set(plan.inputs.values()) == {"int64", "int32", "float32"}
    assert plan.outputs == ("out",)
    assert plan.layers > 10
    assert len(plan.plan) > 10_000


@pytest.mark.tensorrt
def test_a_plan_that_takes_new_weights_needs_a_gpu(made: tuple[nn.Module, Path]) -> None:
    """TensorRT-RTX 1.7 compiles kernels at once if the flag REFIT is set."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EngineBuildFailed, match="takes new weights needs a GPU and its driver"):
        build_plan(load(RTX), RTX, made[1], BuildSpecification.read(made[1]), refittable=True)


def test_the_structure_is_the_graph_without_its_weights(made: tuple[nn.Module, Path]) -> None:
    model = onnx.load(str(made[1] / "model.onnx"))
    same = BuildSpecification.read(made[1]).structure_sha256
    other = makers.structure_sha256(model)
    assert same != other, "of the FP16 form"
    weights = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    weights[0].raw_data = bytes(len(weights[0].raw_data))
    model.metadata_props[0].value = "another build"
    assert makers.structure_sha256(model) == other
    model.graph.node[0].op_type = "Identity"
    assert makers.structure_sha256(model) != other


@pytest.mark.tensorrt
def test_a_graph_with_another_dynamic_axis_is_refused(made: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model = onnx.load(str(made[1] / "model.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "k"
    onnx.save(model, str(tmp_path / "model.onnx"))
    digest = network_sha256(tmp_path / "model.onnx")
    with pytest.raises((EngineBuildFailed, ExportError), match=r"model\.onnx: "):
        build_plan(load(RTX), RTX, tmp_path, BuildSpecification("model.onnx", digest, (1, 2, 4)))
    with pytest.raises(ExportError, match="input 'user_cat': axis 1 is dynamic"):
        makers.check_ready(tmp_path / "model.onnx", "tensorrt_rtx")


@pytest.mark.tensorrt
def test_an_altered_graph_is_not_built(made: tuple[nn.Module, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(made[1], tmp_path / "ranking")
    network = folder / "model.fp16.onnx"
    network.write_bytes(network.read_bytes() + b" ")
    kind: Any = ENGINES.find("tensorrt-rtx-fp16")
    with pytest.raises(ArtefactCorrupt, match=r"model\.fp16\.onnx: the graph was changed after its export"):
        kind.build(folder)


@pytest.mark.tensorrt
def test_a_plan_is_built_once(made: tuple[nn.Module, Path], tmp_path: Path) -> None:
    folder, cache = shutil.copytree(made[1], tmp_path / "ranking"), tmp_path / "cache"
    kind: Any = ENGINES.find("tensorrt-rtx-fp16")
    assert "layers" in kind.build(folder, cache)
    bound = Bound.read(folder / kind.file)
    assert (bound.library, bound.version) == ("tensorrt_rtx", load(RTX).__version__)
    assert bound.device == "compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    assert kind.build(folder, cache) == "was built before"
    (folder / kind.file).unlink()
    assert kind.build(folder, cache) == "from the cache"
    assert "GPU" in (kind.absent(folder / kind.file) or "GPU")


def test_without_a_gpu_nothing_is_built_for_one(
    made: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = ENGINES.find("tensorrt-fp16")
    with pytest.raises(
        KindUnavailable, match=r"tensorrt: expected its Python module tensorrt \(10\.12 up to"
    ):
        kind.build(made[1])
    pytest.importorskip("cuda.bindings.runtime")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(kinds, "load", lambda flavour: None)
    with pytest.raises(DeviceUnavailable, match="CUDA finds no GPU"):
        kind.build(made[1])


def test_weights_that_are_no_numbers() -> None:
    module = Model()
    module.table.weight.data[7, 1] = torch.nan
    with pytest.raises(
        ExportInputError, match=r"ranker: 1 of the 200 numbers of its weight 'table\.weight' are NaN"
    ):
        check_weights(module, "ranker")
    module = Model()
    module.register_buffer("mask", torch.full((3,), -torch.inf))
    check_weights(module, "ranker")
    module.register_buffer("mean", torch.tensor([0.0, torch.nan]))
    with pytest.raises(ExportInputError, match="1 of the 2 numbers of its weight 'mean' are NaN"):
        check_weights(module, "ranker")


# ------------------------------------------------------------------------------------------------ releases


@pytest.fixture(scope="module")
def unbuilt(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Build with ``--target tensorrt --engine tensorrt-fp16 --layout staged`` but no TensorRT. Read-only."""
    destination = tmp_path_factory.mktemp("unbuilt") / "small"
    return small_release(destination, parts, target="tensorrt", engine="tensorrt-fp16", layout="staged")


def test_a_release_without_its_plans_says_so(unbuilt: Release) -> None:
    assert unbuilt.manifest.ranking is not None
    assert unbuilt.manifest.ranking.engine == "tensorrt-fp16"
    assert unbuilt.manifest.queries["towers"].engine == "tensorrt", "what finds candidates stays float32"
    report = verify_release(unbuilt)
    assert report.ok
    rows = [row for row in report.rows if row.artefact in ("ranking", "query_towers")]
    assert rows
    assert all(row.warning and "not built yet" in row.detail and "onnx ran" in row.detail for row in rows)


def test_plans_get_models_of_their_own_in_tritons_backend(unbuilt: Release) -> None:
    triton = unbuilt.path / "triton"
    config = text_format.Parse((triton / "ranking" / "config.pbtxt").read_text(), pb.ModelConfig())
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert list((triton / "ranking" / "1").iterdir()) == []
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_GPU]
    assert config.HasField("dynamic_batching")
    cuda = config.optimization.cuda
    assert cuda.graphs
    bounds = [(spec.graph_lower_bound.batch_size, spec.batch_size) for spec in cuda.graph_spec]
    assert bounds == [(1, 1), (2, 2), (3, 4), (5, 8)]
    assert [sample.batch_size for sample in config.model_warmup] == [1, 2, 4, 8]
    wanted = {tensor.name for tensor in unbuilt.stages["ranking"].inputs}
    assert all(set(sample.inputs) == wanted for sample in config.model_warmup)
    assert {tensor.name for tensor in config.input} == wanted
    python = text_format.Parse((triton / "retrieval" / "config.pbtxt").read_text(), pb.ModelConfig())
    assert python.backend == "python"
    explain = text_format.Parse((triton / "recommend_explain" / "config.pbtxt").read_text(), pb.ModelConfig())
    outputs = {tensor.name for tensor in explain.output}
    assert "time_us_retrieval" in outputs
    assert "time_us_ranking" not in outputs, "a backend of Triton's own tells no time of a stage"


def test_fused_runs_plans_in_the_python_process(unbuilt: Release, tmp_path: Path) -> None:
    models = render_repository(unbuilt, tmp_path / "fused", "fused")
    validate_repository(tmp_path / "fused")
    assert set(models) == {"chain", "describe_items", "recommend", "recommend_explain"}


def double_of_a_gpu(monkeypatch: pytest.MonkeyPatch, *, wrong: bool = False) -> None:
    """Use graphs as plans and run them by ONNX Runtime, so that only the installation is tested."""

    def build(cls: Any, folder: Path, cache: Path | None = None, **options: Any) -> str:
        specification = BuildSpecification.read(folder)
        (folder / cls.file).write_bytes((folder / "model.onnx").read_bytes())
        Bound("tensorrt", "10.14", "a double", {}, (), specification.network_sha256).write(folder / cls.file)
        return "doubled"

    def opened(cls: Any, file: Path, outputs: Any, *, threads: int = 1) -> Any:
        engine: Any = ENGINES.find("onnx").open(file, outputs, threads=threads)
        if wrong and "rank_score" in outputs:
            run = engine.run
            engine.run = lambda arrays: {name: array + 1 for name, array in run(arrays).items()}
        return engine

    monkeypatch.setattr(kinds.TensorRT, "build", classmethod(build))
    monkeypatch.setattr(kinds.TensorRT, "open", classmethod(opened))
    monkeypatch.setattr(kinds.TensorRT, "absent", classmethod(lambda cls, file: None))


def test_engines_are_built_verified_and_installed(
    unbuilt: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.stat().st_mtime_ns for file in unbuilt.path.rglob("*") if file.is_file()}
    double_of_a_gpu(monkeypatch)
    monkeypatch.setattr(kinds.TensorRT, "build_reads", ("build.json",))
    told: list[str] = []
    built, report = build_engines(
        unbuilt.path, destination=tmp_path / "built", progress=lambda what, done, total: told.append(what)
    )
    assert [(one.stage, one.engine) for one in built] == [
        ("query_towers", "tensorrt"),
        ("ranking", "tensorrt-fp16"),
    ]
    assert told == ["building query_towers", "building ranking", "verifying"]
    rows = {(row.artefact, row.check): row for row in report.rows}
    assert not rows["ranking", "onnx, batch 8"].warning
    assert rows["ranking", "onnx, batch 8"].ok
    release = open_release(tmp_path / "built")
    assert release.build_id == unbuilt.build_id
    plan = release.path / "triton" / "ranking" / "1" / "model.plan"
    assert plan.read_bytes() == (release.path / "artefacts" / "ranking" / "model.plan").read_bytes()
    assert "triton/ranking/1/model.plan" in release.manifest.files
    header = json.loads((release.path / "artefacts" / "ranking" / "header.json").read_text())
    assert "model.plan" in header["bytes"]
    assert "build.json" not in header["bytes"], "a built copy goes without what a build alone reads"
    assert (unbuilt.path / "artefacts" / "ranking" / "build.json").is_file()
    # The original release is unchanged.
    after = {file: file.stat().st_mtime_ns for file in unbuilt.path.rglob("*") if file.is_file()}
    assert after == before


def test_a_release_without_its_plans_is_not_served(unbuilt: Release) -> None:
    with pytest.raises(
        EngineNotBuilt, match=r"ranking/model\.plan: not built yet; run `tiercel build-engines"
    ):
        build_stage("ranking", unbuilt)


def test_in_place_and_only_if_verified(
    unbuilt: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(unbuilt.path, tmp_path / "release"))
    with pytest.MonkeyPatch.context() as patch:
        double_of_a_gpu(patch, wrong=True)
        with pytest.raises(VerificationFailed, match=r"ranking, torch \(golden\), batch 1"):
            build_engines(place)
    assert not (place / "artefacts" / "ranking" / "model.plan").exists()
    double_of_a_gpu(monkeypatch)
    monkeypatch.setattr(kinds.TensorRT, "build_reads", ("build.json",))
    build_engines(place)
    assert (place / "artefacts" / "ranking" / "build.json").is_file(), "it can be built for another GPU"
    assert (place / "triton" / "query_towers" / "1" / "model.plan").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_damaged_release_is_not_built(unbuilt: Release, tmp_path: Path) -> None:
    place = Path(shutil.copytree(unbuilt.path, tmp_path / "release"))
    network = place / "artefacts" / "ranking" / "model.fp16.onnx"
    network.write_bytes(network.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtefactCorrupt, match=r"model\.fp16\.onnx: expected SHA-256 .*export again"):
        build_engines(place)


@pytest.mark.tensorrt
@pytest.mark.slow
def test_a_release_of_tensorrt_rtx_brings_its_plans(parts: Parts, tmp_path: Path) -> None:
    release = small_release(
        tmp_path / "small", parts, target="tensorrt-rtx", engine="tensorrt-rtx-bf16", layout="staged"
    )
    for stage in ("query_towers", "ranking"):
        assert (release.path / "artefacts" / stage / "model.plan").is_file()
        config = (release.path / "triton" / stage / "config.pbtxt").read_text()
        assert 'backend: "python"' in config, "its plans have a runtime of their own"
    if not torch.cuda.is_available():
        rows = [row for row in verify_release(release).rows if row.artefact == "ranking"]
        assert all(row.warning and "CUDA finds no GPU" in row.detail for row in rows)
        with pytest.raises(VerificationFailed, match="the engine was built, but not verified"):
            build_engines(release.path)


def test_what_stands_in_is_judged_as_float32(unbuilt: Release) -> None:
    row = next(row for row in verify_release(unbuilt).rows if row.artefact == "ranking")
    assert row.tolerance == str(ENGINES.find("onnx").tolerance)
    assert msgspec.json.decode((unbuilt.path / "artefacts/ranking/build.json").read_bytes())["batch"] == [
        1,
        1,
        8,
    ]
