"""Configs as written by the config writer, read back through Triton's own messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf import text_format
from small_release import SETTINGS
from tritonclient.grpc import model_config_pb2 as pb

from tiercel_serving.errors import InvalidSettings
from tiercel_serving.release.opened import Release
from tiercel_serving.repository.graph import (
    EXPLAIN_OUTPUTS,
    RECOMMEND_OUTPUTS,
    filter_reasons,
    render_repository,
)
from tiercel_serving.repository.targets import find_runner, find_target, model_groups
from tiercel_serving.repository.validate import validate_repository

#: The stages of the small release, in order.
GRAPH_STAGES = (
    "user_features",
    "query_towers",
    "retrieval",
    "filtering",
    "candidate_features",
    "ranking",
    "ordering",
)


def read(directory: Path) -> dict[str, Any]:
    return {
        path.parent.name: text_format.Parse(path.read_text(), pb.ModelConfig())
        for path in directory.glob("*/config.pbtxt")
    }


@pytest.fixture(scope="module")
def configs(release: Release, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Render both layouts into one repository and return the configs by model."""
    directory = tmp_path_factory.mktemp("repository")
    assert render_repository(release, directory, "fused")[-2:] == ["recommend", "recommend_explain"]
    render_repository(release, directory, "staged", suffix="_staged")
    validate_repository(directory)
    return read(directory)


def test_models_of_both_layouts(configs: dict[str, Any]) -> None:
    ensembles = {"recommend", "recommend_explain", "recommend_staged", "recommend_explain_staged"}
    assert set(configs) == {"chain", "describe_items", *GRAPH_STAGES, *ensembles}
    assert {name for name, config in configs.items() if config.platform == "ensemble"} == ensembles
    assert json.loads(configs["chain"].parameters["stages"].string_value) == list(GRAPH_STAGES)
    assert json.loads(configs["ranking"].parameters["stages"].string_value) == ["ranking"]


def test_both_layouts_have_the_same_public_face(configs: dict[str, Any]) -> None:
    for name in ("recommend", "recommend_explain"):
        one, other = configs[name], configs[f"{name}_staged"]
        assert sorted(map(str, one.input)) == sorted(map(str, other.input))
        assert sorted(map(str, one.output)) == sorted(map(str, other.output))
        assert one.parameters == other.parameters
        assert len(one.ensemble_scheduling.step) == 1
        assert len(other.ensemble_scheduling.step) == len(GRAPH_STAGES)
    assert [output.name for output in configs["recommend"].output] == list(RECOMMEND_OUTPUTS)
    explained = {output.name for output in configs["recommend_explain"].output}
    assert explained == {
        *RECOMMEND_OUTPUTS,
        *(name for name in EXPLAIN_OUTPUTS if name != "reorder_reason"),
        *(f"time_us_{stage}" for stage in GRAPH_STAGES),
    }


def test_in_the_servers_process_the_public_models_are_the_chain_itself(
    release: Release, configs: dict[str, Any], tmp_path: Path
) -> None:
    own = Release(release.path, msgspec.structs.replace(release.manifest, runner="tiercel"))
    render_repository(own, tmp_path, "fused")
    render_repository(own, tmp_path, "staged", suffix="_staged")
    validate_repository(tmp_path)
    direct = read(tmp_path)
    assert set(direct) == set(configs) - {"chain"}
    for name in ("recommend", "recommend_explain"):
        model, ensemble = direct[name], configs[name]
        assert (model.backend, model.platform) == ("tiercel", "")
        assert model.max_batch_size == ensemble.max_batch_size
        assert list(model.output) == list(ensemble.output)
        assert {one.name: (one.data_type, list(one.dims), one.optional) for one in model.input} == {
            one.name: (one.data_type, list(one.dims), one.optional) for one in ensemble.input
        }
        told = {key: value.string_value for key, value in ensemble.parameters.items()}
        assert told.items() <= {k: value.string_value for k, value in model.parameters.items()}.items()
        assert not (tmp_path / name / "1" / "model.py").exists()
        assert len(direct[f"{name}_staged"].ensemble_scheduling.step) == len(GRAPH_STAGES)


def test_public_inputs(configs: dict[str, Any], release: Release) -> None:
    inputs = {tensor.name: tensor for tensor in configs["recommend"].input}
    # Optional, because the first stage reports a missing user_id, where Triton would report a deadlock.
    assert all(tensor.optional for tensor in inputs.values())
    assert inputs["user_id"].data_type == pb.TYPE_INT64
    assert list(inputs["exclude_item_ids"].dims) == [-1]
    assert {"k", "device", "device__valid", "age", "age__valid", "income", "history_item_ids__length"} <= set(
        inputs
    )
    assert "income__valid" not in inputs
    # The id is a feature too, but a request sends it only once.
    assert "user_id__valid" not in inputs
    assert "user_id" not in {column.name for column in release.manifest.request_columns}


def test_recommend_maps_only_what_is_needed(configs: dict[str, Any]) -> None:
    steps = {step.model_name: step for step in configs["recommend_staged"].ensemble_scheduling.step}
    assert "filter_reason" not in steps["filtering"].output_map
    assert "time_us_ranking" not in steps["ranking"].output_map
    explain = {step.model_name: step for step in configs["recommend_explain_staged"].ensemble_scheduling.step}
    assert "filter_reason" in explain["filtering"].output_map


def test_stage_models_batch_ragged_requests_and_warm_up(configs: dict[str, Any]) -> None:
    for config in configs.values():
        assert config.max_batch_size == SETTINGS.max_batch_size
        if config.platform == "ensemble":
            assert not config.instance_group
            continue
        assert config.backend == "python"
        assert config.HasField("dynamic_batching")
        assert not config.dynamic_batching.HasField("default_queue_policy")
        assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU
        assert all(tensor.allow_ragged_batch == (-1 in tensor.dims) for tensor in config.input)
        required = {tensor.name for tensor in config.input if not tensor.optional}
        assert required <= set(config.model_warmup[0].inputs)
        assert len(config.model_warmup[0].inputs) >= 1


def test_tritons_batching_is_left_out_where_the_runner_gathers(release: Release, tmp_path: Path) -> None:
    """All requests wait in the backend, unless the recipe limits callers', or has several instances."""

    def batched(place: Path, **settings: int) -> set[str]:
        changed = msgspec.structs.replace(
            release.manifest, settings=msgspec.structs.replace(SETTINGS, **settings)
        )
        render_repository(Release(release.path, changed), place, "staged", runner="tiercel")
        return {name for name, config in read(place).items() if config.HasField("dynamic_batching")}

    assert batched(tmp_path / "a") == set()
    assert batched(tmp_path / "b", max_queue_size=32) == {"user_features", "describe_items"}
    assert batched(tmp_path / "c", queue_delay_us=500) == {"user_features", "describe_items"}
    assert batched(tmp_path / "d", instances=2) == {"user_features", "describe_items"}


def test_clients_are_told_the_limits(configs: dict[str, Any], release: Release) -> None:
    parameters = {key: value.string_value for key, value in configs["recommend"].parameters.items()}
    assert parameters["build_id"] == release.build_id
    assert parameters["k_max"] == str(SETTINGS.k_max)
    assert parameters["k_default"] == str(SETTINGS.k_default)
    assert parameters["max_excluded"] == str(SETTINGS.max_excluded)
    assert parameters["item_id_dtype"] == "int64"
    assert json.loads(parameters["sources"]) == ["towers", "popular"]
    assert json.loads(parameters["stages"]) == list(GRAPH_STAGES)
    assert json.loads(parameters["filter_reasons"])["3"] == "in stock: not stock > 0"
    columns = {column["name"]: column for column in json.loads(parameters["request_columns"])}
    assert columns["device"] == {
        **{"name": "device", "dtype": "bytes", "is_list": False, "part": "context"},
        **{"tensor": "device", "companion": "device__valid", "unit": None},
    }


def test_filter_reasons_number_the_rules() -> None:
    reasons = filter_reasons(SETTINGS)
    assert list(reasons) == ["0", "1", "2", "3", "4"]
    assert reasons["4"] == 'not for sale: not kind not in ["gift"]'


def test_settings_reach_the_configs(release: Release, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, queue_delay_us=500, max_queue_size=32, instances=3)
    changed = Release(release.path, msgspec.structs.replace(release.manifest, settings=settings))
    render_repository(changed, tmp_path, "fused")
    config = read(tmp_path)["chain"]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 32
    assert config.instance_group[0].count == 3


@pytest.mark.parametrize("inside", [True, False])
def test_models_find_the_release(release: Release, tmp_path: Path, inside: bool) -> None:
    root = Release(tmp_path / "release", release.manifest)
    directory = root.path / "triton" if inside else tmp_path / "elsewhere"
    render_repository(root, directory, "fused")
    path = read(directory)["chain"].parameters["release"].string_value
    assert path == ("../.." if inside else str(root.path.resolve()))


def test_text_and_message_agree(configs: dict[str, Any]) -> None:
    for config in configs.values():
        again = text_format.Parse(text_format.MessageToString(config), pb.ModelConfig())
        assert again == config


def test_unknown_targets_and_layouts_are_named() -> None:
    with pytest.raises(InvalidSettings, match="no target 'tpu'; use 'cpu'"):
        find_target("tpu")
    with pytest.raises(InvalidSettings, match="no runner 'rust'; use 'python', 'tiercel'"):
        find_runner("rust")
    with pytest.raises(InvalidSettings, match="'fused', 'staged'"):
        model_groups("sideways", GRAPH_STAGES)
