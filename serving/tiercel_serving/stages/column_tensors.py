"""Raw columns as tensors: of requests, and of what the first stage tells rules about users."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from math import nan

from msgspec.structs import replace

from ..release.manifest import Manifest, RequestColumn
from ..rules.table import asked
from ..settings import ServingSettings
from ..spec import LENGTH_OF, VALID_OF, TensorSpec

#: Prefix of the tensors by which the first stage tells retrieval what rules read of users.
OF_RULES = "rule_user_"


def request_tensors(column: RequestColumn) -> tuple[TensorSpec, ...]:
    """Return the request tensors of one raw column: the values, and what says which are null."""
    name, dtype, doc = column.tensor, column.dtype, f"Column {column.name}."
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
    """Return the tensors of a list: its values, and how many of them are real."""
    said = f"How many of {name} are real; -1 is null."
    return (
        TensorSpec(name, dtype, (-1,), True, empty_of(dtype), doc),
        TensorSpec(companion, "int32", (1,), True, -1, said, of=name, says=LENGTH_OF),
    )


def empty_of(dtype: str) -> int | bytes:
    """Return what stands where nothing is."""
    return b"" if dtype == "bytes" else 0


def user_rule_columns(manifest: Manifest) -> tuple[tuple[RequestColumn, RequestColumn], ...]:
    """Return the columns of users that rules read: as requests carry each, and as the first stage tells it.

    One stage alone reads the store: what a request sends, what the store holds and the release's own value
    are one by the time that a rule sees them.
    """
    asks = asked(manifest.settings.rules).users
    return tuple(
        (column, replace(column, tensor=tensor, companion=column.companion and f"{tensor}__null"))
        for column in manifest.request_columns
        if column.part == "user" and column.name in asks
        for tensor in [f"{OF_RULES}{asks.index(column.name)}"]
    )


def rule_tensor_names(settings: ServingSettings) -> set[str]:
    """Return the names that those tensors may have, before columns have any."""
    tensors = {f"{OF_RULES}{place}" for place in range(len(asked(settings.rules).users))}
    return tensors | {f"{tensor}__null" for tensor in tensors}


def told_to_rules(manifest: Manifest) -> Iterator[TensorSpec]:
    """Yield the tensors by which the first stage tells rules of users."""
    for _, told in user_rule_columns(manifest):
        for tensor in request_tensors(told):
            yield dataclasses.replace(tensor, optional=False)
