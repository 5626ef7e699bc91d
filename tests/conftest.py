"""Options and markers, and fixtures shared by all tests.

`make test` runs in two processes. A folder with its own ``conftest.py`` shares expensive fixtures (a trained
recipe, a release, a server), so its tests stay in one process; elsewhere each file is scheduled separately.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
#: Folders whose tests stay together, because they use the same release.
TOGETHER = {"container": "cli", "weight": "cli"}
#: Scheduled first, longest first, so that nothing long is left at the end; and scheduled last: tests that
#: measure time, while the other process has little to do.
FIRST = ("e2e", "export", "cli", "serving", "bench", "test_feature_operators.py", "test_feature_graphs.py")
FIRST += ("test_retrieval_families.py", "test_ranking_families.py", "test_categorify.py", "test_extending.py")
FIRST += ("test_train_variants.py", "test_joins.py", "test_explain.py", "server", "test_models.py")
FIRST += ("test_check_fit.py", "test_resume.py", "test_fit_workflow.py", "test_train_recipe.py")
FIRST += ("test_feature_round_trip.py", "test_refused_operators.py", "test_transform.py")
LAST = ("test_feature_speed.py", "test_large_vocabulary.py")


if "PYTEST_XDIST_WORKER" in os.environ:
    # Otherwise each process would use one thread per core, and they would slow each other down. Set before
    # NumPy and torch are imported, and also for the commands that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # When numba first runs a threaded loop, as for NVTabular's similarities, it sets OpenMP's thread count,
    # and so that of torch and FAISS, to its own.
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
# NVTabular's graphs have a few tasks of a millisecond, for which Dask's threads cost more than they save.
os.environ.setdefault("DASK_SCHEDULER", "synchronous")
# Nor is it worth optimising NVTabular's similarities for a dozen rows; the floats are equal.
os.environ.setdefault("NUMBA_OPT", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")
    parser.addoption("--bench", action="store_true", help="also run tests that measure time")


def _missing(marker: str, config: pytest.Config) -> str | None:
    """Return why tests with this marker cannot run here, or None."""
    if marker in ("slow", "bench"):
        return None if config.getoption(f"--{marker}") else f"run with --{marker}"
    if marker == "tensorrt":
        there = importlib.util.find_spec("tensorrt_rtx_bindings") is not None
        return None if there else 'TensorRT-RTX is not installed: pip install "tiercel[tensorrt-rtx]"'
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in ("slow", "bench", "tensorrt", "gpu"):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := _missing(marker, config)):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=lambda item: _turn(group_of(item.path)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Assign tests to processes by group; xdist's own marker for that has no effect under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(TESTS.parent / nodeid.partition("::")[0])

    return ByGroup(config, log)


def group_of(file: Path) -> str:
    """Return the name of the group of tests that stay in one process with this file."""
    folder = file.parent
    if folder == TESTS or not (folder / "conftest.py").is_file():
        return file.name
    return TOGETHER.get(folder.name, folder.name)


def _turn(group: str) -> int:
    order = (*FIRST, None, *LAST)
    return order.index(group if group in order else None)


# ------------------------------------------------------------------------------------------------- time


class Room:
    """Lets many tests run at once, or one test that measures time alone, across processes.

    The locks are on files that exist anyway. A test that must run alone holds the door while it waits for
    the running ones to finish, so that no others start before it.
    """

    def __init__(self) -> None:
        self._door = os.open(__file__, os.O_RDONLY)
        self._room = os.open(TESTS.parent / "pyproject.toml", os.O_RDONLY)

    @contextlib.contextmanager
    def among_others(self) -> Iterator[None]:
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_SH)
        fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Leave, wait until no test runs, and run alone; then run among others again."""
        fcntl.flock(self._room, fcntl.LOCK_UN)
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_SH)
            fcntl.flock(self._door, fcntl.LOCK_UN)


_room: Room | None = None

#: A file system in memory, and the bytes that must be free there and in memory.
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 6 << 30


def _keep_files_in_memory(config: pytest.Config) -> None:
    """Create the folder for temporary files in memory if there is room, and remove it after the run.

    The tests write some twenty thousand small files. Writing them to a disk takes longer than the tests, and
    pytest would remove those of an earlier run at the end of this one. ``--basetemp`` keeps them, on a disk.
    """
    for folder in MEMORY.glob("tiercel-tests-*"):  # left by a killed run
        if not Path("/proc", folder.name.rpartition("-")[2]).exists():
            shutil.rmtree(folder, ignore_errors=True)
    try:
        there = os.statvfs(MEMORY)
        memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return  # not Linux
    free = min(there.f_bavail * there.f_frsize, int(memory["MemAvailable"].split()[0]) << 10)
    if there.f_flag & os.ST_NOEXEC or free < MEMORY_BYTES:
        return
    folder = MEMORY / f"tiercel-tests-{os.getpid()}"
    folder.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_configure(config: pytest.Config) -> None:
    global _room
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        _keep_files_in_memory(config)
    # Until all tests are collected: importing creates millions of lasting objects, which the collector would
    # scan again and again.
    gc.disable()
    # Imported after pytest has loaded the plugin, which would warn otherwise.
    import drawing

    drawing.draw(slow=config.getoption("--slow"))
    if hasattr(config, "workerinput"):
        _room = Room()


def pytest_collection_finish() -> None:
    """Freeze the lasting objects of imports, which the garbage collector would scan again and again."""
    gc.collect()
    gc.freeze()
    # Later imports create as many lasting objects, and each scan of them takes a fifth of a second.
    gc.set_threshold(20_000, 10, 100)
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with _room.among_others() if _room else contextlib.nullcontext():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    alone = _room is not None and item.get_closest_marker("timed") is not None
    with _room.alone() if _room and alone else contextlib.nullcontext():
        return (yield)


# ---------------------------------------------------------------------------------------------- releases


@pytest.fixture(scope="session", autouse=True)
def _onnx_operators_once() -> Iterator[None]:
    """Let torch read its thousand ONNX operators once, not again for each model, which takes a second."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    export = torch.onnx.export

    def first(*arguments: Any, **options: Any) -> Any:
        # This import takes seconds too, and most files export nothing.
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        patch.setattr(torch.onnx, "export", export)
        patch.setattr(
            ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        )
        return export(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", first)
        yield


@pytest.fixture(scope="session")
def text_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a release with non-ASCII string ids, every kind of column, and random weights. Read-only."""
    pytest.importorskip("nvtabular", reason="a release is exported with NVTabular, which is not installed")
    file = TESTS / "export" / "small_release.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    small = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = small
    spec.loader.exec_module(small)
    folder = tmp_path_factory.mktemp("text")
    return Path(small.small_release(folder / "release", small.small_parts(folder, text_ids=True)).path)
