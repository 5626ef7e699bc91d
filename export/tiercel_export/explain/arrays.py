"""What a step of a feature program keeps in arrays: its layout, entries and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tiercel_serving.spec import Array


@dataclass(frozen=True)
class StepTable:
    """What a step keeps in arrays.

    Parameters
    ----------
    layout
        In words, such as ``direct`` or ``text hash``; for a step without a lookup its arrays' names.
    entries
        How many keys it holds; None for what is no lookup.
    nbytes
        Bytes of all its arrays.
    """

    layout: str
    entries: int | None
    nbytes: int


def describe_arrays(arrays: Mapping[str, Array]) -> StepTable:
    """Tell the layout, entries and bytes of a step's arrays, by their names."""
    nbytes = sum(array.nbytes for array in arrays.values())
    for layout, is_it, count in _LAYOUTS:
        if is_it(arrays):
            return StepTable(layout, count(arrays), nbytes)
    names = dict.fromkeys(name.rstrip("0123456789") for name in arrays)
    return StepTable(", ".join(names), None, nbytes)


def _ending(arrays: Mapping[str, Array], name: str) -> Array | None:
    """Return the array of that name, with or without a lookup's prefix."""
    return next((array for key, array in arrays.items() if key.rpartition(".")[2] == name), None)


def _is_direct(arrays: Mapping[str, Array]) -> bool:
    return _ending(arrays, "table") is not None and _ending(arrays, "lowest") is not None


def _direct_entries(arrays: Mapping[str, Array]) -> int:
    table, base = _ending(arrays, "table"), _ending(arrays, "base")
    assert table is not None
    begins = [0] if base is None else base.reshape(-1).tolist()
    ends = [*begins[1:], len(table)]
    # The last entry of each column's table is what an unseen key gets, and so is every hole.
    return sum(
        int((table[begin : end - 1] != table[end - 1]).sum()) for begin, end in zip(begins, ends, strict=True)
    )


def _is_hash(arrays: Mapping[str, Array]) -> bool:
    return _ending(arrays, "records") is not None and _ending(arrays, "columns") is not None


def _is_text_hash(arrays: Mapping[str, Array]) -> bool:
    return _is_hash(arrays) and _ending(arrays, "odd_tags") is not None


def _hash_entries(arrays: Mapping[str, Array]) -> int:
    """Count the filled slots and odd keys of each column's table; a shared table counts once."""
    records, columns = _ending(arrays, "records"), _ending(arrays, "columns")
    assert records is not None
    assert columns is not None
    entries = 0
    for slots, first, odd, end_odd, missing in {tuple(row[3:]) for row in columns.tolist()}:
        entries += int((records[first : first + slots, -1] != missing).sum()) + end_odd - odd
    return entries


#: Layouts in the order of looking: what they are called, how their arrays tell them, how to count entries.
_LAYOUTS: Sequence[
    tuple[str, Callable[[Mapping[str, Array]], bool], Callable[[Mapping[str, Array]], int]]
] = (
    ("direct", _is_direct, _direct_entries),
    ("text hash", _is_text_hash, _hash_entries),
    ("hash", _is_hash, _hash_entries),
)
