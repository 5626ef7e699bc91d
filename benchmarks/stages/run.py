"""The stages benchmark from end to end."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from benchmarks.stages.filters import measure_filters
from benchmarks.stages.ordering import STEPS, measure_steps
from benchmarks.stages.report import SIZES, StagesReport
from benchmarks.stages.rules import measure_rules
from benchmarks.stages.users import measure_users
from tiercel_serving.bench.machine import describe_machine, installed_versions

#: Packages whose versions the report names.
PACKAGES = ("tiercel", "numpy", "faiss-cpu", "lmdb", "pyversity")


def measure(
    name: str,
    *,
    command: str = "",
    progress: Callable[[str, int, int | None], None] = lambda what, done, total: None,
) -> StagesReport:
    """Measure all parts at a size, a key of :data:`~benchmarks.stages.report.SIZES`."""
    size = SIZES[name]
    steps = measure_steps(size, progress)
    progress("filters", len(STEPS), len(STEPS) + 3)
    filters = measure_filters(size)
    progress("users", len(STEPS) + 1, len(STEPS) + 3)
    users = measure_users(size)
    progress("rules", len(STEPS) + 2, len(STEPS) + 3)
    rules_us = measure_rules(rounds=size.rounds, seconds=size.seconds, items=size.items)
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": describe_machine(),
        "versions": installed_versions(PACKAGES),
    }
    return StagesReport(facts, name, steps, filters, users, rules_us)
