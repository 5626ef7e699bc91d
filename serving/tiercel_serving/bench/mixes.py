"""Mixes of requests, sampled from a release's users and items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from ..errors import BenchError
from ..lookups.lookup import read_keys
from ..release.opened import Release
from ..spec import Array
from ..stores.memory_mapped import USER_LOOKUP

#: The exponent of Zipf's law, by which users are sampled.
ZIPF = 1.1
#: The number of excluded ids in a request of the mix ``exclusions``.
EXCLUDED = 100
#: The number of users in a request of the mix ``batches``.
BATCH = 8
#: The outputs that requests ask for.
ANSWER = ("item_id", "score", "count", "status")

Tensors = Mapping[str, Array]


class Material(NamedTuple):
    """The ids that requests are sampled from.

    Parameters
    ----------
    users
        ``[U]`` raw ids, those with the most seen items first.
    items
        ``[I]`` raw ids.
    strangers
        ``[n]`` ids of unknown users, in the dtype of ``users``.
    """

    users: Array
    items: Array
    strangers: Array

    @classmethod
    def of(cls, release: Release) -> Material:
        """Read the ids of a release; raise BenchError if it knows no users."""
        users = read_keys(release.artefact("users", "users").arrays, USER_LOOKUP)
        if not len(users):
            raise BenchError(f"{release.path}: the release knows no users, so there is nobody to ask about")
        _, counts = release.users.read(users[:, None]).seen()
        items = release.items.ids(np.arange(release.items.size))
        numbers = np.arange(1000)
        if users.dtype == object:
            known = set(users.tolist())
            names = [f"nobody {number}".encode() for number in numbers]
            strangers = np.array([name for name in names if name not in known], object)
        else:
            strangers = users.max() + 1 + numbers
        return cls(users[np.argsort(-counts, kind="stable")], items, strangers)


Draw = np.random.Generator
Maker = Callable[[Material, Draw], Tensors]


def _one(material: Material, draw: Draw) -> Tensors:
    return {"user_id": material.users[draw.integers(len(material.users), size=(1, 1))]}


@lru_cache(1)
def _shares(users: int) -> npt.NDArray[np.float64]:
    shares: npt.NDArray[np.float64] = np.cumsum(np.arange(1, users + 1) ** -ZIPF)
    shares /= shares[-1]
    return shares


def _often(material: Material, draw: Draw, users: int = 1) -> Tensors:
    places = np.searchsorted(_shares(len(material.users)), draw.random((users, 1)))
    return {"user_id": material.users[places]}


def _cold(material: Material, draw: Draw) -> Tensors:
    return {"user_id": material.strangers[draw.integers(len(material.strangers), size=(1, 1))]}


def _excluding(material: Material, draw: Draw) -> Tensors:
    count = min(EXCLUDED, len(material.items) // 2)
    places = draw.permutation(len(material.items))[None, :count]
    return {**_often(material, draw), "exclude_item_ids": material.items[places]}


def _batch(material: Material, draw: Draw) -> Tensors:
    return _often(material, draw, BATCH)


def _mixed(material: Material, draw: Draw) -> Tensors:
    kinds: tuple[Maker, ...] = (_often, _cold, _excluding, _batch)
    kind = kinds[int(draw.choice(len(kinds), p=(0.80, 0.10, 0.08, 0.02)))]
    return kind(material, draw)


#: Mix → the function that samples one request, and a description.
MIXES: Mapping[str, tuple[Maker, str]] = {
    "users": (_one, "one known user a request, each as often as another"),
    "zipf": (_often, f"one known user, by Zipf's law ({ZIPF}), who had most first"),
    "cold": (_cold, "one user whom nobody knows"),
    "exclusions": (_excluding, f"as zipf, with {EXCLUDED} excluded items"),
    "batches": (_batch, f"{BATCH} users a request, as zipf"),
    "mixed": (_mixed, "80 % zipf, 10 % cold, 8 % exclusions, 2 % batches"),
}


def draw_requests(material: Material, mix: str, count: int, seed: int = 0) -> list[Tensors]:
    """Return the tensors of ``count`` requests of a mix, reproducibly for a seed."""
    maker, draw = MIXES[mix][0], np.random.default_rng(seed)
    return [maker(material, draw) for _ in range(count)]


def encode(model: str, tensors: Tensors, outputs: tuple[str, ...] = ANSWER) -> bytes:
    """Return a serialised ``ModelInferRequest``."""
    request: Any = service_pb2.ModelInferRequest(model_name=model)
    for name, array in tensors.items():
        tensor = request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype))
        tensor.shape.extend(array.shape)
        request.raw_input_contents.append(_raw(array))
    for name in outputs:
        request.outputs.add(name=name)
    message: bytes = request.SerializeToString()
    return message


def _raw(array: npt.NDArray[Any]) -> bytes:
    if array.dtype == object:
        packed: bytes = serialize_byte_tensor(array).item()
        return packed
    return np.ascontiguousarray(array).tobytes()
