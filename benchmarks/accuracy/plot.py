"""Plots of learning curves, recall over k, and accuracy against latency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy.report import rows_of


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw a row of three plots for each data set into a ``.png`` or ``.svg`` file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tiercel", "font.size": 8}):
        figure = pictures(document)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)
        pyplot.close(figure)


def pictures(document: Mapping[str, Any]) -> Any:
    """Return the figure, with a row of learning curves, recall and accuracy for each data set."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(cell["data"] for cell in document["cells"]))
    size = (13, 4 * max(1, len(names)))
    figure, grid = pyplot.subplots(max(1, len(names)), 3, figsize=size, layout="constrained", squeeze=False)
    for name, (learning, recall, latency) in zip(names, grid, strict=True):
        for row in rows_of(document, name):
            first = row.cells[0]
            for model, curve in first["curves"].items():
                learning.plot(range(len(curve)), curve, label=f"{row.family}: {model}")
            recall.plot(range(1, len(first["recall"]) + 1), first["recall"], label=row.family)
            p50_ms = mean(row.of("p50_us")) / 1000
            latency.plot(p50_ms, row.ndcg, "o")
            latency.annotate(row.family, (p50_ms, row.ndcg))
        learning.set(xlabel="epoch", ylabel="validation nDCG@10", title=name)
        recall.set(xlabel="k", ylabel="recall at k", title=name)
        latency.set(xlabel="p50 of one answer, ms", ylabel="nDCG@10", title=name)
        if learning.lines:
            learning.legend(frameon=False, fontsize=6)
        recall.legend(frameon=False, fontsize=6)
    return figure
