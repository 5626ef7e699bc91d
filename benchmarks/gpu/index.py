"""An approximate FAISS index, searched as in a release, against exact search over the same vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.search import COUNT, SEEN
from benchmarks.gpu.timing import measure
from tiercel_serving.device.masks_torch import TensorMask, filled_up
from tiercel_serving.device.place_torch import Place
from tiercel_serving.device.search_torch import DeviceSearch
from tiercel_serving.sources.faiss_torch import MOST_FOUND, FaissSearch, cloner, gpu_resources, open_faiss
from tiercel_serving.sources.search import Profile, Rung

#: Number of cluster centres, and the standard deviation of items around them, relative to that of centres.
CENTRES, SPREAD = 2000, 0.7

#: Number of vectors that an index is trained on.
TRAINED = 200_000


class IndexRow(NamedTuple):
    """One index at one batch size: its recall of the best allowed items, and both searches' times in µs."""

    items: int
    factory: str
    nprobe: int
    users: int
    recall: float | None
    exact_us: float | None
    index_us: float | None
    reason: str = ""


def measure_index(
    items: int,
    dimension: int,
    factory: str,
    nprobes: Sequence[int],
    batches: Sequence[int],
    device: str,
    rounds: int,
    progress: Callable[[str], None],
) -> Iterator[IndexRow]:
    """Measure an index over random unit vectors; yield one row with only a reason if it can't be built."""
    progress(f"{factory} over {items:,} × {dimension}")
    place = Place(device)
    with place.here():
        drawn = partial(_drawn, dimension=dimension, device=device)
        vectors, queries = drawn(items, seed=1), drawn(max(batches), seed=2)
        exact = DeviceSearch(vectors, None, items)
        try:
            made = _made(vectors, factory, place)
        except Exception as error:  # such as FAISS without a GPU; the report says so
            reason = " ".join(str(error).split()[:25])
            yield IndexRow(items, factory, 0, 0, None, None, None, reason)
            return
        for nprobe in nprobes:
            profile = Profile("nprobe", 0.0, (Rung(MOST_FOUND, nprobe, 0.0, 0.0),))
            search = open_faiss(exact, lambda: made, profile, factory, place)
            assert isinstance(search, FaissSearch)
            for users in batches:
                figures = _figures(exact, search, queries[:users], place, rounds)
                yield IndexRow(items, factory, nprobe, users, *figures)


def _drawn(count: int, seed: int, dimension: int, device: str) -> Tensor:
    draw = torch.Generator(device=device).manual_seed(0)
    centres = torch.randn((CENTRES, dimension), device=device, generator=draw)
    draw.manual_seed(seed)
    which = torch.randint(CENTRES, (count,), device=device, generator=draw)
    around = SPREAD * torch.randn((count, dimension), device=device, generator=draw)
    return torch.nn.functional.normalize(centres[which] + around, dim=1)


def _made(vectors: Tensor, factory: str, place: Place) -> Any:
    """Return the index on the host, as an export writes it; it is built on the vectors' device."""
    import faiss
    import faiss.contrib.torch_utils

    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    there = place.device.type == "cuda"
    if there:
        number = int(place.device.index)
        index = faiss.index_cpu_to_gpu(gpu_resources(number), number, index, cloner(factory))
    index.train(vectors[:: max(1, len(vectors) // TRAINED)].contiguous())
    index.add(vectors)
    return faiss.index_gpu_to_cpu(index) if there else index


def _figures(
    exact: DeviceSearch, search: FaissSearch, queries: Tensor, place: Place, rounds: int
) -> tuple[float, float, float]:
    users, items = len(queries), len(exact.vectors)
    base = np.arange(users) * (items + 1)
    had = np.random.default_rng(0).integers(items, size=(users, SEEN)) + base[:, None]
    cells = place.put(filled_up(np.concatenate([had.reshape(-1), base + items])))

    def ask(one: DeviceSearch | FaissSearch) -> Tensor:
        return one.nearest(queries, TensorMask(users, items, cells, SEEN), COUNT)[1]

    found = zip(ask(exact).tolist(), ask(search).tolist(), strict=True)
    recall = float(np.mean([len(set(best) & set(own)) / len(best) for best, own in found]))
    times = [measure(partial(ask, one), place.device.type, rounds).p50_us for one in (exact, search)]
    return recall, times[0], times[1]
