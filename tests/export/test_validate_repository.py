"""The offline validator: each rule is violated once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tiercel_serving.errors import InvalidConfig
from tiercel_serving.release.opened import Release
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.repository.validate import validate_repository


@pytest.fixture(scope="module")
def template(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("valid")
    render_repository(release, directory, "staged")
    validate_repository(directory)
    return directory


def change(directory: Path, model: str, edit: Callable[[Any], None]) -> None:
    path = directory / model / "config.pbtxt"
    config = text_format.Parse(path.read_text(), pb.ModelConfig())
    edit(config)
    path.write_text(text_format.MessageToString(config))


def step(config: Any, model: str) -> Any:
    return next(step for step in config.ensemble_scheduling.step if step.model_name == model)


def tensor(tensors: Any, name: str) -> Any:
    return next(tensor for tensor in tensors if tensor.name == name)


def drop(tensors: Any, name: str) -> None:
    tensors.remove(tensor(tensors, name))


def required_user(config: Any) -> None:
    tensor(config.input, "user_id").optional = False


def second_maker(config: Any) -> None:
    step(config, "ordering").output_map["item_id"] = "query_towers"


def unused(config: Any) -> None:
    step(config, "filtering").output_map["filter_reason"] = "filter_reason"


def unknown_output(config: Any) -> None:
    step(config, "filtering").output_map["reason"] = "reason"


def own_batching(config: Any) -> None:
    config.dynamic_batching.SetInParent()


def instances(config: Any) -> None:
    config.instance_group.add(count=1)


def lost_input(config: Any) -> None:
    del step(config, "retrieval").input_map["query_towers"]


def later_tensor(config: Any) -> None:
    step(config, "retrieval").input_map["query_towers"] = "kept_score"


def extra_input(config: Any) -> None:
    step(config, "retrieval").input_map["nothing"] = "user_cat"


def no_maker(config: Any) -> None:
    config.output.add(name="magic", data_type=pb.TYPE_FP32, dims=[1])


def no_steps(config: Any) -> None:
    del config.ensemble_scheduling.step[:]


def stranger(config: Any) -> None:
    step(config, "retrieval").model_name = "oracle"


def itself(config: Any) -> None:
    step(config, "retrieval").model_name = "recommend"


def no_map(config: Any) -> None:
    step(config, "filtering").output_map.clear()


def wrong_face(config: Any) -> None:
    tensor(config.output, "score").data_type = pb.TYPE_FP64


def small_batch(config: Any) -> None:
    config.max_batch_size = 2


def no_batch(config: Any) -> None:
    config.max_batch_size = 0


def negative_batch(config: Any) -> None:
    config.max_batch_size = -1


def wrong_dtype(config: Any) -> None:
    tensor(config.input, "query_towers").data_type = pb.TYPE_FP64


def wrong_dims(config: Any) -> None:
    tensor(config.input, "query_towers").dims[:] = [9]


def no_dtype(config: Any) -> None:
    tensor(config.input, "query_towers").data_type = pb.TYPE_INVALID


def zero_dims(config: Any) -> None:
    tensor(config.input, "query_towers").dims[:] = [0]


def twice(config: Any) -> None:
    config.input.add().CopyFrom(tensor(config.input, "query_towers"))


def no_outputs(config: Any) -> None:
    del config.output[:]


def not_ragged(config: Any) -> None:
    tensor(config.input, "excluded_row").allow_ragged_batch = False


def warm_stranger(config: Any) -> None:
    config.model_warmup[0].inputs["nothing"].dims.append(1)


def warm_dtype(config: Any) -> None:
    config.model_warmup[0].inputs["query_towers"].data_type = pb.TYPE_INT32


def warm_gap(config: Any) -> None:
    del config.model_warmup[0].inputs["query_towers"]


def warm_batch(config: Any) -> None:
    config.model_warmup[0].batch_size = 1000


def other_name(config: Any) -> None:
    config.name = "retrieve"


def no_backend(config: Any) -> None:
    config.backend = ""


BROKEN = [
    ("user_features", required_user, "is an optional input of the ensemble"),
    ("recommend", second_maker, "already made"),
    ("recommend", unused, "is used by nothing"),
    ("recommend", unknown_output, "maps an output 'reason'"),
    ("recommend", own_batching, "its own batching"),
    ("recommend", instances, "instance_group"),
    ("recommend", lost_input, "'query_towers' is not mapped"),
    ("recommend", later_tensor, "no earlier step makes"),
    ("recommend", extra_input, "maps an input 'nothing'"),
    ("recommend", no_maker, "no step makes it"),
    ("recommend", no_steps, "at least one step"),
    ("recommend", stranger, "'oracle': no such model"),
    ("recommend", itself, "cannot call itself"),
    ("recommend", no_map, "maps no output"),
    ("recommend", wrong_face, "dtype TYPE_FP64 is wanted, TYPE_FP32 comes"),
    ("retrieval", small_batch, "max_batch_size 2 is below"),
    ("retrieval", no_batch, "dynamic_batching needs"),
    ("retrieval", negative_batch, "is negative"),
    ("retrieval", wrong_dtype, "TYPE_FP64 is wanted"),
    ("retrieval", wrong_dims, r"dims \[9\] are wanted"),
    ("retrieval", no_dtype, "no data type"),
    ("retrieval", zero_dims, "must be positive"),
    ("retrieval", twice, "is there twice"),
    ("retrieval", no_outputs, "no outputs"),
    ("retrieval", not_ragged, "stops batching"),
    ("retrieval", warm_stranger, "no input 'nothing'"),
    ("retrieval", warm_dtype, "not of the input's dtype"),
    ("retrieval", warm_gap, "input 'query_towers' is missing"),
    ("retrieval", warm_batch, "batch_size 1000"),
    ("retrieval", other_name, "is named 'retrieve'"),
    ("retrieval", no_backend, "neither backend nor platform"),
]


@pytest.mark.parametrize(("model", "edit", "words"), BROKEN, ids=[edit.__name__ for _, edit, _ in BROKEN])
def test_each_broken_rule_is_found(
    template: Path, tmp_path: Path, model: str, edit: Callable[[Any], None], words: str
) -> None:
    directory = Path(shutil.copytree(template, tmp_path / "repository"))
    change(directory, model, edit)
    with pytest.raises(InvalidConfig, match=words) as error:
        validate_repository(directory)
    assert model in str(error.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "stray").mkdir(), "stray: a directory without config.pbtxt stops the server"),
        (lambda d: (d / "ranking" / "config.pbtxt").write_text("nam: 3"), "cannot be read"),
        (lambda d: (d / "recommend" / "1").rmdir(), "no version directory 1/"),
        (lambda d: (d / "ranking" / "1" / "model.py").unlink(), r"no 1/model\.py"),
    ],
)
def test_directories_are_checked(
    template: Path, tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    directory = Path(shutil.copytree(template, tmp_path / "repository"))
    damage(directory)
    with pytest.raises(InvalidConfig, match=words):
        validate_repository(directory)


def test_loose_files_do_no_harm_and_nothing_at_all_does(template: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(template, tmp_path / "repository"))
    (directory / "README").write_text("x")
    validate_repository(directory)
    with pytest.raises(InvalidConfig, match="no models"):
        validate_repository(tmp_path / "missing")


def test_all_findings_come_at_once(template: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(template, tmp_path / "repository"))
    change(directory, "recommend", unused)
    change(directory, "retrieval", small_batch)
    with pytest.raises(InvalidConfig) as error:
        validate_repository(directory)
    assert "used by nothing" in str(error.value)
    assert "max_batch_size 2" in str(error.value)
