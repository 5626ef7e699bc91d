"""Engines that take tensors on their device; CUDA graphs by batch bucket, with a stand-in for the capture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from on_device import DEVICES, ON_CUDA, capture_double, on_device
from test_engine_kinds import EXAMPLES, WEIGHTS
from tiny_release import Tiny
from torch import Tensor

from tiercel_serving.device.graphs_torch import BUCKETS, Captured, GraphedForms, GraphedRun, Run, bucket_of
from tiercel_serving.device.place_torch import ALIGNED, Place, Staging
from tiercel_serving.engines.onnx import PROVIDERS, on_stream
from tiercel_serving.engines.table import ENGINES, OnStream, TakesTensors
from tiercel_serving.stages.engine_torch import TensorEngineStage, open_stage


@pytest.mark.parametrize(
    "name",
    [
        "onnx",
        pytest.param("aoti", marks=pytest.mark.slow),
        pytest.param("onnx-cuda", marks=pytest.mark.gpu),
        pytest.param("aoti-cuda", marks=pytest.mark.gpu),
    ],
)
def test_it_runs_on_tensors_as_on_arrays(name: str, tmp_path: Path) -> None:
    kind = ENGINES.find(name)
    if name == "onnx-cuda" and name != ON_CUDA:
        pytest.skip("this ONNX Runtime has no CUDA provider: install onnxruntime-gpu")
    EXAMPLES[name](tmp_path / kind.file)
    place, rng = Place(kind.device), np.random.default_rng(0)
    with place.here():
        engine = kind.open(tmp_path / kind.file, ("shifted", "product"), threads=1)
        assert isinstance(engine, TakesTensors)
        # The batch size 3 comes twice: a captured graph must read the new inputs.
        for users in (1, 3, 64, 3):
            wide = place.put(rng.normal(size=(users, 6)).astype(np.float32))
            numbers, places = wide[:, ::2], place.put(rng.integers(0, 9, (users, 1)))
            out = engine.run_tensors({"numbers": numbers, "places": places, "other": wide})
            assert list(out) == ["shifted", "product"]
            assert {one.device for one in out.values()} == {place.device}
            product = place.take(numbers) @ WEIGHTS
            np.testing.assert_allclose(place.take(out["product"]), product, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(
                place.take(out["shifted"]), product + place.take(places), rtol=1e-5, atol=1e-5
            )
        engine.close()


@pytest.mark.parametrize("device", DEVICES)
def test_an_engine_of_another_device_runs_on_the_host(plain: Tiny, device: str) -> None:
    release, place = on_device(plain.release, device), Place(device)
    there = device == "cpu" or ON_CUDA == "onnx-cuda"
    assert isinstance(open_stage("ranking", release, place), TensorEngineStage) == there
    place.device = torch.device("meta")
    assert not hasattr(open_stage("ranking", plain.release, place), "tensors")


def test_onnx_runtime_works_on_the_stream_that_it_is_given() -> None:
    assert isinstance(ENGINES.find("onnx-cuda"), OnStream)
    assert not isinstance(ENGINES.find("onnx"), OnStream)
    assert on_stream(PROVIDERS["cuda"], None) == PROVIDERS["cuda"]
    name, options = on_stream(PROVIDERS["cuda"], 7)
    assert name == "CUDAExecutionProvider"
    assert options == {"use_tf32": "0", "has_user_compute_stream": "1", "user_compute_stream": "7"}


# --------------------------------------------------------------------------------------------- CUDA graphs


def test_a_batch_takes_the_next_larger_bucket() -> None:
    assert [bucket_of(batch, BUCKETS) for batch in (1, 2, 3, 9, 64, 65, 256)] == [1, 2, 4, 16, 64, 128, 256]
    assert bucket_of(257, BUCKETS) is None
    assert bucket_of(1, ()) is None


def test_batches_run_from_what_was_captured() -> None:
    ran: list[int] = []
    captured: list[int] = []

    def model(inputs: list[Tensor]) -> list[Tensor]:
        ran.append(len(inputs[0]))
        return [inputs[0] * 2, inputs[0].sum(dim=1) + inputs[1]]

    def double(run: Run, inputs: list[Tensor]) -> Captured:
        captured.append(len(inputs[0]))
        return capture_double(run, inputs)

    graphed = GraphedRun(model, double, (1, 4, 8))
    for batch in (3, 1, 4, 2, 9, 3):
        given = [torch.rand(batch, 3), torch.rand(batch)]
        out = graphed(given)
        assert torch.equal(out[0], given[0] * 2)
        assert torch.equal(out[1], given[0].sum(dim=1) + given[1])
    assert captured == [4, 1]
    assert ran.count(9) == 1


def test_what_lasts_is_read_where_it_is() -> None:
    read: list[list[int]] = []

    def noted(run: Run, inputs: list[Tensor]) -> Captured:
        read.append([one.data_ptr() for one in inputs])
        return capture_double(run, inputs)

    first = GraphedRun(lambda tensors: [tensors[0] * 2], noted, (2, 4))
    second = GraphedRun(lambda tensors: [tensors[0] + tensors[1]], noted, (2, 4))
    for batch in (2, 4, 2, 4):
        given = torch.rand(batch, 3)
        [doubled] = first([given])
        [got] = second([doubled, given])
        assert torch.equal(got, given * 3)
        assert doubled.data_ptr() in [addresses[0] for addresses in read]
    assert len(read) == 4
    # A batch between two buckets is a slice of a lasting buffer and is copied; so are foreign tensors.
    given = torch.rand(3, 3)
    assert torch.equal(second([*first([given]), given])[0], given * 3)
    mine = torch.rand(4, 3)
    assert torch.equal(second([mine, mine])[0], mine * 2)
    assert len(read) == 5


def test_arrays_cross_by_one_copy_to_where_they_last() -> None:
    rng = np.random.default_rng(0)
    staging: Staging | None = None
    for _ in range(2):
        arrays = {
            "flags": rng.random((2, 3)) < 0.5,
            "none": np.zeros((2, 0), np.int64),
            "numbers": rng.random((2, 5)).astype(np.float32)[:, ::-1],
            "rows": rng.integers(9, size=(2, 1)),
        }
        staging = staging or Staging(arrays, torch.device("cpu"))
        there = staging.put(arrays)
        assert list(there) == list(arrays)
        for name, array in arrays.items():
            assert there[name].data_ptr() % ALIGNED == 0
            np.testing.assert_array_equal(there[name].numpy(), array)
            assert there[name].numpy().dtype == array.dtype


@pytest.mark.parametrize(
    "run",
    [
        lambda tensors: [tensors[0] * float(tensors[0].sum())],
        lambda tensors: [tensors[0][tensors[0] > 0]],
        lambda tensors: [tensors[0] + torch.tensor([1.0, 2.0])],
        lambda tensors: [tensors[0].nonzero()],
        lambda tensors: [tensors[0] if tensors[0].any() else tensors[0] * 2],
    ],
)
def test_the_double_refuses_what_a_capture_does(run: Run) -> None:
    with pytest.raises(AssertionError, match="CUDA refuses it in a capture"):
        capture_double(run, [torch.ones(2)])


def test_the_double_sees_what_is_kept_for_the_next_replay() -> None:
    kept: list[Tensor] = []

    def run(tensors: list[Tensor]) -> list[Tensor]:
        kept.append(tensors[0] * 2)
        return [kept[-1] + 1]

    with pytest.raises(AssertionError, match="1 tensors of a capture are kept"):
        capture_double(run, [torch.ones(2)])


def test_what_cannot_be_captured_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    def broken(run: Run, inputs: list[Tensor]) -> Captured:
        raise RuntimeError("operation not permitted when stream is capturing")

    def double(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0] * 2]

    batches, forms = GraphedRun(double, broken), GraphedForms(broken)
    for value in (1.0, 3.0):
        given = [torch.full((3, 2), value)]
        assert torch.equal(batches(given)[0], given[0] * 2)
        assert torch.equal(forms("two", double, given)[0], given[0] * 2)
    assert len(caplog.records) == 2, "said once of each"
    assert "not permitted when stream is capturing" in caplog.text


def test_forms_are_captured_as_long_as_there_is_room() -> None:
    captured: list[int] = []

    def noted(run: Run, inputs: list[Tensor]) -> Captured:
        captured.append(len(inputs[0]))
        return capture_double(run, inputs)

    forms = GraphedForms(noted, room=2)
    for length in (4, 2, 4, 8, 8, 2):
        given = [torch.rand(length)]
        [got] = forms(length, lambda tensors: [tensors[0].cumsum(0)], given)
        assert torch.equal(got, given[0].cumsum(0))
    assert captured == [4, 2]
