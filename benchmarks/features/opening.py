"""Opening a vocabulary of ten million strings: the time it takes, and each instance's private memory.

A Categorify gets the vocabulary, and its workflow is compiled and written as an artefact. Then several
processes open the artefact as a stage does and look up strings; each stays alive, as serving instances do.
The figures are medians over all processes except the first.

An instance's private memory is what Linux counts as *anonymous*, the pages that no file backs. Pages of the
memory-mapped tables belong to the file, and all processes of a machine share one copy of them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.features import instance
from benchmarks.features.plan import Plan
from tiercel_serving.errors import BenchError

#: Most seconds that opening may take, and most private memory of an instance, as a share of the tables' size.
OPEN_LIMIT_S, PRIVATE_LIMIT = 1.0, 0.05
#: Number of strings that an instance looks up before its memory is measured.
LOOKUPS = 10_000
COLUMN, PROGRAM = "key", "program"
#: The id of a vocabulary's first entry.
FIRST_ID = 3


@dataclass(frozen=True)
class Opening:
    """Time and memory that opening a large vocabulary takes.

    Parameters
    ----------
    strings
        Entries of the vocabulary.
    size_bytes
        Size of the artefact.
    open_s
        Seconds from the artefact's path to a program that is ready: header, sizes, memory maps.
    first_row_us
        Microseconds of the first row after that.
    private_bytes
        Private memory of a further instance after its lookups.
    build_s, build_peak_bytes
        Time to compile and write the artefact, once at export, and peak memory of that process.
    limited
        Whether the limits apply.
    """

    strings: int
    size_bytes: int
    open_s: float
    first_row_us: float
    private_bytes: int
    build_s: float
    build_peak_bytes: int
    limited: bool = True

    @property
    def private_share(self) -> float:
        """An instance's private memory divided by the size of the artefact."""
        return self.private_bytes / self.size_bytes

    @property
    def open_ok(self) -> bool:
        """Whether it opens within the limit."""
        return not self.limited or self.open_s <= OPEN_LIMIT_S

    @property
    def private_ok(self) -> bool:
        """Whether an instance's private memory is within the limit."""
        return not self.limited or self.private_share <= PRIVATE_LIMIT

    @property
    def ok(self) -> bool:
        """Whether both are within their limits."""
        return self.open_ok and self.private_ok

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        values = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return {
            **values,
            "private_share": round(self.private_share, 5),
            "open_limit_s": OPEN_LIMIT_S,
            "private_limit": PRIVATE_LIMIT,
            "ok": self.ok,
        }


def measure_opening(plan: Plan, scratch: Path, progress: Callable[[int, int], None] | None = None) -> Opening:
    """Build the vocabulary in one process and open it in several others.

    Parameters
    ----------
    plan
        Size of the vocabulary, and number of processes.
    scratch
        A directory for the Parquet file and the artefact.
    progress
        Called as ``progress(done, total)``.

    Raises
    ------
    BenchError
        A process failed, or a string was not found.
    """
    steps = 1 + plan.instances
    report = progress or (lambda done, total: None)
    report(0, steps)
    built = _answer(_start(["-m", __name__, str(scratch), str(plan.strings)]))
    asked = scratch / "asked.json"
    asked.write_text(json.dumps(_spell(np.random.default_rng(0).integers(0, plan.strings, LOOKUPS).tolist())))
    running: list[subprocess.Popen[str]] = []
    opened = []
    try:
        for number in range(plan.instances):
            report(1 + number, steps)
            running.append(_start(["-I", instance.__file__, str(scratch / PROGRAM), str(asked)]))
            opened.append(_answer(running[-1]))
    finally:
        for process in running:
            process.communicate()
    report(steps, steps)
    if min(one["lowest_id"] for one in opened) < FIRST_ID:
        raise BenchError("opening strings: one that is in the vocabulary was not found; this is a defect")
    further = opened[1:]
    return Opening(
        strings=plan.strings,
        size_bytes=int(built["size_bytes"]),
        open_s=median(one["open_s"] for one in further),
        first_row_us=median(one["first_row_us"] for one in further),
        private_bytes=int(median(one["private_bytes"] for one in further)),
        build_s=built["build_s"],
        build_peak_bytes=int(built["build_peak_bytes"]),
        limited=not plan.quick,
    )


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """Return the JSON object of the line that a process prints; raise BenchError if there is none."""
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        found: dict[str, float] = json.loads(line)
    except ValueError:
        _, said = process.communicate()
        tail = "\n".join(said.strip().splitlines()[-5:])
        raise BenchError(f"opening strings: {process.args!r} failed:\n{tail}") from None
    return found


# ------------------------------------------------------------------------- in the process that builds it


def build(scratch: Path, strings: int) -> dict[str, float]:
    """Compile a Categorify with a vocabulary of ``strings`` entries, and write the artefact."""
    import pandas as pd
    from nvtabular import ops

    from benchmarks.features.cases import fit_graph
    from tiercel_export.workflow.cut import compile_workflow

    # A given vocabulary is written as by a fit, but a fit would take minutes longer.
    vocabulary = {COLUMN: pd.Series(_spell(range(strings)), dtype=object)}
    graph = [COLUMN] >> ops.Categorify(vocabs=vocabulary, out_path=str(scratch / "fit"))
    workflow = fit_graph(graph, pd.DataFrame({COLUMN: _spell([0, 1, 2])}))
    del vocabulary
    begin = time.perf_counter()
    compile_workflow(workflow, "user").write(scratch / PROGRAM, "bench")
    spent = time.perf_counter() - begin
    sizes = [file.stat().st_size for file in (scratch / PROGRAM).iterdir()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"size_bytes": sum(sizes), "build_s": round(spent, 2), "build_peak_bytes": peak}


def _spell(numbers: Iterable[int]) -> list[str]:
    """Return a vocabulary's strings, of 6 to 12 bytes."""
    return [f"user-{number}" for number in numbers]


if __name__ == "__main__":
    print(json.dumps(build(Path(sys.argv[1]), int(sys.argv[2]))), flush=True)
