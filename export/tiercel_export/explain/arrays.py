"""The arrays of a step of a feature program: layout, entries and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tiercel_serving.spec import Array


@dataclass(frozen=True)
class StepTable:
    """A summary of the arrays of a step.

    Parameters
    ----------
    layout
        ``direct``, ``hash`` or ``text hash`` for a lookup; otherwise the names of the arrays.
    entries
        The number of keys; None for a step without a lookup.
    nbytes
        Total bytes of its arrays.
    """

    layout: str
    entries: int | None
    nbytes: int


def describe_arrays(arrays: Mapping[str, Array]) -> StepTable:
    """Return the layout, entries and bytes of a step's arrays, recognised by their names."""
    nbytes = sum(array.nbytes for array in arrays.values())
    # The arrays of a lookup may have a prefix.
    parts = {name.rpartition(".")[2]: array for name, array in arrays.items()}
    if {"table", "lowest"} <= set(parts):
        return StepTable("direct", _direct_entries(parts), nbytes)
    if {"records", "columns"} <= set(parts):
        return StepTable("text hash" if "odd_tags" in parts else "hash", _hash_entries(parts), nbytes)
    names = dict.fromkeys(name.rstrip("0123456789") for name in arrays)
    return StepTable(", ".join(names), None, nbytes)


def _direct_entries(parts: Mapping[str, Array]) -> int:
    table = parts["table"]
    begins = parts["base"].reshape(-1).tolist() if "base" in parts else [0]
    ends = [*begins[1:], len(table)]
    # The last entry of each column's table is the code of unseen keys, which also fills gaps.
    return sum(
        int((table[begin : end - 1] != table[end - 1]).sum()) for begin, end in zip(begins, ends, strict=True)
    )


def _hash_entries(parts: Mapping[str, Array]) -> int:
    """Count the filled slots and odd keys of each column's table; shared tables count once."""
    codes, entries = parts["records"][:, -1], 0
    for slots, first, odd, end_odd, missing in {tuple(row[3:]) for row in parts["columns"].tolist()}:
        entries += int((codes[first : first + slots] != missing).sum()) + end_odd - odd
    return entries
