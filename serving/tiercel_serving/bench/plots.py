"""Plots as inline SVG, without external resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

#: Colours that are distinguishable with colour-vision deficiencies (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 300, 70, 40, 16

Series = Mapping[str, Sequence[tuple[float, float]]]


def bars(values: Mapping[str, float], unit: str) -> str:
    """Return a bar chart with one bar per value, the longest as wide as the plot."""
    most, step, label = max(values.values(), default=1) or 1, 24, 170
    drawn = []
    for number, (name, value) in enumerate(values.items()):
        y, width = number * step, max(1.0, value / most * (WIDTH - label - 90))
        drawn.append(
            f'<text x="{label - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{label}" y="{y + 4}" width="{width:.1f}" height="16" fill="{COLOURS[0]}"/>'
            f'<text x="{label + width + 6:.1f}" y="{y + 16}">{value:.0f} {escape(unit)}</text>'
        )
    return _svg("".join(drawn), WIDTH, step * len(values) + 4)


def lines(series: Series, across: str, up: str, *, begin: float | None = 0.0) -> str:
    """Return a line plot with a logarithmic vertical axis, because latency tails span orders of magnitude.

    ``begin`` is the left end of the horizontal axis; None makes that axis logarithmic too.
    """
    points = [point for line in series.values() for point in line if point[1] > 0]
    if not points:
        return ""
    if begin is None:
        series = {name: [(log10(x), y) for x, y in line] for name, line in series.items()}
    xs = [x for line in series.values() for x, _ in line]
    left = min(xs) if begin is None else begin
    right = max(*xs, left + 1e-9)
    low, high = floor(log10(min(y for _, y in points))), log10(max(y for _, y in points))
    high = max(high, low + 0.5)

    def place(x: float, y: float) -> str:
        down = (high - log10(y)) / (high - low)
        share = (x - left) / (right - left)
        return f"{LEFT + share * (WIDTH - LEFT - 20):.1f},{TOP + down * (HEIGHT - TOP - BOTTOM):.1f}"

    drawn = [_axes(across, up)]
    for power in range(low, floor(high) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**power
            if log10(value) <= high:
                _, y = place(0, value).split(",")
                drawn.append(
                    f'<text x="{LEFT - 8}" y="{y}" dy="4" text-anchor="end">{value:g}</text>'
                    f'<path d="M{LEFT} {y}H{WIDTH - 20}" stroke="#eee"/>'
                )
    for part in range(5):
        at = left + (right - left) * part / 4
        x, shown = place(at, 10.0**low).split(",")[0], 10**at if begin is None else at
        drawn.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_brief(shown)}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in line if y > 0)
        dots = "".join(
            '<circle cx="{}" cy="{}" r="2.5" fill="{}"/>'.format(*place(x, y).split(","), colour)
            for x, y in line
            if y > 0
        )
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}')
        drawn.append(
            f'<text x="{LEFT + 12}" y="{TOP + 14 + number * 17}" fill="{colour}">{escape(name)}</text>'
        )
    return _svg("".join(drawn), WIDTH, HEIGHT)


def _brief(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _axes(across: str, up: str) -> str:
    return (
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - 20}" fill="none" stroke="#888"/>'
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="14" y="{(TOP + HEIGHT - BOTTOM) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + HEIGHT - BOTTOM) / 2})">{escape(up)}</text>'
    )


def _svg(inside: str, width: int, height: int) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui,sans-serif" font-size="12">{inside}</svg>'
    )
