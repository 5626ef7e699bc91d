"""The stages benchmark's report: figures with their limits, a table for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.scale.report import Figure
from tiercel_serving.bench.report import format_table


@dataclass(frozen=True)
class Size:
    """How much is measured: items, K, k, D, batch sizes (1 among them), and how long."""

    items: int
    kept: int
    k: int
    dimension: int
    users: tuple[int, ...] = (1, 64)
    rounds: int = 7
    seconds: float = 0.3


#: Name → size. ``tiny`` is for tests: its figures mean nothing and have no limits.
SIZES: Mapping[str, Size] = {
    "full": Size(20_000, 500, 50, 64),
    "tiny": Size(40, 12, 4, 4, (1, 3), 1, 0.0),
}

#: Microseconds for one user, at most, by step.
LIMITS_US: Mapping[str, float] = {
    **dict.fromkeys(("weighted_sum", "constrained_sum", "freshness", "popularity_correction"), 60),
    **dict.fromkeys(("boost_items", "score_floor"), 60),
    **dict.fromkeys(("gumbel_top_k", "epsilon_slot", "pin_items"), 60),
    **dict.fromkeys(("mmr", "spread", "cap", "fair_shares"), 400),
    **dict.fromkeys(("dpp", "calibration"), 800),
}

#: Microseconds that rules and a long history may take of one user.
RULES_US = 100.0

#: Times faster than the peer: one user, and a user of the largest batch.
TIMES_ONE, TIMES_BATCH = 2.0, 10.0


@dataclass(frozen=True)
class StepTimes:
    """Microseconds a user by batch size, and those of the peer for one user; None if it has none."""

    us: Mapping[int, float]
    peer_us: float | None


@dataclass(frozen=True)
class StagesReport:
    """Everything that one run found: ``facts`` of the machine, the size's name, each step, and rules.

    ``rules_us`` is what :func:`~benchmarks.stages.rules.measure_rules` found; None if nobody asked.
    """

    facts: Mapping[str, Any]
    size: str
    steps: Mapping[str, StepTimes]
    rules_us: float | None = None

    def figures(self) -> Iterator[Figure]:
        """Yield every figure that has a limit."""
        if self.size != "full":
            return
        for name, times in self.steps.items():
            yield Figure(f"{name}: µs for one user", times.us[1], LIMITS_US[name])
            if times.peer_us is not None:
                largest = max(times.us)
                one, many = times.peer_us / times.us[1], times.peer_us / times.us[largest]
                yield Figure(f"{name}: times as fast as pyversity, one user", one, TIMES_ONE, least=True)
                what = f"{name}: times as fast as pyversity, a user of {largest}"
                yield Figure(what, many, TIMES_BATCH, least=True)
        if self.rules_us is not None:
            yield Figure("five rules and a long history: µs for one user", self.rules_us, RULES_US)

    @property
    def ok(self) -> bool:
        """Whether every figure is within its limit."""
        return all(figure.ok for figure in self.figures())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        figures = [{**asdict(figure), "ok": figure.ok} for figure in self.figures()]
        steps = {
            name: {"us": {str(users): round(us, 1) for users, us in times.us.items()}}
            | {"peer_us": None if times.peer_us is None else round(times.peer_us, 1)}
            for name, times in self.steps.items()
        }
        size = {"name": self.size, **asdict(SIZES[self.size])}
        rules = {"rules_us": self.rules_us}
        return {**self.facts, "size": size, "steps": steps, **rules, "figures": figures, "ok": self.ok}


def format_stages(report: StagesReport) -> str:
    """Return the report as tables."""
    users = SIZES[report.size].users
    rows = [
        [name, *(f"{times.us[n]:.0f}" for n in users), "" if (p := times.peer_us) is None else f"{p:.0f}"]
        for name, times in report.steps.items()
    ]
    head = ["step, µs a user", *(f"batch {n}" for n in users), "pyversity"]
    parts = [format_table(head, rows)]
    if figures := list(report.figures()):
        parts.append(format_table(["figure", "", "limit", ""], [figure.row() for figure in figures]))
    return "\n\n".join(parts)
