"""The feature benchmark from end to end."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.features.against import Against, measure_against
from benchmarks.features.cases import CASES, Case, make_case
from benchmarks.features.lookups import measure_flatness, measure_gather, measure_hashes
from benchmarks.features.merlin_systems import MerlinSystems, find_merlin_systems
from benchmarks.features.one_row import measure_one_row
from benchmarks.features.opening import measure_opening
from benchmarks.features.plan import Plan
from benchmarks.features.report import FeatureReport
from benchmarks.features.served import SERVED, Served, measure_served
from tiercel_pipelines.training import TrainedRun
from tiercel_serving.bench.machine import describe_machine, installed_versions
from tiercel_serving.bench.run import Load
from tiercel_serving.errors import TiercelError

#: Parts that can be measured separately.
PARTS = ("cases", "lookups", "opening", "served")
#: Packages whose versions the report names.
PACKAGES = (
    *("tiercel", "nvtabular", "merlin-core", "numpy", "pandas", "numba", "nvidia-pytriton", "tritonclient"),
)

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Serving:
    """Settings of the part ``served``.

    Parameters
    ----------
    find_load
        Finds the load generator.
    cache
        Folder in which Merlin Systems' environment is found or built.
    rounds, seconds
        Number of rounds, and duration of each single measurement.
    triton
        As for :func:`~tiercel_serving.supervise.start_server`.
    """

    find_load: Callable[[], Load]
    cache: Path
    rounds: int = 5
    seconds: float = 2.0
    triton: str | Path | None = None


def run_features(
    plan: Plan,
    *,
    serving: Serving | None = None,
    cases: Sequence[str] = tuple(CASES),
    parts: Collection[str] = PARTS,
    data_dir: Path | None = None,
    trained: Path | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> FeatureReport:
    """Measure compiled features against NVTabular, pandas, plain NumPy and Merlin Systems.

    Parameters
    ----------
    plan
        Sizes and repeats.
    serving
        Settings of the part ``served``; None leaves it out.
    cases
        Names in :data:`~.cases.CASES`.
    parts
        Names in :data:`PARTS`.
    data_dir
        Folder to search for MovieLens-100K.
    trained
        A run written by ``tiercel train``; one row of its workflow is timed too.
    command
        The command line, for the report.
    progress
        Called as measurements are done.

    Raises
    ------
    BenchError
        The outputs of the program and of a library it is compared with differ. A failure of Merlin Systems
        or the server alone raises nothing; the report says what was not measured, and why.
    """
    with tempfile.TemporaryDirectory(prefix="tiercel-bench-") as folder:
        run = _Run(plan, Path(folder), data_dir, progress or (lambda what, done, total: None))
        # The environment is built before anything is timed, so that no build runs during a measurement.
        ready = run.prepare(serving) if "served" in parts else False
        for name in cases:
            if "cases" in parts or (ready and name in SERVED):
                run.case(name, timed="cases" in parts, served=ready)
        if trained is not None:
            run.one_row(trained)
        if "lookups" in parts:
            run.lookups()
        if "opening" in parts:
            run.opening()
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "quick": plan.quick,
        "plan": asdict(plan),
        "served_rounds": serving.rounds if serving is not None else None,
        "served_seconds": serving.seconds if serving is not None else None,
        "machine": describe_machine(),
        "versions": installed_versions(PACKAGES),
        "client": run.load.version() if run.load is not None else None,
    }
    return FeatureReport(facts, **run.found)


class _Run:
    """One run of the benchmark, measured part by part.

    Only one case is in memory at a time, since those with vocabularies of a million take gigabytes.
    """

    def __init__(self, plan: Plan, scratch: Path, data_dir: Path | None, progress: Progress) -> None:
        self._plan, self._scratch, self._data_dir, self._progress = plan, scratch, data_dir, progress
        self._serving: Serving | None = None
        self._peer: MerlinSystems | None = None
        self.load: Load | None = None
        self._cases: dict[str, str] = {}
        self._against: list[Against] = []
        self._served: list[Served] = []
        self._missing: dict[str, str] = {}
        self.found: dict[str, Any] = {
            "cases": self._cases,
            "against": self._against,
            "served": self._served,
            "missing": self._missing,
        }

    def prepare(self, serving: Serving | None) -> bool:
        """Find Merlin Systems and the load generator; return whether both are available."""
        if serving is None:
            self._missing["Merlin Systems"] = "left out, as asked"
            return False
        try:
            self.load = serving.find_load()
            self._peer = find_merlin_systems(
                serving.cache, partial(self._progress, "building Merlin Systems' environment")
            )
        except TiercelError as error:
            self._missing["Merlin Systems"] = str(error)
            return False
        self._serving = serving
        return True

    def case(self, name: str, *, timed: bool, served: bool) -> None:
        """Fit a case, and measure it in this process, in a server, or both."""
        place = self._scratch / name
        place.mkdir()
        self._progress(f"{name}: fitting", 0, None)
        case = make_case(name, self._plan, place, self._data_dir)
        self._cases[name] = case.says
        self._progress(f"{name}: fitting", 1, 1)
        if timed:
            self._against += measure_against(
                case, self._plan, place, partial(self._progress, f"{name}: beside NVTabular")
            )
        if served and name in SERVED:
            self._serve(case, place)

    def _serve(self, case: Case, place: Path) -> None:
        serving = self._serving
        assert serving is not None
        assert self._peer is not None
        assert self.load is not None
        try:
            self._served.append(
                measure_served(
                    case,
                    self._peer,
                    self.load,
                    place,
                    rounds=serving.rounds,
                    seconds=serving.seconds,
                    triton=serving.triton,
                    progress=partial(self._progress, f"{case.name}: beside Merlin Systems"),
                )
            )
        except TiercelError as error:
            self._missing[f"{case.name} beside Merlin Systems"] = str(error)

    def one_row(self, trained: Path) -> None:
        """Measure one row of a run's workflow."""
        self._progress("one row", 0, 1)
        figures = measure_one_row(TrainedRun.open(trained), self._plan.seconds)
        if self._plan.quick:
            figures = [replace(figure, limit=None) for figure in figures]
        self.found["one_row"] = figures
        self._progress("one row", 1, 1)

    def lookups(self) -> None:
        """Measure the costs of vocabularies."""
        place = self._scratch / "lookups"
        place.mkdir()
        self._progress("lookups", 0, 3)
        self.found["gathers"] = [measure_gather(self._plan, place)]
        self._progress("lookups", 1, 3)
        self.found["hashes"] = measure_hashes(self._plan)
        self._progress("lookups", 2, 3)
        self.found["flats"] = measure_flatness(self._plan, place)
        self._progress("lookups", 3, 3)

    def opening(self) -> None:
        """Measure opening ten million strings."""
        place = self._scratch / "opening"
        place.mkdir()
        self.found["openings"] = [
            measure_opening(self._plan, place, partial(self._progress, "opening strings"))
        ]
