"""The benchmark from end to end: one server, interleaved rounds, the bare compute between them."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import BenchError
from ..release.opened import Release
from ..runtime.chain import Chain
from ..supervise import start_server
from .bare import BareCompute, full_requests, measure_bare
from .machine import describe_machine, installed_versions, triton_version
from .measurement import Measurement
from .report import BenchReport
from .repository import MODELS, known_user_ids, write_bench_repository, write_requests

#: Different users who are asked about, in turn.
USERS = 1000
#: Users whose requests the bare compute repeats; their arrays all stay in memory.
BARE_USERS = 256
#: Seconds of the unmeasured round that comes first.
WARM_UP_S = 0.5
#: Packages whose versions the report names.
PACKAGES = ("tiercel", "nvidia-pytriton", "numpy", "onnxruntime", "faiss-cpu", "torch", "tritonclient")

Progress = Callable[[str, int, int | None], None]


class Load(Protocol):
    """What makes load: perf_analyzer, or the Python client."""

    def version(self) -> str:
        """Return what it is, for the report."""
        ...

    def run(self, model: str, url: str, *, concurrency: int, seconds: float, data: Path) -> Measurement:
        """Load one model for some seconds and return what was measured."""
        ...


def run_bench(
    release: Release,
    load: Load,
    *,
    seconds: float = 3.0,
    rounds: int = 5,
    concurrencies: Sequence[int] = (1, 8),
    triton: str | Path | None = None,
    command: str = "",
    progress: Progress = lambda what, done, total: None,
) -> BenchReport:
    """Measure both layouts of a release beside models that do nothing and the bare compute.

    A round measures the identity model, the hollow copy of the staged layout, the fused and the staged
    layout at one concurrency, one after the other, and at concurrency 1 the bare compute right after
    them. What disturbs the machine for a while so disturbs all of them alike. Every figure of the report
    is a median over rounds.

    Parameters
    ----------
    release, load
        An exported release with a user store, and what makes the load.
    seconds, rounds
        How long each single measurement takes, and how many rounds there are for each concurrency.
    concurrencies
        Requests in flight.
    triton
        As for :func:`~tiercel_serving.supervise.start_server`.
    command, progress
        The command line, for the report; and what is called as measurements are done.

    Raises
    ------
    BenchError
        A measurement failed.
    ServerError
        The server can't be started.
    """
    if rounds < 1 or seconds <= 0:
        raise BenchError(f"the benchmark needs at least one round and some seconds, got {rounds}, {seconds}")
    users = known_user_ids(release, USERS)
    pipeline = Chain.open(release)
    requests = full_requests(pipeline.external_inputs, users[:BARE_USERS])
    with tempfile.TemporaryDirectory(prefix="tiercel-bench-") as folder:
        data, repository = Path(folder) / "requests.json", Path(folder) / "models"
        write_requests(users, data)
        write_bench_repository(release, repository)
        with start_server(repository, triton=triton, canary=lambda url, timeout_s: None) as server:
            for model in MODELS.values():  # unmeasured: pages are read, caches warm; a canary to each
                load.run(model, server.grpc_url, concurrency=1, seconds=WARM_UP_S, data=data)
            facts = {
                **_facts(release, load, command, seconds, rounds),
                "triton": triton_version(server.grpc_url),
            }
            served: dict[int, dict[str, list[Measurement]]] = {}
            bare: list[BareCompute] = []
            steps = [(concurrency, number) for concurrency in concurrencies for number in range(rounds)]
            for done, (concurrency, _) in enumerate(steps):
                progress("rounds", done, len(steps))
                of_this = served.setdefault(concurrency, {name: [] for name in MODELS})
                for name, model in MODELS.items():
                    of_this[name].append(
                        load.run(model, server.grpc_url, concurrency=concurrency, seconds=seconds, data=data)
                    )
                if concurrency == min(concurrencies):
                    bare.append(measure_bare(pipeline, requests, seconds))
            progress("rounds", len(steps), len(steps))
    return BenchReport(facts, served, bare)


def _facts(release: Release, load: Load, command: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    manifest, settings = release.manifest, release.settings
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "client": load.version(),
        "seconds": seconds,
        "rounds": rounds,
        "release": {
            "name": manifest.name,
            "build_id": release.build_id,
            "target": manifest.target,
            "items": manifest.catalogue.items,
            "users": manifest.catalogue.users,
            "candidates": settings.candidates,
            "kept": settings.kept,
            "k_default": settings.k_default,
            "sources": manifest.sources,
        },
        "machine": describe_machine(),
        "versions": installed_versions(PACKAGES),
    }
