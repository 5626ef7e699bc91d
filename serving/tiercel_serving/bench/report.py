"""The benchmark's report: figures, ratios against their limits, tables for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .bare import BareCompute, median_bare
from .growth import Growth
from .load_curve import LoadCurve
from .load_report import Promise, format_curves, promises_of
from .measurement import Measurement, median_of
from .text_table import format_table as format_table  # benchmarks print with it too

#: The concurrency at which the limits hold.
LIMIT_CONCURRENCY = 1
#: K, the number of ranked candidates, that the limits are stated for.
LIMIT_KEPT = 100
#: The name of the bare compute in comparisons.
BARE = "bare"


#: A measured model, the names (of models, or :data:`BARE`) whose sum it is compared with, and the upper limit
#: of the ratio; None only informs.
COMPARISONS: tuple[tuple[str, tuple[str, ...], float | None], ...] = (
    ("fused", ("identity", BARE), 1.4),
    ("staged", ("identity", BARE), 3.5),
    # The staged layout if its stages took no time, and the factor that they add.
    ("hollow", ("identity", BARE), None),
    ("staged", ("hollow",), None),
    # Tiercel's own runner, compared with the stock runner's identity model.
    ("tiercel_fused", ("identity", BARE), 1.0),
    ("tiercel_staged", ("identity", BARE), 2.0),
    ("tiercel_hollow", ("identity", BARE), None),
)

#: The concurrency of :data:`GAINS`.
GAIN_CONCURRENCY = 8
#: Two models whose answers a second are compared, and the lower limit of the first's over the second's.
GAINS: tuple[tuple[str, str, float], ...] = (
    ("tiercel_fused", "fused", 1.25),
    ("tiercel_staged", "staged", 1.8),
)


@dataclass(frozen=True)
class Ratio:
    """One of :data:`COMPARISONS`: p50 in µs, medians over rounds, and the range of single rounds' ratios."""

    measured: str
    against: tuple[str, ...]
    limit: float | None
    measured_us: float
    against_us: tuple[float, ...]
    lowest: float
    highest: float

    @property
    def label(self) -> str:
        """The comparison as a formula."""
        return f"{self.measured} / {_sum(self.against)}"

    @property
    def ratio(self) -> float:
        """The measured model's p50 over the sum of the others'."""
        return self.measured_us / sum(self.against_us)

    @property
    def ok(self) -> bool:
        """Whether the ratio is within its limit, if it has one."""
        return self.limit is None or self.ratio <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form; ``ok`` is null if there is no limit."""
        return {
            **asdict(self),
            "measured_us": round(self.measured_us, 1),
            "against_us": [round(us, 1) for us in self.against_us],
            **{name: round(getattr(self, name), 3) for name in ("ratio", "lowest", "highest")},
            "ok": None if self.limit is None else self.ok,
        }


@dataclass(frozen=True)
class Gain:
    """One of :data:`GAINS`: the ratio of answers a second, medians over rounds."""

    measured: str
    against: str
    least: float
    ratio: float

    @property
    def label(self) -> str:
        """The comparison as a formula."""
        return f"{self.measured} / {self.against}"

    @property
    def ok(self) -> bool:
        """Whether the ratio reaches its limit."""
        return self.ratio >= self.least


@dataclass(frozen=True)
class BenchReport:
    """All results of one run of the benchmark, with rounds in their order.

    ``facts`` are what the figures depend on: date, command, machine, versions, release. ``served`` maps a
    concurrency and a model (``identity``, ``hollow``, ``fused``, ``staged``; with the prefix ``tiercel_`` on
    that runner) to its rounds. ``curves`` holds the open loops by model. ``growth`` holds the measurements
    without a server, if they were requested.
    """

    facts: Mapping[str, Any]
    served: Mapping[int, Mapping[str, Sequence[Measurement]]]
    bare: Sequence[BareCompute]
    curves: Mapping[str, LoadCurve] = field(default_factory=dict)
    growth: Growth | None = None

    def ratios(self) -> list[Ratio]:
        """Return the comparisons at concurrency 1; empty if that was not measured."""
        rounds = self.served.get(LIMIT_CONCURRENCY)
        if not rounds or not self.bare:
            return []
        measured = {**rounds, BARE: [bare.total for bare in self.bare]}
        return [
            _ratio(measured, name, against, limit)
            for name, against, limit in COMPARISONS
            if measured.keys() >= {name, *against}
        ]

    def gains(self) -> list[Gain]:
        """Return the gains of one runner over another at concurrency 8, as far as both were measured."""
        rounds = self.served.get(GAIN_CONCURRENCY, {})
        speed = {name: median_of(measured).throughput for name, measured in rounds.items()}
        return [
            Gain(name, against, least, speed[name] / speed[against])
            for name, against, least in GAINS
            if speed.keys() >= {name, against}
        ]

    def promises(self) -> list[Promise]:
        """Return the open loops' figures that have a limit."""
        return [promise for name, curve in self.curves.items() for promise in promises_of(name, curve)]

    @property
    def ok(self) -> bool:
        """Whether every figure that has a limit is within it."""
        held = [ratio.ok for ratio in self.ratios()] + [gain.ok for gain in self.gains()]
        return all(held + [promise.ok for promise in self.promises()])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form with the medians and the rounds that they were computed from."""
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
            "gains": [{**asdict(gain), "ok": gain.ok} for gain in self.gains()],
            "load": {name: curve.to_json() for name, curve in self.curves.items()},
            **({} if self.growth is None else {"growth": self.growth.to_json()}),
            "promises": [{**asdict(promise), "ok": promise.ok} for promise in self.promises()],
            "ok": self.ok,
        }


def _ratio(
    rounds: Mapping[str, Sequence[Measurement]], measured: str, against: tuple[str, ...], limit: float | None
) -> Ratio:
    names = (measured, *against)
    over, *below = (median_of(rounds[name]).p50_us for name in names)
    by_round = zip(*([m.p50_us for m in rounds[name]] for name in names), strict=True)
    single = [first / sum(rest) for first, *rest in by_round]
    return Ratio(measured, against, limit, over, tuple(below), min(single), max(single))


def _sum(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"


def format_report(report: BenchReport) -> str:
    """Return the report as plain text tables."""
    parts = (
        _served_table(report),
        _bare_table(report),
        _ratio_lines(report),
        _gain_lines(report),
        format_curves(report.curves, report.promises()),
    )
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
    ratios = report.ratios()
    if not ratios:
        return ""
    kept = report.facts.get("release", {}).get("kept")
    width = max(len(ratio.label) for ratio in ratios)
    lines = [f"p50 at concurrency {LIMIT_CONCURRENCY}, K = {kept}:"]
    lines += [f"  {ratio.label:<{width}}  {_ratio_figures(ratio)}" for ratio in ratios]
    if kept != LIMIT_KEPT:
        lines.append(f"  (the limits are stated for K = {LIMIT_KEPT}; this release has K = {kept})")
    return "\n".join([*lines, _share_line(ratios)])


def _gain_lines(report: BenchReport) -> str:
    gains = report.gains()
    if not gains:
        return ""
    lines = [
        f"  {gain.label}  {gain.ratio:.2f}, limit {gain.least}: {'pass' if gain.ok else 'FAIL'}"
        for gain in gains
    ]
    return "\n".join([f"Answers a second at concurrency {GAIN_CONCURRENCY}:", *lines])


def _share_line(ratios: Sequence[Ratio]) -> str:
    """Return the shares of hops and compute in staged; the rest is the cost of stages as processes."""
    hops = next(1 / ratio.ratio for ratio in ratios if ratio.against == ("hollow",))
    staged = next(ratio for ratio in ratios if ratio.measured == "staged")
    compute = staged.against_us[staged.against.index(BARE)] / staged.measured_us
    return (
        "  (hollow is staged with stages that do nothing: "
        f"of staged, Triton's hops are {hops:.0%} and the bare compute is {compute:.0%})"
    )


def _ratio_figures(ratio: Ratio) -> str:
    below = _sum([f"{us:.0f}" for us in ratio.against_us])
    text = f"{ratio.measured_us:.0f} / {below} = {ratio.ratio:.2f}"
    text += f" (rounds {ratio.lowest:.2f} to {ratio.highest:.2f})"
    if ratio.limit is None:
        return text
    return f"{text}, limit {ratio.limit}: {'pass' if ratio.ok else 'FAIL'}"
