"""The benchmark's report: figures, ratios against their limits, tables for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .bare import BareCompute, median_bare
from .feature_program import FeatureFigure
from .measurement import Measurement, median_of

#: Layout → how many times (identity model + bare compute) its p50 may be at concurrency 1.
LIMITS: Mapping[str, float] = {"fused": 1.4, "staged": 3.5}
#: The concurrency at which the limits hold.
LIMIT_CONCURRENCY = 1
#: K, the number of ranked candidates, that the limits are stated for.
LIMIT_KEPT = 100


@dataclass(frozen=True)
class Ratio:
    """One layout against (identity model + bare compute), p50 in microseconds.

    Parameters
    ----------
    layout
        ``fused`` or ``staged``.
    served_us, identity_us, bare_us
        Medians over rounds.
    ratio
        ``served / (identity + bare)``.
    lowest, highest
        The same ratio of single rounds.
    limit
        What it may be at most.
    """

    layout: str
    served_us: float
    identity_us: float
    bare_us: float
    ratio: float
    lowest: float
    highest: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.ratio <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        values = {name: round(v, 3) if isinstance(v, float) else v for name, v in asdict(self).items()}
        return {**values, "ok": self.ok}


@dataclass(frozen=True)
class BenchReport:
    """Everything that one run of the benchmark found.

    Parameters
    ----------
    facts
        Date, command, machine, versions, release: what the figures depend on.
    served
        Concurrency → what was measured (``identity``, ``fused``, ``staged``) → its rounds, in order.
    bare
        Rounds of the bare compute, in order.
    features
        The feature program against NVTabular, if that was measured.
    """

    facts: Mapping[str, Any]
    served: Mapping[int, Mapping[str, Sequence[Measurement]]]
    bare: Sequence[BareCompute]
    features: Sequence[FeatureFigure] = ()

    def ratios(self) -> list[Ratio]:
        """Return each layout's ratio at concurrency 1; empty if that was not measured."""
        rounds = self.served.get(LIMIT_CONCURRENCY)
        if not rounds or not self.bare:
            return []
        return [self._ratio(layout, limit, rounds) for layout, limit in LIMITS.items() if layout in rounds]

    def _ratio(self, layout: str, limit: float, rounds: Mapping[str, Sequence[Measurement]]) -> Ratio:
        served, identity = median_of(rounds[layout]).p50_us, median_of(rounds["identity"]).p50_us
        bare = median_bare(self.bare).total.p50_us
        single = [
            s.p50_us / (i.p50_us + b.total.p50_us)
            for s, i, b in zip(rounds[layout], rounds["identity"], self.bare, strict=True)
        ]
        ratio = served / (identity + bare)
        return Ratio(layout, served, identity, bare, ratio, min(single), max(single), limit)

    @property
    def ok(self) -> bool:
        """Whether every figure that has a limit is within it."""
        return all(ratio.ok for ratio in self.ratios()) and all(figure.ok for figure in self.features)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form: medians, and every round that they were taken of."""
        bare = median_bare(self.bare)
        return {
            **self.facts,
            "served": {
                str(concurrency): {
                    model: {
                        **median_of(rounds).to_json(),
                        "rounds": [measurement.to_json() for measurement in rounds],
                    }
                    for model, rounds in models.items()
                }
                for concurrency, models in self.served.items()
            },
            "bare": {
                **bare.total.to_json(),
                "stages_us": {stage: round(spent, 1) for stage, spent in bare.stages_us.items()},
                "between_stages_us": round(bare.between_us, 1),
                "rounds": [measured.total.to_json() for measured in self.bare],
            },
            "ratios": [ratio.to_json() for ratio in self.ratios()],
            "features": [figure.to_json() for figure in self.features],
            "ok": self.ok,
        }


def format_report(report: BenchReport) -> str:
    """Return the report as plain text tables."""
    parts = [_served_table(report), _bare_table(report), _ratio_lines(report)]
    if report.features:
        parts.append(_feature_table(report.features))
    return "\n\n".join(part for part in parts if part)


def _served_table(report: BenchReport) -> str:
    rows = [
        [str(concurrency), model, f"{m.p50_us:.0f}", f"{m.p99_us:.0f}", f"{m.throughput:.0f}"]
        for concurrency, models in report.served.items()
        for model, m in ((name, median_of(rounds)) for name, rounds in models.items())
    ]
    title = f"Served, one user a request, medians of {len(report.bare)} rounds ({report.facts['client']}):"
    head = ["concurrency", "model", "p50 µs", "p99 µs", "requests/s"]
    return f"{title}\n{format_table(head, rows, left=(1,))}"


def _bare_table(report: BenchReport) -> str:
    bare = median_bare(report.bare)
    whole = bare.total.p50_us
    spent = {**bare.stages_us, "between stages": bare.between_us}
    rows = [[stage, f"{us:.1f}", f"{us / whole:.0%}"] for stage, us in spent.items()]
    rows.append(["whole", f"{whole:.1f}", f"p99 {bare.total.p99_us:.1f}"])
    title = "Bare compute of the same stages in one process, one user, p50:"
    return f"{title}\n{format_table(['stage', 'µs', 'share'], rows, left=(0,))}"


def _ratio_lines(report: BenchReport) -> str:
    kept = report.facts.get("release", {}).get("kept")
    head = f"p50 at concurrency {LIMIT_CONCURRENCY}, K = {kept}, against identity model + bare compute:"
    lines = [
        f"  {ratio.layout:<7}{ratio.served_us:.0f} / ({ratio.identity_us:.0f} + {ratio.bare_us:.0f}) = "
        f"{ratio.ratio:.2f} (rounds {ratio.lowest:.2f} to {ratio.highest:.2f}), "
        f"limit {ratio.limit}: {'pass' if ratio.ok else 'FAIL'}"
        for ratio in report.ratios()
    ]
    if kept != LIMIT_KEPT and lines:
        lines.append(f"  (the limits are stated for K = {LIMIT_KEPT}; this release has K = {kept})")
    return "\n".join([head, *lines]) if lines else ""


def _feature_table(figures: Sequence[FeatureFigure]) -> str:
    rows = [
        [
            figure.part,
            str(figure.columns),
            f"{figure.program_us:.1f}",
            f"{figure.transform_us:.0f}",
            f"{figure.ratio:.0f}",
            f"at least {figure.limit:.0f}: {'pass' if figure.ok else 'FAIL'}",
        ]
        for figure in figures
    ]
    head = ["part", "columns", "program µs", "Workflow.transform µs", "times faster", "limit"]
    return "Feature program, one row, same workflow, p50:\n" + format_table(head, rows, left=(0, 5))


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Return an aligned text table, columns right-aligned except those in ``left``."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return ("  " + "  ".join(aligned)).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])
