"""The steps that map values to category ids with vocabularies stored as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..lookups.lookup import open_lookup
from ..lookups.strings import Strings
from ..spec import Array
from .registers import Elementwise

_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)
_NO_KEY = np.int64(-(2**63))


def keys_as_is(x: Array) -> tuple[Array, Array | None]:
    """Return int64 values as keys of an int64 vocabulary."""
    return x, None


def keys_by_cast(dtype: str) -> Any:
    """Return a function that casts to the dtype of an integer or boolean vocabulary, so 5.5 becomes 5.

    NVTabular raises on values that are not finite; here ±inf is unseen.
    """
    target = np.dtype(dtype)

    def keys(x: Array) -> tuple[Array, Array | None]:
        if x.dtype.kind != "f":
            return x.astype(target).astype(np.int64), None
        finite = np.isfinite(x)
        cast = np.where(finite, x, 0).astype(target).astype(np.int64)
        return cast, None if finite.all() else ~finite

    return keys


def keys_of_whole(x: Array) -> tuple[Array, Array | None]:
    """Return int64 keys of a float vocabulary of whole numbers below 2**53; others get an unseen key."""
    if x.dtype.kind != "f":
        return x, None
    whole = x.astype(np.int64)
    return np.where(whole == x, whole, _NO_KEY), None


def keys_of_bits(dtype: str) -> Any:
    """Return a function that makes keys from the bits of a float vocabulary's dtype; -0.0 and 0.0 are one."""
    target = np.dtype(dtype)
    bits = np.dtype(f"i{target.itemsize}")

    def keys(x: Array) -> tuple[Array, Array | None]:
        return (x.astype(target) + target.type(0)).view(bits).astype(np.int64), None

    return keys


def key_function(name: str) -> Any:
    """Return the function for a step's ``keys``: ``int64``, ``whole``, ``cast:<dtype>``, ``bits:<dtype>``."""
    if name == "int64":
        return keys_as_is
    if name == "whole":
        return keys_of_whole
    kind, dtype = name.split(":")
    return {"cast": keys_by_cast, "bits": keys_of_bits}[kind](dtype)


class _Encode(Elementwise):
    """Base of the steps that map numbers to category ids."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._keys = key_function(step["keys"])
        self._null, self._unseen = arrays["null"], arrays["unseen"]

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Look up; nulls get the null id, and values that cannot be a key the unseen id."""
        keys, outside = self._keys(x)
        ids = self.find(keys)
        if outside is not None:
            ids = np.where(outside, self._unseen, ids)
        if x.dtype.kind == "f":
            null = np.isnan(x)
            if np.count_nonzero(null):
                ids = np.where(null, self._null, ids)
        elif valid is not None:
            ids = np.where(valid, ids, self._null)
        return ids, None

    def find(self, keys: Array) -> Array:
        """Return the id of each key, ``[C, n]``."""
        raise NotImplementedError


class EncodeDirect(_Encode):
    """Dense integer vocabularies: one gather from the direct tables of all columns, stored end to end."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._table = arrays["table"]
        self._lowest = arrays["lowest"].view(np.uint64)
        self._span = arrays["span"].view(np.uint64)
        self._base = arrays["base"] if len(arrays["base"]) > 1 else None

    def find(self, keys: Array) -> Array:
        """Gather; a key outside a column's table reads the last entry, the unseen id."""
        index = np.minimum(keys.view(_UINT64) - self._lowest, self._span).view(_INT64)
        if self._base is not None:
            index += self._base
        ids: Array = self._table.take(index)
        return ids


class EncodeHash(_Encode):
    """Other numeric vocabularies: one fused lookup for all columns."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._lookup = open_lookup(arrays, "lookup")

    def find(self, keys: Array) -> Array:
        """Look up."""
        return self._lookup.find(keys)


class EncodeText(Elementwise):
    """Vocabularies of strings, looked up as UTF-8 bytes: one fused lookup for all columns."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._lookup = open_lookup(arrays, "lookup")
        self._null = arrays["null"]

    def apply(self, x: Any, valid: Array | None) -> tuple[Array, Array | None]:
        """Look up ``bytes`` objects or packed strings."""
        if isinstance(x, Strings):
            ids = self._lookup.find(x).reshape(len(self._null), -1)
        else:
            ids = self._lookup.find(x if valid is None else np.where(valid, x, b""))
        return (ids if valid is None else np.where(valid, ids, self._null)), None
