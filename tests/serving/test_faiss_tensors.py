"""An exported index searched with tensors, and the calls made to FAISS with and without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import faiss
import msgspec
import numpy as np
import pytest
import torch
from on_device import DEVICES, on_device
from stage_oracles import Ask, tensors
from test_torch_stages import asks_for, check_same
from tiny_release import Tiny

from tiercel_serving.device.masks_torch import TensorMask
from tiercel_serving.device.place_torch import Place
from tiercel_serving.device.search_torch import DeviceSearch
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.sources import faiss_torch
from tiercel_serving.sources.faiss_torch import SCRATCH_BYTES, FaissSearch, gpu_resources, open_faiss
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.search import Profile, Rung

VECTORS = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
PROFILE = Profile("nprobe", 0.0, (Rung(60, 2, 0.1, 0.0), Rung(250, 4, 0.3, 0.0)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", ["ivf", "ivf of ties", "ivf, most seen"])
def test_it_answers_as_the_host_does(
    device: str, variant: str, tiny_of: Callable[[str], Tiny], chain_of: Callable[[str], Chain]
) -> None:
    tiny = tiny_of(variant)
    sources = tuple(
        msgspec.structs.replace(one, exact_on_device=0) if isinstance(one, Index) else one
        for one in tiny.settings.sources
    )
    chain = Chain.open(on_device(tiny.release, device, sources=sources))
    for asks in (asks_for(tiny), [Ask(user) for user in tiny.user_ids[:4]]):
        arrays = tensors(asks)
        check_same(chain_of(variant).run(arrays)[0], chain.run(arrays)[0])


def index() -> Any:
    made = faiss.index_factory(8, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    made.train(VECTORS)
    made.add(VECTORS)
    return made


def exact() -> DeviceSearch:
    return DeviceSearch(torch.from_numpy(VECTORS), None, len(VECTORS))


def mask(most: int, allowed: torch.Tensor | None = None) -> TensorMask:
    return TensorMask(1, 300, torch.tensor([*range(most), 300]), most, allowed)


def test_the_knob_follows_what_is_masked_and_deep_requests_are_scanned() -> None:
    turned: list[float] = []
    asked: list[int] = []

    def turn(index: Any, knob: str, value: float) -> None:
        turned.append(value)
        faiss.ParameterSpace().set_index_parameter(index, knob, value)

    class Counted:
        def __init__(self) -> None:
            self.index = index()

        def search(self, query: torch.Tensor, count: int) -> Any:
            asked.append(count)
            return self.index.search(query, count)

    counted = Counted()
    search = FaissSearch(exact(), counted, PROFILE, lambda one, *how: turn(one.index, *how))
    query = torch.from_numpy(VECTORS[:1] + 1)
    for most in (0, 100, 120, 0):
        search.nearest(query, mask(most), 20)
    assert asked == [36, 136, 156, 36]
    assert turned == [2, 4, 2]
    everything = torch.ones((1, 301), dtype=torch.bool)
    for one, count in ((mask(290), 20), (mask(0, everything), 20), (mask(0), 290)):
        found = search.nearest(query, one, count)
        assert torch.equal(found[1], exact().nearest(query, one, count)[1])
    assert len(asked) == 4


def test_without_a_gpu_in_faiss_it_is_exact_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    place, there = Place("cpu"), exact()
    place.device = torch.device("cuda", 0)
    if not hasattr(faiss, "StandardGpuResources"):
        assert open_faiss(there, index, PROFILE, "IVF4,PQ4", place) is there
        assert "has no GPU; install faiss-gpu" in caplog.text


def test_what_faiss_gpu_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []

    class Resources:
        def setTempMemory(self, size: int) -> None:
            told.append(size)

    class Cagra(faiss.IndexFlatIP):
        def __init__(self, resources: Resources, dimension: int, metric: int, config: Any) -> None:
            super().__init__(dimension)
            told.append((metric, config.device, config.graph_degree))

        def train(self, vectors: torch.Tensor) -> None:
            self.add(vectors)

    def to_gpu(resources: Resources, device: int, made: Any, options: Any) -> Any:
        assert options.useFloat16 is (made.nlist == 4), "of product quantizers alone"
        if made.nlist == 1:
            raise RuntimeError("not implemented on a GPU")
        return made

    gpu_resources.cache_clear()
    for name, value in {
        "StandardGpuResources": Resources,
        "GpuClonerOptions": SimpleNamespace,
        "index_cpu_to_gpu": to_gpu,
        "GpuParameterSpace": faiss.ParameterSpace,
    }.items():
        monkeypatch.setattr(faiss, name, value, raising=False)
    place, there = Place("cpu"), exact()
    place.device = torch.device("cuda", 0)
    query = torch.from_numpy(VECTORS[:1])
    for _ in range(2):
        search = open_faiss(there, index, PROFILE, "IVF4,PQ4", place)
        assert isinstance(search, FaissSearch)
        assert search.nearest(query, mask(3), 5)[1].shape == (1, 5)
    assert told == [SCRATCH_BYTES], "one object a process"
    flat = lambda: SimpleNamespace(nlist=1)  # noqa: E731
    assert open_faiss(there, flat, PROFILE, "IVF1,SQ4", place) is there
    assert "faiss-gpu can't have 'IVF1,SQ4' (not implemented on a GPU)" in caplog.text
    assert open_faiss(there, index, PROFILE, "HNSW32", place) is there
    assert "no CAGRA; install faiss-gpu-cuvs" in caplog.text
    monkeypatch.setattr(faiss, "GpuIndexCagra", Cagra, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexCagraConfig", SimpleNamespace, raising=False)
    search = open_faiss(there, index, PROFILE, "HNSW32", place)
    assert isinstance(search, FaissSearch)
    assert told[1:] == [(faiss.METRIC_INNER_PRODUCT, 0, faiss_torch.CAGRA_DEGREE)]
    for got, want in zip(
        search.nearest(query, mask(30), 20), there.nearest(query, mask(30), 20), strict=True
    ):
        assert torch.equal(got, want)
    gpu_resources.cache_clear()
