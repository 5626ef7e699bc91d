"""Requests → one batch → their answers: the array handling of the Triton adapter, without Triton.

A request is a mapping from tensor names to arrays with the user axis first. ``specs`` are those of all input
tensors of the model. The spec of a companion names its tensor and what it says: list lengths, or validity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain

import numpy as np

from ..errors import InvalidRequest
from ..spec import LENGTH_OF, VALID_OF, Array, Arrays, TensorSpec

#: Companions with a default if their tensor is sent without them: all of its values are real.
_FOLLOW = (LENGTH_OF, VALID_OF)


def count_users(specs: Sequence[TensorSpec], arrays: Arrays) -> int:
    """Return how many users a request has, after checking its tensors against their specs.

    Raises
    ------
    InvalidRequest
        A tensor is missing, has the wrong dtype or shape, or has more or fewer rows than the others.
    """
    users = -1
    for spec in specs:
        array = arrays.get(spec.name)
        if array is None:
            if not spec.optional:
                raise InvalidRequest(f"input {spec.name} is missing; it is not optional")
            continue
        if array.ndim < 1 or not _fit(spec.dims, array.shape[1:]):
            shape = ", ".join("any" if dim == -1 else str(dim) for dim in spec.dims)
            raise InvalidRequest(
                f"input {spec.name}: expected the shape [users, {shape}], got {list(array.shape)}"
            )
        if array.dtype != spec.numpy_dtype:
            raise InvalidRequest(f"input {spec.name}: expected {spec.dtype}, got {array.dtype}")
        if users not in (-1, len(array)):
            raise InvalidRequest(
                f"input {spec.name}: expected {users} rows as in the others, got {len(array)}"
            )
        users = len(array)
    if users < 1:
        raise InvalidRequest("the request has no rows; send one for each user")
    return users


class Inputs:
    """The inputs of a model, prepared for a fast check of every request.

    Parameters
    ----------
    specs
        All input tensors of the model.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = tuple(specs)
        #: Names of the tensors that every request must send.
        self.needed = frozenset(spec.name for spec in specs if not spec.optional)
        self._known = {spec.name: (spec.dims, spec.numpy_dtype, -1 in spec.dims) for spec in specs}

    def count_users(self, arrays: Arrays) -> int:
        """Return and raise what :func:`count_users` does; faster, since it looks only at the sent tensors."""
        users = -1
        for name, array in arrays.items():
            known = self._known.get(name)
            if known is None:
                continue
            shape, (dims, dtype, free) = array.shape, known
            fits = _fit(dims, shape[1:]) if free else shape[1:] == dims
            if not fits or array.dtype != dtype or users not in (-1, shape[0]):
                return count_users(self._specs, arrays)
            users = shape[0]
        return users if users > 0 and self.needed <= arrays.keys() else count_users(self._specs, arrays)


def _fit(dims: Sequence[int], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(dim in (-1, size) for dim, size in zip(dims, shape, strict=True))


def absent(specs: Sequence[TensorSpec], users: int) -> dict[str, Array]:
    """Return the values of all optional tensors if they are absent: the pad, length 0 on variable axes.

    The arrays are read-only, so that many batches can share them.
    """
    made: dict[str, Array] = {}
    for spec in specs:
        if spec.optional:
            shape = (users, *(0 if dim == -1 else dim for dim in spec.dims))
            made[spec.name] = np.full(shape, spec.pad, spec.numpy_dtype)
            made[spec.name].setflags(write=False)
    return made


def complete(specs: Sequence[TensorSpec], arrays: Arrays, blank: Arrays) -> dict[str, Array]:
    """Return all tensors: those of ``arrays`` unchanged, absent ones filled in.

    A list sent without lengths is real over its full width, and a column sent without validity is real. Other
    absent tensors are null, as in ``blank`` from :func:`absent`. Only companions in ``specs`` matter.
    """
    full = {**blank, **arrays}
    if len(arrays) == 1:
        return full
    for spec in specs:
        if spec.of is not None and spec.name not in arrays:
            value = _fill_value(spec, arrays)
            if value != spec.pad:
                full[spec.name] = np.full((count_rows(arrays), 1), value, spec.numpy_dtype)
                full[spec.name].setflags(write=False)
    return full


def count_rows(arrays: Arrays) -> int:
    """Return the number of users of arrays that have been checked."""
    return len(next(iter(arrays.values())))


def _fill_value(spec: TensorSpec, arrays: Arrays) -> int | float | bool | bytes:
    """Return the value of an absent tensor in a request with these ``arrays``."""
    base = None if spec.of is None else arrays.get(spec.of)
    if base is None or spec.says not in _FOLLOW:
        return spec.pad
    return base.shape[1] if spec.says == LENGTH_OF else True


def concatenate(specs: Sequence[TensorSpec], requests: Sequence[Arrays]) -> Arrays:
    """Concatenate requests along the user axis.

    Returns
    -------
    Every tensor that some request carries, for all users. Variable axes are padded to the longest request.
    The rows of a request without the tensor hold what :func:`complete` would fill in. Companions of list
    lengths and validity are always included with their tensor. A single request is returned unchanged.
    """
    if len(requests) == 1:
        return requests[0]
    users, full = [count_rows(request) for request in requests], dict[str, Array]()
    for spec in specs:
        parts = [request.get(spec.name) for request in requests]
        if any(part is not None for part in parts) or (spec.of in full and spec.says in _FOLLOW):
            full[spec.name] = _concatenate_one(spec, requests, parts, users)
    return full


def _concatenate_one(
    spec: TensorSpec, requests: Sequence[Arrays], parts: Sequence[Array | None], users: Sequence[int]
) -> Array:
    present = [part for part in parts if part is not None]
    shapes = {part.shape[1:] for part in present}
    if len(present) == len(parts) and len(shapes) == 1:
        return np.concatenate(present)
    widths = [0 if dim == -1 else dim for dim in spec.dims]
    for shape in shapes:
        widths = [max(width, size) for width, size in zip(widths, shape, strict=True)]
    out = np.full((sum(users), *widths), spec.pad, spec.numpy_dtype)
    begin = 0
    for request, part, count in zip(requests, parts, users, strict=True):
        rows = out[begin : begin + count]
        if part is None:
            rows[...] = _fill_value(spec, request)
        else:
            rows[tuple(slice(size) for size in part.shape)] = part
        begin += count
    return out


def split(
    outputs: Arrays,
    users: Sequence[int],
    wanted: Sequence[Sequence[str]],
    widths: Sequence[Mapping[str, int]],
) -> list[dict[str, Array]]:
    """Split a batch's outputs into those of its requests.

    Parameters
    ----------
    outputs
        ``[sum(users), …]`` each.
    users
        Number of users of each request.
    wanted
        Names of the outputs that each request asks for.
    widths
        For each request, output → width, for outputs that may be narrower than the batch's.

    Returns
    -------
    For each request, its outputs: contiguous arrays, views of the batch's if possible.
    """
    if len(users) == 1 and not widths[0]:
        return [{name: np.ascontiguousarray(outputs[name]) for name in wanted[0]}]
    # Each request's rows of a contiguous batch are contiguous too, unless they are narrower.
    whole = {name: np.ascontiguousarray(outputs[name]) for name in dict.fromkeys(chain.from_iterable(wanted))}
    rows = [slice(end - count, end) for end, count in zip(accumulate(users), users, strict=True)]
    if not any(widths):
        return [{name: whole[name][own] for name in names} for own, names in zip(rows, wanted, strict=True)]
    return [
        {name: _narrow(whole[name][own], width.get(name)) for name in names}
        for own, names, width in zip(rows, wanted, widths, strict=True)
    ]


def _narrow(array: Array, width: int | None) -> Array:
    if width is None or array.shape[1] == width:
        return array
    return np.ascontiguousarray(array[:, :width])
