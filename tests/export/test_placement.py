"""Where the stages of a release run: models, hops and copies for each layout and target."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from google.protobuf import text_format
from test_graph_config import GRAPH_STAGES
from tritonclient.grpc import model_config_pb2 as pb

from tiercel_pipelines.export.explained import every_placement, placement_of
from tiercel_serving.release.opened import Release
from tiercel_serving.reorder.cap import Cap
from tiercel_serving.repository.drawing import as_document, as_svg, as_text
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.repository.placement import ANSWER, REQUEST, bytes_a_user, placed_otherwise
from tiercel_serving.repository.targets import LAYOUTS, TARGETS
from tiercel_serving.spec import TensorSpec

#: The stages of the small release that are engines.
ENGINE_STAGES = {"query_towers", "ranking"}


@pytest.mark.parametrize("target", TARGETS)
def test_fused_is_one_model(release: Release, target: str) -> None:
    placement = placement_of(release.manifest, target, "fused")
    (model,) = placement.models
    assert [stage.name for stage in model.stages] == list(GRAPH_STAGES)
    assert [(hop.source, hop.to) for hop in placement.hops] == [(REQUEST, "chain"), ("chain", ANSWER)]
    assert [tensor.name for tensor in placement.hops[1].tensors] == ["item_id", "score", "count", "status"]


def test_staged_tensorrt_has_its_plans_in_tritons_backend(release: Release) -> None:
    placement = placement_of(release.manifest, "tensorrt", "staged")
    backends = {model.name: (model.backend, model.instance_kind) for model in placement.models}
    assert list(backends) == list(GRAPH_STAGES)
    for name, backend in backends.items():
        assert backend == (("tensorrt", "KIND_GPU") if name in ENGINE_STAGES else ("python", "KIND_CPU"))
    assert ("query_towers", "retrieval") in {(hop.source, hop.to) for hop in placement.hops}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_are_those_of_engines_on_a_gpu(release: Release, layout: str) -> None:
    assert placement_of(release.manifest, "cpu", layout).copies == ()
    copies = placement_of(release.manifest, "tensorrt", layout).copies
    assert copies[0].tensors == release.stages["query_towers"].inputs
    assert [(copy.stage, copy.to_device) for copy in copies] == [
        (stage, to_device) for stage in sorted(ENGINE_STAGES) for to_device in (True, False)
    ]
    assert copies[3].tensors == release.stages["ranking"].outputs
    other = placement_of(release.manifest, "cpu", layout, "onnx-cuda")
    assert len(other.copies) == 4


def test_a_gpu_is_crossed_for_the_request_and_the_answer_alone(release: Release) -> None:
    placement = placement_of(release.manifest, "gpu", "fused")
    (model,) = placement.models
    assert model.instance_kind == "KIND_GPU"
    assert [stage.name for stage in model.stages if stage.device == "cpu"] == ["user_features"]
    copied = {(one.stage, one.to_device): {tensor.name for tensor in one.tensors} for one in placement.copies}
    first = {tensor.name for tensor in release.stages["query_towers"].inputs}
    assert copied == {
        ("query_towers", True): first,
        ("retrieval", True): {"excluded_row"},
        ("ordering", False): {"item_id", "score", "count"},
    }
    assert placement_of(release.manifest, "torch", "fused").copies == ()


def test_a_step_without_a_form_on_a_device_is_named(release: Release) -> None:
    settings = msgspec.structs.replace(release.settings, reorder=(Cap(column="kind", most=2),))
    manifest = msgspec.structs.replace(release.manifest, settings=settings)
    placement = placement_of(manifest, "gpu", "fused")
    last = placement.models[0].stages[-1]
    assert (last.device, last.by) == ("cpu", "NumPy, for cap runs on the host alone")
    assert [copy.to_device for copy in placement.copies if copy.stage == "ordering"] == [False]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", TARGETS)
def test_it_is_what_the_configs_say(release: Release, tmp_path: Path, target: str, layout: str) -> None:
    """Models, backends and tensors between them equal those read back from an exported repository."""
    placement = placement_of(release.manifest, target, layout)
    made = Release(release.path, placed_otherwise(release.manifest, target, layout))
    render_repository(made, tmp_path, layout)
    configs = {
        path.parent.name: text_format.Parse(path.read_text(), pb.ModelConfig())
        for path in tmp_path.glob("*/config.pbtxt")
    }
    steps = configs["recommend"].ensemble_scheduling.step
    assert [model.name for model in placement.models] == [step.model_name for step in steps]
    for model, step in zip(placement.models, steps, strict=True):
        config = configs[model.name]
        assert model.backend == config.backend
        kind = pb.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind)
        assert model.instance_kind == kind
        came = {tensor.name for hop in placement.hops if hop.to == model.name for tensor in hop.tensors}
        assert came == set(step.input_map)
        given = {tensor.name for hop in placement.hops if hop.source == model.name for tensor in hop.tensors}
        assert given == set(step.output_map)
    asked = {tensor.name for hop in placement.hops if hop.source == REQUEST for tensor in hop.tensors}
    assert asked == {tensor.name for tensor in configs["recommend"].input}


def test_it_is_told_for_every_layout_and_target(release: Release) -> None:
    placements = every_placement(release.manifest)
    assert {(one.target, one.layout) for one in placements} == {(t, la) for t in TARGETS for la in LAYOUTS}
    for placement in placements:
        text = as_text(placement)
        assert f"{placement.layout}, target {placement.target}: {len(placement.models)} model" in text
        picture = ElementTree.fromstring(as_svg(placement))
        drawn = " ".join(element.text or "" for element in picture.iter())
        for model in placement.models:
            assert f"{model.name}  (Triton's {model.backend} backend" in drawn
            assert f"\n{model.name}  (Triton's {model.backend} backend" in text
        assert text.count("copied to the GPU") == drawn.count("copied to the GPU")
        assert text.count("copied to") == len(placement.copies)
        assert len(ElementTree.tostring(picture)) > 1000
        document: dict[str, Any] = json.loads(json.dumps(as_document(placement)))
        assert len(document["hops"]) == len(placement.hops)


def test_bytes_are_counted_where_they_are_known() -> None:
    tensors = (
        TensorSpec("a", "float32", (4, 3)),
        TensorSpec("b", "int64", (2,)),
        TensorSpec("c", "int64", (-1,)),
        TensorSpec("d", "bytes", (1,)),
    )
    assert bytes_a_user(tensors) == 48 + 16


def test_the_example_of_the_docs_is_true(release: Release) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```\n(small, staged.*?)```", docs, re.DOTALL)
    text = as_text(placement_of(release.manifest, "tensorrt", "staged"))
    for part in example.split("…\n"):
        assert part in text + "\n", text
