"""An approximate FAISS index asked with tensors: on a GPU by faiss-gpu, on the CPU by the index as it is.

By FAISS's ``contrib.torch_utils``, which passes tensors without a copy to the host. The tests run it with an
index on the CPU, and on a GPU with faiss-gpu (``pytest -m gpu``); CAGRA has not been run.
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

#: Scratch memory of FAISS on one GPU, whatever is asked: it would take a share of the GPU's otherwise.
SCRATCH_BYTES = 256 << 20

#: FAISS finds so many items at most on a GPU.
MOST_FOUND = 2048

#: Links of an item in CAGRA's graph.
CAGRA_DEGREE = 64


class FaissSearch:
    """Asks an index for so many more items as a request masks; what it finds is scored anew.

    Parameters
    ----------
    exact
        Exact search over the same vectors: it scores, and answers where the index was not measured so deep.
    index
        The index; position = position.
    profile
        What was measured of it at export.
    turn
        Sets the index's knob.
    """

    def __init__(
        self, exact: DeviceSearch, index: Any, profile: Profile, turn: Callable[[Any, str, float], None]
    ) -> None:
        # Lets every index take tensors; arrays go on as before.
        import faiss.contrib.torch_utils  # noqa: F401

        self._exact, self._index, self._profile, self._turn = exact, index, profile, turn
        self._knob: int | None = None

    def nearest(self, query: Tensor, mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
        """Return the best allowed items, as :meth:`~..device.search_torch.DeviceSearch.nearest` says."""
        size = len(self._exact.vectors)
        fetched = min(self._profile.looked_at(count) + mask.most, size)
        rung = next((one for one in self._profile.ladder if one.depth >= fetched), None)
        # How much a table allows is not known on the host.
        if rung is None or fetched > MOST_FOUND or mask.allowed is not None:
            return self._exact.nearest(query, mask, count)
        if self._profile.knob is not None and rung.knob != self._knob:
            self._turn(self._index, self._profile.knob, float(rung.knob))
            self._knob = rung.knob
        _, found = self._index.search(query.contiguous(), fetched)
        # FAISS says -1 where it has no more.
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
    """Return the search by an index of the export; exact search, with a message, where FAISS can't have it.

    Parameters
    ----------
    exact
        Exact search over the same vectors.
    read
        Reads the export's index.
    profile
        What was measured of it.
    factory
        What it was made of.
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
    # A GPU has no HNSW. CAGRA is such a graph for one; it has no knob of ours, and is built here.
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
    """Return how an index is taken to a GPU: tables of product quantizers in float16.

    In float32 those of 64 bytes an item have no room in shared memory. What is found is scored anew.
    """
    import faiss

    options = faiss.GpuClonerOptions()
    options.useFloat16 = "PQ" in factory
    return options


@functools.cache
def gpu_resources(device: int) -> Any:
    """Return FAISS's resources on a GPU: one object a process, whose scratch memory is bounded."""
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
