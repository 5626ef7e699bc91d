"""The report as one plot of p50 and recall over size, PNG or SVG by the file's suffix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.scale.report import RECALL, ScaleReport
from benchmarks.scale.sizes import SIZES


def draw(report: ScaleReport, file: Path) -> None:
    """Draw a report.

    Parameters
    ----------
    report
        The measurements.
    file
        ``.png`` or ``.svg``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tiercel", "font.size": 8}):
        figure, (times, recalls) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
        _times(times, report)
        _recalls(recalls, report)
        machine = report.facts.get("machine", {})
        figure.suptitle(f"Scale: {machine.get('cpu', '')}, {machine.get('cores', '?')} cores")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)
        pyplot.close(figure)


def _times(axis: Any, report: ScaleReport) -> None:
    axis.set(title="An answer, p50", xlabel="items", ylabel="µs a user", xscale="log", yscale="log")
    items = [SIZES[name].items for name in report.sizes]
    for key, label in (("one", "one user"), ("batch", "64 users"), ("heavy", "64, one of them heavy")):
        axis.plot(items, [one.answers[key] for one in report.sizes.values()], "-o", markersize=3, label=label)
    served = [one.served["one"] for one in report.sizes.values()]
    axis.plot(items, served, "-o", markersize=3, label="one user, served")
    axis.legend(frameon=False)


def _recalls(axis: Any, report: ScaleReport) -> None:
    axis.set(title="Worst recall under any mask", xlabel="items", ylabel="recall", xscale="log")
    names = dict.fromkeys(found.index for one in report.sizes.values() for found in one.searches)
    for name in names:
        points = [
            (
                SIZES[size].items,
                min(found.recall for found in one.searches if found.index == name and not found.refused),
            )
            for size, one in report.sizes.items()
            if any(found.index == name and not found.refused for found in one.searches)
        ]
        axis.plot(*zip(*points, strict=True), "-o", markersize=3, label=name) if points else None
    axis.axhline(RECALL, color="#9a9a9a", linestyle=":")
    axis.set_ylim(0.9, 1.005)
    axis.legend(frameon=False)
