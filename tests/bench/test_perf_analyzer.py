"""Finding perf_analyzer and parsing its output, on captured text."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiercel_serving.bench import perf_analyzer
from tiercel_serving.bench.measurement import Measurement
from tiercel_serving.bench.perf_analyzer import (
    PerfAnalyzer,
    default_cache,
    find_perf_analyzer,
    parse_ldd,
    parse_report,
)
from tiercel_serving.errors import BenchError, PerfAnalyzerMissing

# perf_analyzer 2.50 on an identity model, and on an ensemble with --verbose-csv.
REPORT = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
1,2906.31,2,120,44,12,79,79,1,327,366,381,417
"""
VERBOSE = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,\
Avg latency,request/response,response wait
8,5709,2,668,0,54,285,382,1,1316,1847,2086,2845,1395,3,1381
"""
LDD = """\
	linux-vdso.so.1 (0x00007fdb3d42b000)
	libb64.so.0d => not found
	libcudart.so.12 => not found
	libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007fdb3c5e1000)
"""
OLD_GLIBC = "./pa: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by ./pa)\n"


def test_report_is_read():
    assert parse_report(REPORT) == Measurement(327.0, 366.0, 417.0, 2906.31)
    assert parse_report(VERBOSE) == Measurement(1316.0, 1847.0, 2845.0, 5709.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one row of figures, found 0"),
        (REPORT + REPORT.splitlines()[1], "found 2"),
        ("Concurrency,Inferences/Second\n1,5\n", "can't read 'p50 latency'"),
        (REPORT.replace("327", "n/a"), "can't read"),
    ],
)
def test_a_report_of_another_form_is_refused(text, message):
    with pytest.raises(BenchError, match=message):
        parse_report(text)


def test_missing_libraries_are_read_from_ldd():
    assert parse_ldd(LDD, Path("pa")) == ["libb64.so.0d", "libcudart.so.12"]


def test_an_older_c_library_is_named():
    with pytest.raises(PerfAnalyzerMissing, match=r"needs GLIBC_2\.38, which this system does not have"):
        parse_ldd(LDD + OLD_GLIBC, Path("pa"))


def test_the_command_splits_the_measurement_in_windows(tmp_path):
    binary = script(tmp_path / "pa", 'echo "$@"; exit 1')
    with pytest.raises(BenchError) as caught:
        PerfAnalyzer(binary).run("recommend", "h:1", concurrency=8, seconds=3, data=tmp_path / "d.json")
    command = str(caught.value).split()
    assert command[command.index("-p") + 1] == "1000"
    assert command[command.index("-r") + 1] == "3"
    assert command[command.index("--concurrency-range") + 1] == "8"
    assert command[command.index("-m") + 1] == "recommend"


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_one_on_path_is_taken_as_it_is(tmp_path, monkeypatch):
    script(tmp_path / "perf_analyzer", 'echo "Perf Analyzer Version 2.59"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = find_perf_analyzer(tmp_path / "cache")
    assert found.path == tmp_path / "perf_analyzer"
    assert found.version() == "Perf Analyzer Version 2.59"
    assert not (tmp_path / "cache").exists()


def test_a_run_reads_the_report_of_a_binary(tmp_path):
    # The argument after -f is the report's path.
    body = f"while [ $# -gt 0 ]; do [ \"$1\" = -f ] && out=$2; shift; done\nprintf '%s' '{REPORT}' > \"$out\""
    binary = script(tmp_path / "pa", body)
    measured = PerfAnalyzer(binary).run("m", "h:1", concurrency=1, seconds=1, data=tmp_path / "d.json")
    assert measured.p50_us == 327


def test_a_binary_that_fails_says_why_and_with_which_command(tmp_path):
    binary = script(tmp_path / "pa", "echo 'error: unknown model: m' >&2; exit 99")
    with pytest.raises(BenchError, match="exit code 99") as caught:
        PerfAnalyzer(binary).run("m", "h:1", concurrency=1, seconds=1, data=tmp_path / "d.json")
    assert "unknown model: m" in str(caught.value)
    assert "-m m -u h:1" in str(caught.value)


def fake_pip(tmp_path, monkeypatch, member="tritonclient-2.50.0.data/data/bin/perf_analyzer", status=0):
    """Replace pip, which writes a wheel, and PATH; everything else runs normally."""
    real, asked = perf_analyzer._start, []

    def start(command, libraries, **how):
        if command[:3] != [sys.executable, "-m", "pip"]:
            return real(command, libraries, **how)
        asked.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "some.whl", "w") as wheel:
            wheel.writestr(member, "#!/bin/sh\necho fetched\n")
        return subprocess.CompletedProcess(command, status, "pip: no network")

    monkeypatch.setattr(perf_analyzer, "_start", start)
    monkeypatch.setattr(perf_analyzer.shutil, "which", lambda name: None)
    return asked


def test_it_is_fetched_once_into_the_cache(tmp_path, monkeypatch):
    asked, said = fake_pip(tmp_path, monkeypatch), []
    for _ in range(2):
        found = find_perf_analyzer(tmp_path / "cache", say=said.append)
    assert found.path == tmp_path / "cache" / "perf_analyzer"
    assert found.version() == "wheel tritonclient==2.50.0"
    assert len(asked) == 1
    assert len(said) == 1
    assert os.listdir(tmp_path / "cache") == ["perf_analyzer"]


def test_a_cache_that_holds_a_directory_of_that_name_is_its_parent(tmp_path, monkeypatch):
    asked = fake_pip(tmp_path, monkeypatch)
    (tmp_path / "perf_analyzer").mkdir()
    for _ in range(2):
        found = find_perf_analyzer(tmp_path)
    assert found.path == tmp_path / "perf_analyzer" / "perf_analyzer"
    assert found.libraries == tmp_path / "perf_analyzer"
    assert len(asked) == 1
    assert os.listdir(tmp_path / "perf_analyzer") == ["perf_analyzer"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    fake_pip(tmp_path, monkeypatch)
    (tmp_path / "file").touch()
    (tmp_path / "twice" / "perf_analyzer" / "perf_analyzer").mkdir(parents=True)
    for cache in ("file", "twice"):
        with pytest.raises(PerfAnalyzerMissing, match=rf"{cache}.*can't be written .*`--cache`"):
            find_perf_analyzer(tmp_path / cache)
    assert os.listdir(tmp_path / "twice" / "perf_analyzer") == ["perf_analyzer"]


def test_libraries_come_from_the_server_wheel(tmp_path, monkeypatch):
    fake_pip(tmp_path, monkeypatch)
    carried = tmp_path / "libb64-98cb6333.so.0d"
    carried.write_bytes(b"library")
    entry = SimpleNamespace(name=carried.name, locate=lambda: carried)
    monkeypatch.setattr(perf_analyzer.importlib.metadata, "files", lambda name: [entry])
    monkeypatch.setattr(perf_analyzer, "parse_ldd", lambda text, binary: ["libb64.so.0d"])
    find_perf_analyzer(tmp_path / "cache")
    assert (tmp_path / "cache" / "libb64.so.0d").read_bytes() == b"library"


def test_a_library_that_cannot_be_had_names_its_package(tmp_path, monkeypatch):
    fake_pip(tmp_path, monkeypatch)
    monkeypatch.setattr(perf_analyzer.importlib.metadata, "files", lambda name: [])
    monkeypatch.setattr(perf_analyzer, "parse_ldd", lambda text, binary: ["libb64.so.0d"])
    with pytest.raises(PerfAnalyzerMissing, match="apt-get install libb64-0d"):
        find_perf_analyzer(tmp_path / "cache")


def test_a_failed_download_and_a_wheel_without_it_say_what_to_do(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fake_pip(tmp_path, patch, status=1)
        with pytest.raises(PerfAnalyzerMissing, match=r"could not download .* no network") as caught:
            find_perf_analyzer(tmp_path / "cache")
    assert "--client python" in str(caught.value)
    with monkeypatch.context() as patch:
        fake_pip(tmp_path, patch, member="other")
        with pytest.raises(PerfAnalyzerMissing, match="the wheel has none"):
            find_perf_analyzer(tmp_path / "cache")
    assert not (tmp_path / "cache" / "perf_analyzer").exists()


def test_another_platform_is_named(tmp_path, monkeypatch):
    fake_pip(tmp_path, monkeypatch)
    monkeypatch.setattr(perf_analyzer.platform, "machine", lambda: "aarch64")
    with pytest.raises(PerfAnalyzerMissing, match="aarch64"):
        find_perf_analyzer(tmp_path / "cache")


def test_the_cache_follows_the_desktop_convention(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_cache() == Path("/elsewhere/tiercel/perf_analyzer")
