"""Timing of calls in this process, interleaved so that disturbances of the machine affect all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """Times of one side of a comparison.

    Parameters
    ----------
    rounds_us
        Median microseconds per call in each round.
    """

    rounds_us: tuple[float, ...]

    @property
    def us(self) -> float:
        """The median over rounds, in microseconds."""
        return median(self.rounds_us)

    def to_json(self) -> dict[str, object]:
        """Return a JSON form."""
        return {"us": round(self.us, 2), "rounds_us": [round(us, 2) for us in self.rounds_us]}


def span(over: Timed, under: Timed) -> tuple[float, float]:
    """Return the lowest and the highest ratio over rounds."""
    ratios = [a / b for a, b in zip(over.rounds_us, under.rounds_us, strict=True)]
    return min(ratios), max(ratios)


def interleave(
    sides: Mapping[str, Sequence[Call]], *, rounds: int, seconds: float, slow_rounds: int | None = None
) -> dict[str, Timed]:
    """Time several sides of one comparison, one after the other in each round.

    Parameters
    ----------
    sides
        Name → calls that do the same on different input. Each repeat takes the next one, so that no answer
        comes from a cache that only a benchmark would have.
    rounds
        Number of rounds.
    seconds
        How long each side is repeated in a round; at least one call.
    slow_rounds
        Number of rounds if any side's call takes more than a second; None is ``rounds``.

    Returns
    -------
    The times of each side, by name. Every side is called once before measuring.
    """
    gc.collect()
    slowest = max(_clock(calls[-1]) for calls in sides.values())
    if slow_rounds is not None and slowest > 1e6:
        rounds = slow_rounds
    measured: dict[str, list[float]] = {name: [] for name in sides}
    at = dict.fromkeys(sides, 0)
    for _ in range(rounds):
        for name, calls in sides.items():
            at[name], us = _repeat(calls, at[name], seconds)
            measured[name].append(us)
    return {name: Timed(tuple(found)) for name, found in measured.items()}


def _repeat(calls: Sequence[Call], first: int, seconds: float) -> tuple[int, float]:
    """Repeat calls for ``seconds``; return the next call's index, and the median microseconds per call."""
    spent: list[float] = []
    place, end = first, time.perf_counter() + seconds
    while not spent or time.perf_counter() < end:
        spent.append(_clock(calls[place % len(calls)]))
        place += 1
    return place, median(spent)


def _clock(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e6
