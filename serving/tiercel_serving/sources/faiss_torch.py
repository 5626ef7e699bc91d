"""An approximate FAISS index searched with tensors: in faiss-gpu on a GPU, in the export's index on the CPU.

FAISS's ``contrib.torch_utils`` passes tensors without a copy to the host. The tests run this with an index on
the CPU, and on a GPU with faiss-gpu (``pytest -m gpu``); CAGRA has not been tested.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..device.masks_torch import TensorMask
from ..device.place_torch import Place
from ..device.search_torch import DeviceSearch
from .index_build import faiss_reason
from .search import Profile

logger = logging.getLogger("tiercel_serving")

#: Scratch memory of FAISS on one GPU. FAISS's default is a share of the GPU's memory.
SCRATCH_BYTES = 256 << 20

#: The most neighbours that FAISS returns for one query on a GPU.
MOST_FOUND = 2048

#: Links of an item in CAGRA's graph.
CAGRA_DEGREE = 64


class FaissSearch:
    """Search an index for as many extra items as a batch may mask, and rescore the results exactly.

    Parameters
    ----------
    exact
        Exact search over the same vectors. It rescores, and it answers searches that are deeper than the
        measured ladder.
    index
        The FAISS index; its ids are positions of ``exact.vectors``.
    profile
        The index's measurements, made at export.
    turn
        Sets a search parameter: ``turn(index, knob, value)``.
    """

    def __init__(
        self, exact: DeviceSearch, index: Any, profile: Profile, turn: Callable[[Any, str, float], None]
    ) -> None:
        # The import patches every index to take tensors; arrays still work.
        import faiss.contrib.torch_utils  # noqa: F401

        self._exact, self._index, self._profile, self._turn = exact, index, profile, turn
        self._knob: int | None = None

    def nearest(self, query: Tensor, mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
        """Return the best allowed items; see :meth:`~..device.search_torch.DeviceSearch.nearest`."""
        size = len(self._exact.vectors)
        fetched = min(self._profile.looked_at(count) + mask.most, size)
        rung = next((one for one in self._profile.ladder if one.depth >= fetched), None)
        # The host does not know how many items an allowed set leaves.
        if rung is None or fetched > MOST_FOUND or mask.allowed is not None:
            return self._exact.nearest(query, mask, count)
        if self._profile.knob is not None and rung.knob != self._knob:
            self._turn(self._index, self._profile.knob, float(rung.knob))
            self._knob = rung.knob
        _, found = self._index.search(query.contiguous(), fetched)
        # FAISS returns -1 where it has no more.
        positions = torch.where(found < 0, size, found)
        free = mask.allows(self._exact.rows_at(positions))
        return self._exact.best_of(query, positions.masked_fill(~free, size), count)

    @property
    def exact(self) -> DeviceSearch:
        """Exact search over the same vectors."""
        return self._exact


def open_faiss(
    exact: DeviceSearch, read: Callable[[], Any], profile: Profile, factory: str, place: Place
) -> FaissSearch | DeviceSearch:
    """Return a search with the export's index; exact search, with a warning, where FAISS does not support it.

    Parameters
    ----------
    exact
        Exact search over the same vectors.
    read
        Reads the export's index.
    profile
        Its measurements.
    factory
        The FAISS factory string that built it.
    place
        The device.
    """
    import faiss

    if place.device.type == "cpu":
        return FaissSearch(exact, read(), profile, _turn_on_host)
    if not hasattr(faiss, "StandardGpuResources"):
        _fall_back(
            f"faiss {faiss.__version__} has no GPU; install faiss-gpu or faiss-gpu-cuvs in place of faiss-cpu"
        )
        return exact
    number = int(place.device.index)
    if not factory.startswith("HNSW"):
        try:
            index = faiss.index_cpu_to_gpu(gpu_resources(number), number, read(), cloner(factory))
        except RuntimeError as error:
            _fall_back(f"faiss-gpu can't have {factory!r} ({faiss_reason(error)})")
            return exact
        return FaissSearch(exact, index, profile, _turn_on_gpu)
    # FAISS has no HNSW on a GPU. CAGRA is its graph index there: without a measured knob, and built here.
    if not hasattr(faiss, "GpuIndexCagra"):
        _fall_back(f"a GPU has no {factory!r}, and this faiss no CAGRA; install faiss-gpu-cuvs, or use IVF")
        return exact
    cuvs: Any = faiss
    config = cuvs.GpuIndexCagraConfig()
    config.device, config.graph_degree = number, CAGRA_DEGREE
    dimension = exact.vectors.shape[1]
    index = cuvs.GpuIndexCagra(gpu_resources(number), dimension, faiss.METRIC_INNER_PRODUCT, config)
    search = FaissSearch(exact, index, Profile(None, profile.margin, profile.ladder), _turn_on_gpu)
    index.train(exact.vectors.float())
    return search


def cloner(factory: str) -> Any:
    """Return FAISS's options for copying an index to a GPU: lookup tables of product quantizers in float16.

    With 64-byte codes, float32 tables do not fit in shared memory. Results are rescored exactly anyway.
    """
    import faiss

    options = faiss.GpuClonerOptions()
    options.useFloat16 = "PQ" in factory
    return options


@functools.cache
def gpu_resources(device: int) -> Any:
    """Return FAISS's resources on a GPU: one object per process, with bounded scratch memory."""
    import faiss

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(SCRATCH_BYTES)
    return resources


def _turn_on_host(index: Any, knob: str, value: float) -> None:
    import faiss

    faiss.ParameterSpace().set_index_parameter(index, knob, value)


def _turn_on_gpu(index: Any, knob: str, value: float) -> None:
    import faiss

    faiss.GpuParameterSpace().set_index_parameter(index, knob, value)


def _fall_back(reason: str) -> None:
    logger.warning("index: %s; it is searched exactly on the GPU until then", reason)
