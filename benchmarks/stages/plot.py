"""The report as one plot of microseconds per user of each step, PNG or SVG by the file's suffix."""

from __future__ import annotations

from pathlib import Path

from benchmarks.stages.report import SIZES, StagesReport


def draw(report: StagesReport, file: Path) -> None:
    """Draw a report into a ``.png`` or ``.svg`` file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tiercel", "font.size": 8}):
        figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
        names, users = list(report.steps), SIZES[report.size].users
        places = range(len(names))
        for number, batch in enumerate(users):
            us = [report.steps[name].us[batch] for name in names]
            axis.barh([at + 0.25 * number for at in places], us, 0.25, label=f"batch of {batch}")
        with_peer = [(at, peer) for at, name in enumerate(names) if (peer := report.steps[name].peer_us)]
        if with_peer:
            beside = [place + 0.5 for place, _ in with_peer]
            axis.barh(beside, [peer for _, peer in with_peer], 0.25, label="pyversity, one user")
        axis.set_yticks([at + 0.25 for at in places], names)
        axis.invert_yaxis()
        machine = report.facts.get("machine", {})
        axis.set(xscale="log", xlabel="µs a user", title=f"Reorder steps: {machine.get('cpu', '')}")
        axis.legend(frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)
        pyplot.close(figure)
