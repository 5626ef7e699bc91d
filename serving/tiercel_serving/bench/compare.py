"""Compare two results of ``tiercel bench``, taking the noise of their rounds into account."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BenchError
from .text_table import format_table

#: Number of bootstrap resamples.
DRAWS = 10_000
#: The share of the resampled ratios that an interval covers.
COVERED = 0.95
#: With fewer rounds the noise can't be estimated.
FEWEST_ROUNDS = 3
#: A smaller change does not count even if it is significant, because the machine drifts as much between runs.
LEAST_CHANGE = 0.03

#: The figures of each measured model that are compared.
FIGURES = ("p50_us", "p99_us", "throughput")


@dataclass(frozen=True)
class Change:
    """One figure of both results: medians over rounds, and an interval of their ratio.

    Parameters
    ----------
    figure
        What was measured, and under which load.
    before, after
        Medians.
    low, high
        The 95 % bootstrap interval of ``after / before``; both are NaN if there are too few rounds.
    """

    figure: str
    before: float
    after: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """The median after, divided by that before."""
        return self.after / self.before

    @property
    def real(self) -> bool:
        """Whether the whole interval is more than :data:`LEAST_CHANGE` away from no change."""
        return (self.low > 1 + LEAST_CHANGE) or (self.high < 1 - LEAST_CHANGE)


def read_result(file: Path) -> dict[str, Any]:
    """Read a result that ``tiercel bench --save`` wrote.

    Raises
    ------
    BenchError
        The file can't be read, or is not such a result.
    """
    return _read(file, "`tiercel bench --save`", {"served", "bare", "machine"})


def read_any(file: Path) -> dict[str, Any]:
    """Read a result that ``tiercel bench --save`` or ``python -m benchmarks.scale --save`` wrote.

    Raises
    ------
    BenchError
        The file can't be read, or is neither.
    """
    document = _read(file, "`tiercel bench --save` or `python -m benchmarks.scale --save`", {"machine"})
    return document if "sizes" in document else read_result(file)


def _read(file: Path, writer: str, needed: set[str]) -> dict[str, Any]:
    expected = f"{file}: expected a result that {writer} wrote"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{expected} ({error})") from error
    missing = needed - (document.keys() if isinstance(document, dict) else set())
    if missing:
        raise BenchError(f"{expected}, but it lacks {', '.join(sorted(missing))}")
    result: dict[str, Any] = document
    return result


def unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the differences in machine and load client that make two results incomparable."""
    found = []
    for key, what in (("machine", "the machine"), ("client", "what made the load")):
        one, other = before.get(key), after.get(key)
        if one != other:
            found.append(f"{what}: {_brief(one)} before, {_brief(other)} after")
    return found


def compare(before: Mapping[str, Any], after: Mapping[str, Any], *, force: bool = False) -> list[Change]:
    """Compare two results.

    Parameters
    ----------
    before, after
        Results from :func:`read_result`.
    force
        Whether to compare results in spite of different machines or load clients.

    Raises
    ------
    BenchError
        They have different machines or load clients, or no figure in common.

    Notes
    -----
    The interval is a percentile bootstrap (Efron 1979) of the ratio of medians over rounds. The rounds of
    both results are resampled with replacement.
    """
    if not force and (differences := unlike(before, after)):
        raise BenchError(
            f"these results cannot be compared: {'; '.join(differences)}; measure both on one machine, or "
            "say --force"
        )
    changes = [_change(name, one, other) for name, one, other in _common(before, after)]
    if not changes:
        raise BenchError("these results have no figure in common; expected the same models and concurrencies")
    return changes


def _common(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[str, Sequence[float], Sequence[float]]]:
    """Yield each figure that both have, with its rounds."""
    for concurrency, models in before["served"].items():
        for model, one in models.items():
            other = after["served"].get(concurrency, {}).get(model)
            for figure in FIGURES if other is not None else ():
                rounds = [[float(r[figure]) for r in side["rounds"]] for side in (one, other)]
                yield f"{model}, {concurrency} in flight: {figure}", rounds[0], rounds[1]
    rounds = [[float(r["p50_us"]) for r in side["bare"]["rounds"]] for side in (before, after)]
    yield "bare: p50_us", rounds[0], rounds[1]


def _change(figure: str, before: Sequence[float], after: Sequence[float]) -> Change:
    low = high = float("nan")
    if min(len(before), len(after)) >= FEWEST_ROUNDS:
        draw = np.random.default_rng(0)
        one, other = (
            np.median(np.asarray(side)[draw.integers(len(side), size=(DRAWS, len(side)))], axis=1)
            for side in (before, after)
        )
        outside = (1 - COVERED) / 2
        low, high = np.quantile(other / one, (outside, 1 - outside)).tolist()
    return Change(figure, float(np.median(before)), float(np.median(after)), low, high)


def to_json(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Return the changes in a JSON form; an interval is null if there are too few rounds."""
    return [
        {
            "figure": one.figure,
            "before": round(one.before, 1),
            "after": round(one.after, 1),
            "ratio": round(one.ratio, 3),
            "interval": None if np.isnan(one.low) else [round(one.low, 3), round(one.high, 3)],
            "changed": one.real,
        }
        for one in changes
    ]


def format_changes(changes: Sequence[Change]) -> str:
    """Return the changes as a table."""
    rows = [
        [
            one.figure,
            f"{one.before:.0f}",
            f"{one.after:.0f}",
            f"{one.ratio:.2f}",
            "too few rounds" if np.isnan(one.low) else f"{one.low:.2f} to {one.high:.2f}",
            "changed" if one.real else "",
        ]
        for one in changes
    ]
    count = sum(one.real for one in changes)
    said = f"{count} of {len(changes)} figures changed beyond noise (95 %, and {LEAST_CHANGE:.0%} at least)."
    head = ["figure", "before", "after", "ratio", "95 % interval", ""]
    return f"{format_table(head, rows, left=(0, 5))}\n\n{said}"


def _brief(value: Any) -> str:
    return (
        ", ".join(str(part) for part in value.values())
        if isinstance(value, dict)
        else str(value or "unknown")
    )
