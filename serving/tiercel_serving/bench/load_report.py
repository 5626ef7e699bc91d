"""Limits on the open loops' figures, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .load_curve import LoadCurve, LoadPoint
from .text_table import format_table

#: Upper limit of p99 / p50 at half of a model's saturated throughput.
TAIL_LIMIT = 4.0
#: Upper limit of the processor time of an answer at saturation, over that of the bare compute at the
#: saturated server's batch size.
CPU_LIMIT = 2.5


@dataclass(frozen=True)
class Promise:
    """A figure of a load curve, and its upper limit."""

    label: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether it is within its limit."""
        return self.value <= self.limit


def promises_of(name: str, curve: LoadCurve) -> list[Promise]:
    """Return one curve's figures that have a limit, as far as they were measured."""
    made = []
    saturation = curve.saturation.answered
    half = [point for point in curve.points if abs((point.rate or 0) / saturation - 0.5) < 0.01]
    if half:
        label = f"{name}: p99 / p50 at half of saturation"
        made.append(Promise(label, round(half[0].p99_us / half[0].p50_us, 2), TAIL_LIMIT))
    if curve.bare_cpu_s:
        label = f"{name}: processor time of an answer at saturation / bare compute"
        made.append(Promise(label, round(curve.saturation.cpu_s / curve.bare_cpu_s, 2), CPU_LIMIT))
    return made


def format_curves(curves: Mapping[str, LoadCurve], promises: Sequence[Promise]) -> str:
    """Return the curves and their limits as text; empty if there are no curves."""
    if not curves:
        return ""
    parts = [_table(name, curve) for name, curve in curves.items()]
    lines = [
        f"  {one.label}  {one.value:.2f}, limit {one.limit}: {'pass' if one.ok else 'FAIL'}"
        for one in promises
    ]
    return "\n\n".join([*parts, "\n".join(["Under load:", *lines])])


def _table(name: str, curve: LoadCurve) -> str:
    rows = [_row("closed", curve.saturation), *(_row(f"{p.rate:.0f}", p) for p in curve.points)]
    head = ["requests/s due", "answered", "p50 µs", "p99 µs", "p99.9 µs", "CPU s/1000", "peak MB", "note"]
    best = "none" if curve.best is None else f"{curve.best:.0f} a second"
    title = (
        f"{name}, mix {curve.mix}, Poisson arrivals; highest rate with p99 within "
        f"{curve.limit_us / 1000:g} ms: {best}"
    )
    return f"{title}\n{format_table(head, rows, left=(7,))}"


def _row(what: str, point: LoadPoint) -> list[str]:
    figures = (point.answered, point.p50_us, point.p99_us, point.p999_us)
    notes = [] if point.held else ["not held"]
    notes += [f"{count} {status}" for status, count in point.failures.items()]
    if point.late_us > point.p50_us / 2:
        notes.append(f"sent up to {point.late_us:.0f} µs late: this machine cannot offer the rate evenly")
    cells = [f"{value:.0f}" for value in figures]
    return [what, *cells, f"{point.cpu_s:.2f}", f"{point.peak_mb:.0f}", "; ".join(notes)]
