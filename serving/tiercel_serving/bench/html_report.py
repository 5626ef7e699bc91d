"""A benchmark's result as one HTML file with tables and inline SVG plots, without external resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .growth_plots import growth_sections
from .plots import bars, lines

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:14px}td,th{padding:.2rem .7rem;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}"
    "svg{max-width:100%;height:auto}.no{color:#b00;font-weight:600}.dim{color:#666}"
)


def html_report(document: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the HTML report of a result of ``tiercel bench --save``.

    ``others`` are results of other releases or of the scale benchmark, for plots over their sizes.
    """
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
        *growth_sections(document, others),
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
