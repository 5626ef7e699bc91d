"""What a step of a feature program reads: registers, their rows, and the raw columns they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def places_of(step: Mapping[str, Any]) -> list[tuple[int, int | None]]:
    """Return the (register, row) pairs that a step reads; a row of None means all rows."""
    source = step.get("in")
    if source is None:
        return []
    if isinstance(source, int):
        rows = step.get("rows")
        return [(source, None)] if rows is None else [(source, row) for row in rows]
    return [(place, None) if isinstance(place, int) else (place[0], place[1]) for place in source]


def raw_columns(
    steps: Sequence[Mapping[str, Any]],
    reads: Sequence[Sequence[tuple[int, int | None]]],
    heights: Sequence[int],
) -> list[list[str]]:
    """Return the raw columns of each row of each register, as ``a`` or ``a × b``."""
    names: list[list[str]] = []
    for step, places, height in zip(steps, reads, heights, strict=True):
        if places:
            own = [name for at, row in places for name in (names[at] if row is None else [names[at][row]])]
        else:
            own = list(step.get("columns", [step.get("column", "?")]))
        if len(own) != height:
            own = [" × ".join(dict.fromkeys(own))] * height
        names.append(own)
    return names


def path_to(register: int, reads: Sequence[Sequence[tuple[int, int | None]]]) -> tuple[int, ...]:
    """Return the steps that compute a register, in order; a step reads only earlier ones."""
    behind = {register}
    for number in range(register, -1, -1):
        if number in behind:
            behind.update(at for at, _ in reads[number])
    return tuple(sorted(behind))
