"""The report as one plot, PNG or SVG by the file's suffix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.features.lookups import BATCH, ns_a_key
from benchmarks.features.report import FeatureReport
from benchmarks.features.served import MODELS

THEIRS, OURS, OTHER = "#b3541e", "#1f6f8b", "#9a9a9a"


def draw(report: FeatureReport, file: Path) -> None:
    """Draw time by batch size, time by vocabulary size, hash lookups, and served latency.

    Parameters
    ----------
    report
        The measurements; a panel without figures says so.
    file
        ``.png`` or ``.svg``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tiercel", "font.size": 8}):
        figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
        _batches(axes[0][0], report)
        _sizes(axes[0][1], report)
        _hashes(axes[1][0], report)
        _served(axes[1][1], report)
        machine = report.facts.get("machine", {})
        figure.suptitle(f"Compiled features: {machine.get('cpu', '')}, {machine.get('cores', '?')} cores")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)
        pyplot.close(figure)


def _batches(axis: Any, report: FeatureReport) -> None:
    axis.set(title="One process: NVTabular (dashed) and Tiercel", xlabel="rows of a batch", ylabel="µs")
    cases = list(dict.fromkeys(figure.case for figure in report.against))
    for number, case in enumerate(cases):
        figures = [figure for figure in report.against if figure.case == case]
        batches, colour = [figure.batch for figure in figures], f"C{number}"
        axis.plot(batches, [f.transform.us for f in figures], "--o", color=colour, markersize=3)
        axis.plot(batches, [f.program.us for f in figures], "-o", color=colour, markersize=3, label=case)
    _finish(axis, bool(cases), log="xy")


def _sizes(axis: Any, report: FeatureReport) -> None:
    axis.set(title="One row of one column", xlabel="entries of the vocabulary", ylabel="µs")
    for figure in report.flats:
        axis.plot(list(figure.sizes), [timed.us for timed in figure.sizes.values()], "-o", label=figure.kind)
    _finish(axis, bool(report.flats), log="x")
    axis.set_ylim(0, axis.get_ylim()[1])


def _hashes(axis: Any, report: FeatureReport) -> None:
    axis.set(title=f"Hash lookups, {BATCH:,} keys a call", ylabel="ns a key")
    places = range(len(report.hashes))
    sides = (("pandas get_indexer", "pandas", THEIRS, -0.2), ("Tiercel", "lookup", OURS, 0.2))
    for label, side, colour, shift in sides:
        heights = [ns_a_key(getattr(figure, side)) for figure in report.hashes]
        bars = axis.bar([place + shift for place in places], heights, 0.38, color=colour, label=label)
        axis.bar_label(bars, fmt="%.0f")
    axis.set_xticks(list(places), [figure.kind for figure in report.hashes])
    _finish(axis, bool(report.hashes))


def _served(axis: Any, report: FeatureReport) -> None:
    axis.set(title="Served by one Triton, one row, p50", ylabel="ms")
    colours = dict.fromkeys(MODELS, OTHER) | {"tiercel": OURS, "workflow": THEIRS}
    colours["own"] = OURS
    for number, figure in enumerate(report.served):
        heights = [figure.p50_us(name) / 1000 if name in figure.rounds else 0.0 for name in MODELS]
        places = [number * (len(MODELS) + 1) + i for i in range(len(MODELS))]
        bars = axis.bar(places, heights, color=list(colours.values()))
        labels = [f"{name} {ms:.2g}" for name, ms in zip(MODELS, heights, strict=True)]
        axis.bar_label(bars, labels=labels, rotation=90, padding=2)
    middles = [number * (len(MODELS) + 1) + (len(MODELS) - 1) / 2 for number in range(len(report.served))]
    axis.set_xticks(middles, [figure.case for figure in report.served])
    axis.margins(y=0.5)
    _finish(axis, bool(report.served), legend=False)


def _finish(axis: Any, measured: bool, *, log: str = "", legend: bool = True) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    if not measured:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes)
        return
    if "x" in log:
        axis.set_xscale("log")
    if "y" in log:
        axis.set_yscale("log")
    if legend:
        axis.margins(y=0.25)
        axis.legend(frameon=False, loc="upper left", ncols=3)
