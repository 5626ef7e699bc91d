"""The benchmark from end to end: a server per runner, interleaved rounds, and the bare compute in between."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from .. import backend
from ..errors import BenchError
from ..release.opened import Release
from ..repository.targets import RUNNERS
from ..runtime.chain import Chain
from ..spec import Array
from ..supervise import TritonServer, start_server
from .bare import BareCompute, bare_cpu_seconds, full_requests, measure_bare
from .generator import generator
from .growth import measure_growth
from .load_curve import LoadCurve, Target, measure_curve
from .machine import describe_machine, installed_versions, triton_version
from .measurement import Measurement
from .mixes import Material, draw_requests, encode
from .report import BenchReport
from .repository import MODELS, known_user_ids, write_bench_repository, write_requests

#: Number of different users in the requests.
USERS = 1000
#: Users whose requests the bare compute repeats; their arrays all stay in memory.
BARE_USERS = 256
#: Seconds of the first, unmeasured load of each model.
WARM_UP_S = 0.5
#: How often the processor time of the bare compute is measured.
BARE_ROUNDS = 3
#: Packages whose versions the report lists.
PACKAGES = ("tiercel", "nvidia-pytriton", "numpy", "onnxruntime", "faiss-cpu", "torch", "tritonclient")

Progress = Callable[[str, int, int | None], None]


class Load(Protocol):
    """A load client: perf_analyzer, or the Python client."""

    def version(self) -> str:
        """Return its name and version, for the report."""
        ...

    def run(self, model: str, url: str, *, concurrency: int, seconds: float, data: Path) -> Measurement:
        """Load one model for some seconds and return the measurement."""
        ...


@dataclass(frozen=True)
class OpenLoops:
    """The open loops of a benchmark; none if ``shares`` is empty.

    Parameters
    ----------
    shares
        Rates, as shares of each model's saturated throughput.
    mix
        A row of :data:`~.mixes.MIXES`.
    limit_us
        Upper limit of p99 in the search for the highest rate.
    """

    shares: tuple[float, ...] = ()
    mix: str = "zipf"
    limit_us: float = 20_000.0


def all_runners() -> tuple[str, ...]:
    """Return the runners that are available here."""
    return tuple(name for name, row in RUNNERS.items() if not row.in_process or backend.library() is not None)


def measured_name(runner: str, what: str) -> str:
    """Return a report's name of one of :data:`~.repository.MODELS`; the stock runner's have no prefix."""
    return what if runner == "python" else f"{runner}_{what}"


def run_bench(
    release: Release,
    load: Load,
    *,
    seconds: float = 3.0,
    rounds: int = 5,
    concurrencies: Sequence[int] = (1, 8),
    runners: Sequence[str] = ("python",),
    loops: OpenLoops = OpenLoops(),
    instances: int | None = None,
    growth: bool = False,
    triton: str | Path | None = None,
    command: str = "",
    progress: Progress = lambda what, done, total: None,
) -> BenchReport:
    """Measure both layouts of a release on each runner, and for comparison empty models and the bare compute.

    A round measures, one after the other and at one concurrency, every runner's identity model, hollow copy
    of the staged layout, fused layout and staged layout. At the lowest concurrency the bare compute follows
    directly. A temporary disturbance of the machine thus affects all of them alike. Every figure of the
    report is a median over rounds. Open loops run after the rounds.

    Parameters
    ----------
    release, load
        An exported release with a user store, and the client that generates the load of the rounds.
    seconds, rounds
        Duration of each single measurement, and number of rounds per concurrency.
    concurrencies
        Numbers of requests in flight.
    runners
        Rows of :data:`~tiercel_serving.repository.targets.RUNNERS`.
    loops
        The open loops.
    instances
        Number of instances of each model; None keeps the release's setting.
    growth
        Whether to measure batch sizes and index types too, without a server.
    triton
        As for :func:`~tiercel_serving.supervise.start_server`.
    command, progress
        The command line, for the report; and a callback: what is measured, how many are done, of how many.

    Raises
    ------
    BenchError
        A measurement failed, or there are no rounds, no seconds or no users.
    ServerError
        The server can't be started.
    """
    if rounds < 1 or seconds <= 0:
        raise BenchError(f"the benchmark needs at least one round and some seconds, got {rounds}, {seconds}")
    users = known_user_ids(release, USERS)
    pipeline = Chain.open(release)
    requests = full_requests(pipeline.external_inputs, users[:BARE_USERS])
    with tempfile.TemporaryDirectory(prefix="tiercel-bench-") as folder, ExitStack() as stack:
        data = Path(folder) / "requests.json"
        write_requests(users, data)
        servers = {
            runner: stack.enter_context(_serving(release, Path(folder) / runner, runner, triton, instances))
            for runner in runners
        }
        models = {
            measured_name(runner, what): (model, server.grpc_url)
            for runner, server in servers.items()
            for what, model in MODELS.items()
        }
        for model, url in models.values():  # unmeasured, to warm pages and caches and to check each model
            load.run(model, url, concurrency=1, seconds=WARM_UP_S, data=data)
        urls = [server.grpc_url for server in servers.values()]
        facts = {
            **_facts(release, load, command, seconds, rounds),
            "runners": list(runners),
            "instances": release.settings.instances if instances is None else instances,
            "triton": triton_version(urls[0]),
        }
        served: dict[int, dict[str, list[Measurement]]] = {}
        bare: list[BareCompute] = []
        steps = [(concurrency, number) for concurrency in concurrencies for number in range(rounds)]
        for done, (concurrency, _) in enumerate(steps):
            progress("rounds", done, len(steps))
            of_this = served.setdefault(concurrency, {name: [] for name in models})
            for name, (model, url) in models.items():
                of_this[name].append(
                    load.run(model, url, concurrency=concurrency, seconds=seconds, data=data)
                )
            if concurrency == min(concurrencies):
                bare.append(measure_bare(pipeline, requests, seconds))
        progress("rounds", len(steps), len(steps))
        curves = _curves(release, servers, loops, seconds, pipeline, users, progress)
    grown = None
    if growth:
        progress("batches and indexes", 0, None)
        grown = measure_growth(release, pipeline, users, min(seconds, 1.0))
    return BenchReport(facts, served, bare, curves, grown)


@contextmanager
def _serving(
    release: Release, repository: Path, runner: str, triton: str | Path | None, instances: int | None
) -> Iterator[TritonServer]:
    write_bench_repository(release, repository, runner, instances)
    with start_server(repository, triton=triton, canary=lambda url, timeout_s: None) as server:
        yield server


def _curves(
    release: Release,
    servers: Mapping[str, TritonServer],
    loops: OpenLoops,
    seconds: float,
    pipeline: Chain,
    users: Array,
    progress: Progress,
) -> dict[str, LoadCurve]:
    """Return the curve of each layout on each runner."""
    if not loops.shares:
        return {}
    drawn = draw_requests(Material.of(release), loops.mix, USERS)
    curves = {}

    def bare(batch: int) -> float:
        # One measurement of half a second differs by half from the next.
        return median(bare_cpu_seconds(pipeline, users, batch, seconds) for _ in range(BARE_ROUNDS))

    loaded = [(runner, what) for runner in servers for what in ("fused", "staged")]
    with generator() as pool:
        for done, (runner, what) in enumerate(loaded):
            progress("open loops", done, len(loaded))
            requests = tuple(encode(MODELS[what], tensors) for tensors in drawn)
            target = Target(servers[runner].grpc_url, servers[runner].pid, requests)
            curves[measured_name(runner, what)] = measure_curve(
                pool,
                target,
                mix=loops.mix,
                shares=loops.shares,
                seconds=seconds,
                limit_us=loops.limit_us,
                # The bare compute runs requests for one known user each.
                bare=bare if loops.mix in ("users", "zipf") else None,
            )
    progress("open loops", len(loaded), len(loaded))
    return curves


def _facts(release: Release, load: Load, command: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Return the facts that the figures depend on."""
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
