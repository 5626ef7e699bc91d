"""The stages benchmark's report: figures with their limits, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.scale.report import Figure
from tiercel_serving.bench.report import format_table


@dataclass(frozen=True)
class Size:
    """Sizes of the measurements.

    Parameters
    ----------
    items, kept, k, dimension
        Numbers of items, of candidates K, and of answered items k; dimension D of vectors.
    users
        Batch sizes, including 1.
    rounds, seconds
        Number of rounds, and how long each call is repeated in a round.
    searched, found
        Number of items that filtered search looks through, and of items that it returns.
    known
        Number of users in the store.
    """

    items: int
    kept: int
    k: int
    dimension: int
    users: tuple[int, ...] = (1, 64)
    rounds: int = 7
    seconds: float = 0.3
    searched: int = 100_000
    found: int = 100
    known: int = 1_000_000


#: Name → size. ``tiny`` is for tests: its figures mean nothing and have no limits.
SIZES: Mapping[str, Size] = {
    "full": Size(20_000, 500, 50, 64),
    "tiny": Size(40, 12, 4, 4, (1, 3), 1, 0.0, 500, 10, 3000),
}

#: Step → most microseconds for one user.
LIMITS_US: Mapping[str, float] = {
    **dict.fromkeys(("weighted_sum", "constrained_sum", "freshness", "popularity_correction"), 60),
    **dict.fromkeys(("boost_items", "score_floor"), 60),
    **dict.fromkeys(("gumbel_top_k", "epsilon_slot", "pin_items"), 60),
    **dict.fromkeys(("mmr", "spread", "cap", "fair_shares"), 400),
    **dict.fromkeys(("dpp", "calibration"), 800),
}

#: Most microseconds that rules and a long history may take for one user.
RULES_US = 100.0
#: Most time that a filtered search may take, as a multiple of the unfiltered one.
FILTERED = 3.0

#: Kind of read → most microseconds (for opening, seconds).
READS: Mapping[str, float] = {
    "opening, s": 0.2,
    "one user, model-ready": 5,
    "64 users, 20 columns": 150,
}

#: How many times faster than pyversity a step must be, for one user, and per user of the largest batch.
TIMES_ONE, TIMES_BATCH = 2.0, 10.0


@dataclass(frozen=True)
class StepTimes:
    """Microseconds per user by batch size, and pyversity's for one user; None if it has no such step."""

    us: Mapping[int, float]
    peer_us: float | None


@dataclass(frozen=True)
class FilterTimes:
    """Microseconds per user by batch size, and whether the best allowed items were found."""

    us: Mapping[int, float]
    exact: bool


@dataclass(frozen=True)
class StagesReport:
    """All results of one run.

    Parameters
    ----------
    facts
        Date, command, machine and versions.
    size
        Key of :data:`SIZES`.
    steps
        Reorder step → times.
    filters
        Share of items that pass → times.
    users
        Kind of read → microseconds (for opening, seconds).
    rules_us
        Result of :func:`~benchmarks.stages.rules.measure_rules`; None if not measured.
    """

    facts: Mapping[str, Any]
    size: str
    steps: Mapping[str, StepTimes]
    filters: Mapping[str, FilterTimes] = field(default_factory=dict)
    users: Mapping[str, float] = field(default_factory=dict)
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
        for name, filtered in self.filters.items():
            if name == "none":
                continue
            yield Figure(f"filter {name}: found exactly", float(filtered.exact), 1.0, least=True)
            for users, us in filtered.us.items():
                ratio = us / self.filters["none"].us[users]
                yield Figure(f"filter {name}: times unfiltered, batch of {users}", ratio, FILTERED)
        for name, limit in READS.items():
            if name in self.users:
                unit = "" if name.endswith(", s") else ": µs"
                yield Figure(f"users: {name}{unit}", self.users[name], limit)

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
        filters = {
            name: {"us": {str(users): round(us, 1) for users, us in one.us.items()}, "exact": one.exact}
            for name, one in self.filters.items()
        }
        users = {name: round(value, 3) for name, value in self.users.items()}
        found = {"steps": steps, "filters": filters, "users": users, "rules_us": self.rules_us}
        return {**self.facts, "size": size, **found, "figures": figures, "ok": self.ok}


def format_stages(report: StagesReport) -> str:
    """Return the report as tables."""
    users = SIZES[report.size].users
    rows = [
        [name, *(f"{times.us[n]:.0f}" for n in users), "" if (p := times.peer_us) is None else f"{p:.0f}"]
        for name, times in report.steps.items()
    ]
    head = ["step, µs a user", *(f"batch {n}" for n in users), "pyversity"]
    parts = [format_table(head, rows)]
    if report.filters:
        head = ["filter: share that passes, µs a user", *(f"batch {n}" for n in users), "exact"]
        filters = [
            [name, *(f"{one.us[n]:.0f}" for n in users), "yes" if one.exact else "NO"]
            for name, one in report.filters.items()
        ]
        parts.append(format_table(head, filters))
    if report.users:
        reads = [[name, f"{value:.3g}"] for name, value in report.users.items()]
        parts.append(format_table(["users, µs", ""], reads))
    if figures := list(report.figures()):
        parts.append(format_table(["figure", "", "limit", ""], [figure.row() for figure in figures]))
    return "\n\n".join(parts)
