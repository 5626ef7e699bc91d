"""Exact top-k over item vectors on a device, against the time to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.timing import measure
from tiercel_serving.device.graphs_torch import GraphedForms
from tiercel_serving.device.masks_torch import TensorMask
from tiercel_serving.device.place_torch import CAPTURES
from tiercel_serving.device.search_torch import DTYPES, DeviceSearch

#: Number of candidates to find, and of items that each user has had.
COUNT, SEEN = 200, 200

#: Number of vectors drawn at once.
_PIECE = 1 << 20


class SearchRow(NamedTuple):
    """One search: its median time, and this divided by the time to read the vectors once.

    ``launches`` is "one" if the search is replayed from a CUDA graph, as for a served request of one user.
    """

    items: int
    precision: str
    users: int
    launches: str
    p50_us: float | None
    over_bandwidth: float | None
    reason: str = ""


def bandwidth(device: str, size: int) -> float:
    """Return bytes per second, read and written together, of copying ``size`` bytes within a device."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = measure(lambda: target.copy_(source), device, 20)
    return 2 * size / (times.throughput_us / 1e6)


def measure_search(
    sizes: Sequence[int],
    dimension: int,
    precisions: Sequence[str],
    batches: Sequence[int],
    device: str,
    rounds: int,
    speed: float,
    progress: Callable[[str], None],
) -> Iterator[SearchRow]:
    """Measure each number of items, precision and batch; ``speed`` is the result of :func:`bandwidth`."""
    for items in sizes:
        for precision in precisions:
            progress(f"{items:,} × {dimension} {precision}")
            try:
                vectors = _vectors(items, dimension, DTYPES[precision], device)
                search = DeviceSearch(vectors, None, items)
                for users in batches:
                    for launches in _launches(device):
                        yield _row(search, precision, users, launches, device, rounds, speed)
                del vectors, search
            except RuntimeError as error:  # such as too little memory; the report says so
                reason = " ".join(str(error).split()[:15])
                yield from (SearchRow(items, precision, users, "", None, None, reason) for users in batches)
            if device == "cuda":
                torch.cuda.empty_cache()


def _launches(device: str) -> tuple[str, ...]:
    return ("many", "one") if device in CAPTURES else ("many",)


def _row(
    search: DeviceSearch, precision: str, users: int, launches: str, device: str, rounds: int, speed: float
) -> SearchRow:
    vectors = search.vectors
    items, dimension = vectors.shape
    query = torch.randn(users, dimension, device=device)
    base = torch.arange(users, device=device)[:, None] * (items + 1)
    had = torch.randint(items, (users, min(SEEN, items)), device=device)
    cells = torch.cat([(had + base).reshape(-1), base[:, 0] + items])

    def run(tensors: list[Tensor]) -> list[Tensor]:
        return list(search.nearest(tensors[0], TensorMask(users, items, tensors[1], SEEN), COUNT))

    call = partial(run, [query, cells])
    if launches == "one":
        call = partial(GraphedForms(CAPTURES[device]()), None, run, [query, cells])
    with torch.inference_mode():
        times = measure(call, device, rounds)
    least_us = vectors.numel() * vectors.element_size() / speed * 1e6
    return SearchRow(items, precision, users, launches, times.p50_us, times.p50_us / least_us)


def _vectors(items: int, dimension: int, dtype: torch.dtype, device: str) -> Tensor:
    out = torch.empty((items, dimension), dtype=dtype, device=device)
    for begin in range(0, items, _PIECE):
        piece = out[begin : begin + _PIECE]
        piece.copy_(torch.randn(piece.shape, device=device))
    return out
