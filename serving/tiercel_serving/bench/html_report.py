"""A benchmark's result as one HTML file: tables, and plots as inline SVG; it loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10
from typing import Any

#: Colours that people with any sight tell apart (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 300, 70, 40, 16

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:14px}td,th{padding:.2rem .7rem;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}"
    "svg{max-width:100%;height:auto}.no{color:#b00;font-weight:600}.dim{color:#666}"
)

Series = Mapping[str, Sequence[tuple[float, float]]]


def html_report(document: Mapping[str, Any]) -> str:
    """Return the HTML of what ``tiercel bench --save`` writes."""
    release, machine = document.get("release", {}), document.get("machine", {})
    title = f"{release.get('name', 'benchmark')}: latency and throughput"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='dim'>{escape(_facts(document, release, machine))}</p>",
        "<h2>What is held to a limit</h2>",
        _limits(document),
        "<h2>Served</h2>",
        _served(document),
        "<h2>Where the time goes</h2>",
        "<p>The stages in one process, one user a request, without a server.</p>",
        _stages(document["bare"]),
        *_load(document.get("load", {})),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"/><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(part for part in parts if part)}</body></html>\n"
    )


def _facts(document: Mapping[str, Any], release: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    facts = (
        f"build {release.get('build_id', '?')}",
        f"{release.get('items', '?')} items",
        f"K = {release.get('kept', '?')}",
        f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores",
        f"Triton {document.get('triton', '?')}",
        str(document.get("client", "")),
        str(document.get("date", "")),
    )
    return " · ".join(facts)


def _limits(document: Mapping[str, Any]) -> str:
    rows = []
    for one in document.get("ratios", ()):
        label = f"{one['measured']} / ({' + '.join(one['against'])}), p50"
        rows.append([label, f"{one['ratio']:.2f}", _limit("at most", one["limit"]), _verdict(one["ok"])])
    for one in document.get("gains", ()):
        label = f"{one['measured']} / {one['against']}, answers a second"
        rows.append([label, f"{one['ratio']:.2f}", _limit("at least", one["least"]), _verdict(one["ok"])])
    rows += [
        [one["label"], f"{one['value']:.2f}", _limit("at most", one["limit"]), _verdict(one["ok"])]
        for one in document.get("promises", ())
    ]
    return _table(("figure", "measured", "limit", ""), rows)


def _limit(word: str, value: float | None) -> str:
    return "" if value is None else f"{word} {value:g}"


def _verdict(ok: bool | None) -> str:
    return "" if ok is None else "kept" if ok else "missed"


def _served(document: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{model}, {concurrency} in flight",
            *(f"{one[name]:.0f}" for name in ("p50_us", "p99_us", "throughput")),
        ]
        for concurrency, models in document["served"].items()
        for model, one in models.items()
    ]
    return _table(("what", "p50 µs", "p99 µs", "answers a second"), rows)


def _stages(bare: Mapping[str, Any]) -> str:
    spent = {**bare["stages_us"], "between stages": bare["between_stages_us"]}
    return bars(spent, "µs")


def _load(load: Mapping[str, Any]) -> list[str]:
    if not load:
        return []
    mix = next(iter(load.values()))["mix"]
    parts = [
        "<h2>Latency against load</h2>",
        f"<p>Open loop, Poisson arrivals, mix <b>{escape(mix)}</b>; latency from when a request was due.</p>",
    ]
    for figure, words in (("p50_us", "p50"), ("p99_us", "p99"), ("p999_us", "p99.9")):
        series = {
            name: [(point["rate"], point[figure] / 1000) for point in curve["points"]]
            for name, curve in load.items()
        }
        parts.append(lines(series, "requests a second", f"{words}, ms"))
    rows = []
    for name, curve in load.items():
        full, best = curve["saturation"], curve["best_rate"]
        within = "none" if best is None else f"{best:.0f}"
        rows.append(
            [name, within, f"{full['answered']:.0f}", f"{full['cpu_s']:.2f}", f"{full['peak_mb']:.0f}"]
        )
    limit = next(iter(load.values()))["limit_us"] / 1000
    head = ("what", f"rate with p99 ≤ {limit:g} ms", "saturated", "CPU s for 1,000 answers", "peak MB")
    parts += [_table(head, rows), "<h2>Where requests wait, saturated</h2>"]
    rows = [
        [
            f"{name}: {model}",
            *(f"{one[key]:.0f}" for key in ("queue_us", "compute_us")),
            f"{one['batch']:.1f}",
        ]
        for name, curve in load.items()
        for model, one in curve["saturation"]["stages"].items()
    ]
    return [*parts, _table(("model", "queue µs", "compute µs", "mean batch"), rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        shown = (
            f"<{tag} class='no'>{escape(cell)}</{tag}>"
            if cell == "missed"
            else f"<{tag}>{escape(cell)}</{tag}>"
            for cell in cells
        )
        return f"<tr>{''.join(shown)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def bars(values: Mapping[str, float], unit: str) -> str:
    """Return one bar a value, the longest as wide as the plot."""
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


def lines(series: Series, across: str, up: str) -> str:
    """Return a plot of lines; ``up`` is on a scale of powers of ten, since tails are."""
    points = [point for line in series.values() for point in line if point[1] > 0]
    if not points:
        return ""
    right = max(x for x, _ in points) or 1
    low, high = floor(log10(min(y for _, y in points))), log10(max(y for _, y in points))
    high = max(high, low + 0.5)

    def place(x: float, y: float) -> str:
        down = (high - log10(y)) / (high - low)
        return f"{LEFT + x / right * (WIDTH - LEFT - 20):.1f},{TOP + down * (HEIGHT - TOP - BOTTOM):.1f}"

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
        x = place(right * part / 4, 10.0**low).split(",")[0]
        drawn.append(
            f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{right * part / 4:.0f}</text>'
        )
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
