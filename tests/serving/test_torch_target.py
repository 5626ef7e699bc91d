"""The targets ``gpu`` and ``torch``: configs, a real Triton on the CPU, and machines that can't run them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from on_device import on_device
from stage_oracles import Ask, tensors
from tiny_release import Tiny, make_tiny
from tritonclient.grpc import model_config_pb2

from benchmarks.gpu.served import changed
from brief_server import brief_server
from tiercel_client import Recommender
from tiercel_serving.device import place_torch
from tiercel_serving.device.place_torch import Place
from tiercel_serving.errors import DeviceUnavailable, KindUnavailable
from tiercel_serving.release.opened import Release
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.repository.targets import TARGETS
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.stages.table import build_stage
from tiercel_serving.verify.stand_in import with_stand_ins


@pytest.mark.parametrize(("target", "kind"), [("gpu", "KIND_GPU"), ("torch", "KIND_CPU")])
def test_the_fused_layout_is_one_model(plain: Tiny, tmp_path: Path, target: str, kind: str) -> None:
    release = on_device(plain.release, "cuda" if target == "gpu" else "cpu")
    names = render_repository(release, tmp_path, "fused")
    assert names[:1] == ["chain"]
    assert set(names[1:]) == {"describe_items", "recommend", "recommend_explain"}
    text = (tmp_path / "chain" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert [model_config_pb2.ModelInstanceGroup.Kind.Name(one.kind) for one in config.instance_group] == [
        kind
    ]


def test_it_is_served_and_answers_as_the_cpu_target_does(tmp_path: Path) -> None:
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("the embedded Triton is not installed")
    tiny = make_tiny(tmp_path / "release", seed=2)
    release = changed(tiny.release, tmp_path / "there", "torch", "onnx")
    assert (release.manifest.target, release.manifest.layout) == ("torch", "fused")
    with brief_server(release, timeout_s=240.0) as server:
        with Recommender(server.grpc_url, timeout_s=60.0) as recommender:
            answers = recommender.recommend_many(tiny.user_ids, k=5)
    asks = [Ask(user, k=5) for user in tiny.user_ids]
    want, _ = Chain.open(tiny.release).run(tensors(asks))
    for answer, ids, scores, count in zip(
        answers, want["item_id"].tolist(), want["score"].tolist(), want["count"][:, 0], strict=True
    ):
        assert [item.item_id for item in answer.items] == ids[:count]
        np.testing.assert_allclose(
            [item.score for item in answer.items], scores[:count], rtol=1e-5, atol=1e-5
        )


def test_models_beside_the_graph_need_no_device(plain: Tiny) -> None:
    assert Chain.open(on_device(plain.release, "cuda"), ["describe_items"]).place is None


def test_the_targets_engines_are_made_for_their_device() -> None:
    from tiercel_serving.engines.table import ENGINES

    for target in TARGETS.values():
        if target.device is not None:
            assert {ENGINES.find(name).device for name in (target.engine, *target.instead)} == {target.device}


# --------------------------------------------------------------------------------- unsuitable machines


def broken(**functions: Any) -> SimpleNamespace:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    return SimpleNamespace(**{"init": init, "device_count": lambda: 0, **functions})


def test_no_gpu(plain: Tiny) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceUnavailable, match=r"target gpu: torch .*--gpus all.*--target torch"):
        Chain.open(on_device(plain.release, "cuda"))


def test_where_there_is_no_gpu_others_stand_in_and_it_is_said(plain: Tiny) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    manifest = plain.release.manifest
    built = {
        "queries": {
            name: msgspec.structs.replace(one, engine="aoti-cuda") for name, one in manifest.queries.items()
        },
        "ranking": msgspec.structs.replace(manifest.ranking, engine="aoti-cuda"),
    }
    release = Release(plain.release.path, msgspec.structs.replace(manifest, target="gpu", **built))
    opened, reasons = with_stand_ins(release)
    assert opened.manifest.target == "torch"
    assert {one.engine for one in opened.manifest.queries.values()} == {"onnx"}
    assert reasons["ranking"].endswith("onnx ran the same graph instead")
    assert "target gpu: torch" in reasons["answers"]
    assert reasons["answers"].endswith("Target torch ran the same stages instead")
    asked = tensors([Ask(user) for user in plain.user_ids[:3]])
    want, got = Chain.open(plain.release).run(asked)[0], Chain.open(opened).run(asked)[0]
    np.testing.assert_array_equal(got["item_id"], want["item_id"])


def test_a_driver_that_is_too_old_and_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch, "cuda", broken())
    with pytest.raises(
        DeviceUnavailable, match=r"CUDA 12\.8\) can use no GPU: .*driver .* too old.*driver for"
    ):
        Place("cuda")
    monkeypatch.setattr(torch, "cuda", broken(init=lambda: None, device_count=lambda: 1))
    with pytest.raises(DeviceUnavailable, match="there is no GPU 3, 1 are there"):
        Place("cuda:3")


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("cpu")
    place.device = torch.device("cuda", 0)
    monkeypatch.setattr(place_torch.torch.cuda, "mem_get_info", lambda device: (1_000_000, 8_000_000))
    with pytest.raises(DeviceUnavailable, match=r"a table \[3000, 100\] needs 1 MB, 1 MB are free.*float16"):
        place.table(np.zeros((3000, 100), np.float32))


def test_no_torch(plain: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tiercel_serving.device.place_torch", None)
    with pytest.raises(KindUnavailable, match=r'target .torch. needs torch.*pip install "tiercel\[aoti\]"'):
        Chain.open(on_device(plain.release, "cpu"))


def test_what_has_no_form_on_the_device_runs_on_the_host(tiny_of: Callable[[str], Tiny]) -> None:
    release: Release = tiny_of("reordered").release
    stage = build_stage("ordering", on_device(release, "cpu"), Place("cpu"))
    assert not hasattr(stage, "tensors")
