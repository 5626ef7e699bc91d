"""Raw columns as tensors: those of requests, and user columns that the first stage passes on to rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from math import nan

from msgspec.structs import replace

from ..release.manifest import Manifest, RequestColumn
from ..rules.table import asked
from ..settings import ServingSettings
from ..spec import LENGTH_OF, VALID_OF, TensorSpec

#: Prefix of the tensors in which the first stage passes user columns to retrieval, for rules.
OF_RULES = "rule_user_"


def request_tensors(column: RequestColumn) -> tuple[TensorSpec, ...]:
    """Return the request tensors of one raw column: its values, and its companion, which marks nulls."""
    name, dtype, doc = column.tensor, column.dtype, f"The column {column.name}."
    if column.companion is None:
        return (TensorSpec(name, dtype, (1,), True, nan, f"{doc} NaN is null."),)
    if column.is_list:
        return list_tensors(name, column.companion, dtype, doc)
    said = f"False where {column.name} is null."
    return (
        TensorSpec(name, dtype, (1,), True, empty_of(dtype), doc),
        TensorSpec(column.companion, "bool", (1,), True, False, said, of=name, says=VALID_OF),
    )


def list_tensors(name: str, companion: str, dtype: str, doc: str) -> tuple[TensorSpec, ...]:
    """Return the tensors of a list: its values, and the companion with its length."""
    said = f"Number of real elements in {name}; -1 is a null list."
    return (
        TensorSpec(name, dtype, (-1,), True, empty_of(dtype), doc),
        TensorSpec(companion, "int32", (1,), True, -1, said, of=name, says=LENGTH_OF),
    )


def empty_of(dtype: str) -> int | bytes:
    """Return the fill value for missing elements of a dtype."""
    return b"" if dtype == "bytes" else 0


def user_rule_columns(manifest: Manifest) -> tuple[tuple[RequestColumn, RequestColumn], ...]:
    """Return the user columns that rules read: each as in requests, and as the first stage passes it on.

    Only the first stage reads the store. It merges the request's value, the store's and the release's own
    before a rule sees them.
    """
    asks = asked(manifest.settings.rules).users
    return tuple(
        (column, replace(column, tensor=tensor, companion=column.companion and f"{tensor}__null"))
        for column in manifest.request_columns
        if column.part == "user" and column.name in asks
        for tensor in [f"{OF_RULES}{asks.index(column.name)}"]
    )


def rule_tensor_names(settings: ServingSettings) -> set[str]:
    """Return the names that those tensors may have; used before columns have tensor names."""
    tensors = {f"{OF_RULES}{place}" for place in range(len(asked(settings.rules).users))}
    return tensors | {f"{tensor}__null" for tensor in tensors}


def told_to_rules(manifest: Manifest) -> Iterator[TensorSpec]:
    """Yield the tensors in which the first stage passes user columns to rules."""
    for _, told in user_rule_columns(manifest):
        for tensor in request_tensors(told):
            yield dataclasses.replace(tensor, optional=False)
