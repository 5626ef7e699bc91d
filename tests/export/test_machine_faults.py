"""Faults of the machine are reported as such: where, what was needed, and what was available."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import msgspec
import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_release import SETTINGS, Parts, small_release

from tiercel_export.models.program import batch_program
from tiercel_pipelines.commands.export import check_picture
from tiercel_pipelines.data import Synthetic, load_dataset, parquet
from tiercel_pipelines.data.parquet import read_table
from tiercel_pipelines.errors import DataCorrupt, DataError
from tiercel_pipelines.families.weights import save_weights
from tiercel_pipelines.features.parquet_files import parquet_files, whole_file
from tiercel_pipelines.recipe import load_recipe, replace
from tiercel_pipelines.recipe.check_fit import fit_checked
from tiercel_pipelines.recipe.check_graph import graph_problems
from tiercel_serving.commands.bench import check_place, write_whole
from tiercel_serving.commands.shell import Refused, wrong_path
from tiercel_serving.errors import MachineFault, TiercelError
from tiercel_serving.machine_faults import fault_of, machine_faults
from tiercel_serving.release.artefacts import open_artefact, write_artefact
from tiercel_serving.release.writing import staging_directory
from tiercel_serving.sources.popular import Popular
from tiercel_serving.spec import TensorSpec
from tiercel_serving.stores.embedded import Overlay

FRAME = pd.DataFrame({"x": np.arange(100_000) * 1.5})

#: Each library that writes files of a run or a release.
WRITERS: dict[str, Callable[[Path], object]] = {
    "numpy": lambda path: np.save(path, FRAME["x"].to_numpy()),
    "text": lambda path: path.write_text("x" * 100_000, encoding="utf-8"),
    "pandas": FRAME.to_parquet,
    "pyarrow": lambda path: pq.write_table(pa.table(FRAME), path),
    "safetensors": lambda path: save_weights(torch.nn.Linear(300, 300), path),
    "faiss": lambda path: faiss.write_index(flat(), str(path)),
    "onnx": lambda path: onnx.save(big_onnx(), str(path)),
}


def flat() -> faiss.Index:
    index = faiss.IndexFlatIP(16)
    index.add(np.ones((20_000, 16), np.float32))
    return index


def big_onnx() -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.graph.doc_string = "x" * 2_000_000
    return model


@contextmanager
def small_files(most: int = 50_000) -> Iterator[None]:
    """Limit the size of files, which gives an error as on a full disk without filling one.

    This is no fixture, because pytest's own output may go to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def stage(destination: Path, write: Callable[[Path], object]) -> None:
    with staging_directory(destination, replace=False) as staging:
        (staging / "before").write_bytes(b"x" * 2_000)
        write(staging / "file.npy")


@pytest.mark.parametrize("writer", WRITERS)
def test_no_room_for_a_file(tmp_path: Path, writer: str) -> None:
    destination = tmp_path / "release"
    with small_files(), pytest.raises(MachineFault) as raised:
        stage(destination, WRITERS[writer])
    assert list(tmp_path.iterdir()) == []
    message = str(raised.value)
    assert message.startswith(f"{tmp_path}: ")
    for words in (
        "while writing the release release",
        "written and more was needed",
        "are free there",
        "make room",
    ):
        assert words in message
    assert ".partial" not in message


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "safetensors"])
def test_a_full_disk(tmp_path: Path, writer: str) -> None:
    (tmp_path / "file.npy").symlink_to("/dev/full")
    with pytest.raises(MachineFault, match="No space left on device") as raised:
        with machine_faults(tmp_path, "testing"):
            WRITERS[writer](tmp_path / "file.npy")
    assert "are free there; make room" in str(raised.value)


def test_a_whole_export(tmp_path: Path, parts: Parts) -> None:
    alone = msgspec.structs.replace(SETTINGS, sources=(Popular("popular"),), reorder=(), history_columns=())
    match = f"{tmp_path}: .* while writing the release out"
    with small_files(1_000), pytest.raises(MachineFault, match=match):
        small_release(tmp_path / "out", parts, retrieval={}, ranker=None, settings=alone)
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_fit(tmp_path: Path) -> None:
    """Exceptions of the fit count as mistakes of the recipe, except for these."""
    data = load_dataset(Synthetic(users=40, items=60, interactions=600))
    match = f"{tmp_path}: File too large while writing the release r"
    with small_files(1_000), pytest.raises(MachineFault, match=match):
        stage(
            tmp_path / "r",
            lambda path: fit_checked(
                load_recipe("synthetic"), data, data.interactions, path.parent / "workflow"
            ),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files", "x.csv")])
def test_a_recipe_of_which_the_machine_is_at_fault(tmp_path: Path, error: Exception) -> None:
    def features() -> None:
        raise error

    recipe = replace(load_recipe("synthetic"), features=features)
    with pytest.raises(MachineFault, match="while making the graph"):
        list(graph_problems(recipe, None))
    number = getattr(error, "errno", None)
    what = "MemoryError" if number is None else f"OSError({number}, 'Too many open files', 'x.csv')"
    (tmp_path / "r.py").write_text(f"raise {what}", encoding="utf-8")
    with pytest.raises(MachineFault, match=r"while loading .*r\.py"):
        load_recipe(tmp_path / "r.py")


def test_who_may_read_a_run(tmp_path: Path) -> None:
    """safetensors makes its files readable by their owner only, so another user could not export the run."""
    with staging_directory(tmp_path / "r", replace=False, what="run") as staging:
        save_weights(torch.nn.Linear(2, 2), staging / "a.safetensors")
    assert (tmp_path / "r" / "a.safetensors").stat().st_mode & 0o777 == 0o666 & (
        tmp_path / "r"
    ).stat().st_mode


@pytest.mark.parametrize("name", ["folder", "file/x.json", "x" * 300, "loop"])
def test_where_a_result_cannot_be_saved(tmp_path: Path, name: str) -> None:
    """The check fails before the work starts, and not as a defect of Tiercel."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((Refused, OSError)) as raised:
        check_place(tmp_path / name)
    assert isinstance(raised.value, Refused) or wrong_path(raised.value) is not None
    check_place(tmp_path / "deep" / "result.json")
    assert list((tmp_path / "deep").iterdir()) == []


def test_no_room_for_a_result(tmp_path: Path) -> None:
    with small_files(), pytest.raises(MachineFault, match=r"while writing result\.json"):
        write_whole(tmp_path / "result.json", "x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_a_transformed_file(tmp_path: Path) -> None:
    with small_files(), pytest.raises(MachineFault, match=f"{tmp_path}: .* while writing out.parquet"):
        with whole_file(tmp_path / "out.parquet") as partial:
            FRAME.to_parquet(partial)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "are free there; make room"),
        (errno.EDQUOT, "are free there; make room"),
        (errno.EACCES, "this process is user"),
        (errno.EROFS, "this process is user"),
        (errno.ENOMEM, "are available; close other programs"),
        (errno.EMFILE, "raise the limit"),
        (errno.ENFILE, "raise the limit"),
        (errno.EIO, "does not answer; check the disk"),
        (errno.ESTALE, "does not answer; check the disk"),
        (errno.ENOTCONN, "does not answer; check the disk"),
    ],
)
@pytest.mark.parametrize("form", ["number", "file", "rust", "words"])
def test_every_number_in_every_form(tmp_path: Path, number: int, words: str, form: str) -> None:
    text = os.strerror(number)
    error: Exception = {
        "number": OSError(number, text),
        "file": OSError(number, text, str(tmp_path / ".out.partial-1" / "x")),
        "rust": RuntimeError(f"Error while serializing: I/O error: {text} (os error {number})"),
        "words": RuntimeError(f"Error in f() at a.cpp:1: Error: 'r' failed: write error: 0 != 1 ({text})"),
    }[form]
    with pytest.raises(MachineFault) as raised:
        with machine_faults(tmp_path, "writing", tmp_path / ".out.partial-1"):
            raise error
    assert str(raised.value).startswith(f"{tmp_path}: {text} while writing; ")
    assert words in str(raised.value)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.28 TiB for an array with shape (10,)"),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Failed to allocate memory for requested buffer of size 4096"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Failed to export the model with torch.export.\n<class 'MemoryError'>: no"),
        RuntimeError("C++ compile error\ng++: fatal error: Killed signal terminated program cc1plus"),
    ],
)
def test_too_little_memory(error: Exception) -> None:
    fault = fault_of(error)
    assert fault is not None
    assert " ".join(str(error).split()) in str(fault)
    assert "are available; close other programs" in str(fault)


def test_a_model_for_whose_export_there_is_too_little_memory(tmp_path: Path) -> None:
    """An error in torch's export counts as a mistake of the model, except for this."""

    class Large(torch.nn.Module):
        def forward(self, user_num: torch.Tensor) -> torch.Tensor:
            return user_num + torch.from_numpy(np.ones((2**40, 2**10)))

    with pytest.raises(MachineFault, match=r"Unable to allocate .* close other programs"):
        with machine_faults(tmp_path, "writing the release"):
            batch_program(Large(), [TensorSpec("user_num", "float32", (3,))], 8, "tower")


def test_memory_that_numpy_really_asks_for() -> None:
    with pytest.raises(MachineFault, match="Unable to allocate"), machine_faults(Path(), "counting"):
        np.ones((2**40, 2**10), np.uint8)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        OSError("corrupt"),
        RuntimeError("shapes differ"),
        ValueError("(No space left on device)"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
    ],
)
def test_what_is_no_fault_of_the_machine(error: Exception) -> None:
    assert fault_of(error) is None


def test_errors_of_ours_stay_what_they_are() -> None:
    with pytest.raises(DataCorrupt), machine_faults(Path(), "x"):
        raise DataCorrupt("(No space left on device)")


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(MachineFault, match=f"{tmp_path}/deep: Permission denied while writing the run r"):
        with staging_directory(tmp_path / "deep" / "r", replace=False, what="run"):
            pass


def refused(staging: Path) -> None:
    raise DataCorrupt("no file")


@pytest.mark.parametrize("removed", ["the folder", "what holds it"])
@pytest.mark.parametrize(
    "then",
    [
        lambda staging: None,
        lambda staging: (staging / "x").write_text(""),
        lambda staging: FRAME.to_parquet(staging / "x" / "y.parquet"),
        refused,
    ],
)
def test_a_folder_that_vanishes_while_it_is_written(
    tmp_path: Path, removed: str, then: Callable[[Path], None]
) -> None:
    """Whichever error comes first, the message names the folder, not a file, and suggests no other path."""

    def work(file: Path) -> None:
        staging = file.parent
        shutil.rmtree(staging if removed == "the folder" else staging.parent)
        then(staging)

    with pytest.raises(MachineFault, match=r"out: the folder \.r\..* vanished while writing the r") as raised:
        stage(tmp_path / "out" / "r", work)
    assert "begin again" in str(raised.value)
    assert wrong_path(raised.value) is None
    assert not list(tmp_path.rglob("*.partial-*"))


def test_tables_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pq, "ParquetDataset", refuse)
    with pytest.raises(MachineFault, match=r"items\.parquet: Input/output error while reading items"):
        read_table(tmp_path / "items.parquet", "items")


def test_too_many_open_files(tmp_path: Path) -> None:
    write_artefact(tmp_path / "a", "items", "b", {str(n): np.arange(3) for n in range(40)})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest free descriptor is the one that the next file would get.
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        with pytest.raises((MachineFault, OSError)) as raised:
            open_artefact(tmp_path / "a", "items")
        with pytest.raises(MachineFault, match="Too many open files"):
            stage(tmp_path / "release", lambda path: [path.open("w") for _ in range(40)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    fault = raised.value if isinstance(raised.value, TiercelError) else fault_of(raised.value)
    assert "raise the limit (ulimit -n" in str(fault)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_store_that_cannot_be_opened_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MachineFault, match="memory"):
        Overlay(tmp_path / "deep" / "store", 2**40)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(MachineFault):
        Overlay(tmp_path / "mine", 2**40)
    assert (tmp_path / "mine").is_dir()


#: A process that cannot write a single byte to a file, as on a completely full disk.
NO_BYTE = """
import resource, sys, tempfile
from pathlib import Path
from tiercel_serving.machine_faults import fault_of
from tiercel_serving.stores.embedded import Overlay
from tiercel_serving.errors import MachineFault

resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    Overlay(Path(sys.argv[1]), 16)
except MachineFault as fault:
    print(fault)
try:
    tempfile.mkdtemp()
except FileNotFoundError as error:
    print(fault_of(error, None, "starting Triton"))
"""


def test_no_byte_can_be_written_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_BYTE, str(tmp_path / "store")],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "TMPDIR"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    opening, starting = done.stdout.splitlines()
    assert f"{tmp_path / 'store'}: File too large while opening the store" in opening
    assert "a file may have 0 bytes (ulimit -f)" in opening
    assert starting.startswith("No usable temporary directory found in ['/tmp'")
    assert starting.endswith("name another folder in the variable TMPDIR")
    assert " while starting Triton; make room," in starting
    assert not (tmp_path / "store").exists()


def test_a_folder_that_is_no_tables_is_not_walked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MOST_ENTRIES", 3)
    for number in range(4):
        (tmp_path / f"{number}").mkdir()
    for read in (lambda: read_table(tmp_path, "items"), lambda: parquet_files([tmp_path])):
        with pytest.raises(DataError, match="found more than 3 files and folders below it; name"):
            read()


def test_a_picture_that_is_there(tmp_path: Path) -> None:
    picture = tmp_path / "graph.svg"
    check_picture(picture, replace=False)
    picture.write_text("mine", encoding="utf-8")
    with pytest.raises(Refused, match=r"graph\.svg: is there already; name another file, or add --replace"):
        check_picture(picture, replace=False)
    check_picture(picture, replace=True)
    assert picture.read_text(encoding="utf-8") == "mine"
    with pytest.raises(Refused, match="is a folder"):
        check_picture(tmp_path, replace=True)
