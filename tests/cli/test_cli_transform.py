"""`tiercel transform` on a release, a run's workflow and a program, as typed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.command import Tiercel
from tiercel_serving.release.opened import open_release


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, release: Path) -> Path:
    """Return a folder with the release's raw tables and the workflow that it was built from."""
    small = sys.modules["small_release"]
    folder: Path = tmp_path_factory.mktemp("transform")
    users, items, interactions = small.small_frames(text_ids=True)
    users.assign(device="web").to_parquet(folder / "users.parquet")
    items.to_parquet(folder / "items.parquet")
    joined = interactions.merge(users, on="user_id").merge(items, on="item_id")
    joined.to_parquet(folder / "joined.parquet", row_group_size=100)
    workflow = small.small_workflow(users, items, interactions, folder)
    workflow.save(str(folder / "workflow"))
    return folder


def test_a_release_transforms_its_items_as_it_serves_them(
    work: Path, release: Path, tiercel_here: Tiercel
) -> None:
    done = tiercel_here(
        "transform", release, "items.parquet", "packed.parquet", "--packed", "--json", cwd=work
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["parts"] == ["item"]
    assert (document["rows"], document["ignored"]) == (60, ["stock", "title"])
    assert document["rows_per_s"] > 0
    got = pq.read_table(work / "packed.parquet")
    served = open_release(release)
    assert got.schema.metadata[b"tiercel.build_id"].decode() == served.build_id
    columns = json.loads(got.schema.field("item_cat").metadata[b"columns"])
    assert columns == list(served.manifest.packed.item_cat)
    arrays = served.artefact("items", "items").arrays
    for name in got.column_names:
        made = got[name].combine_chunks().flatten().to_numpy().reshape(60, -1)
        assert np.array_equal(made, arrays[name][:60]), name


def test_both_parts_of_joined_rows_equal_the_workflow(work: Path, tiercel_here: Tiercel) -> None:
    done = tiercel_here(
        "transform", "workflow", "joined.parquet", "all.parquet", "--keep", "timestamp", cwd=work
    )
    assert done.returncode == 0, done.stderr
    assert "user and item" in done.stdout
    assert "rows/s" in done.stdout
    import nvtabular

    workflow = nvtabular.Workflow.load(str(work / "workflow"))
    expected = workflow.transform(pd.read_parquet(work / "joined.parquet"))
    got = pd.read_parquet(work / "all.parquet")
    assert set(got) == {"timestamp", *expected}
    for name in expected:
        if name == "tags":
            assert [list(row) for row in got[name]] == [list(row) for row in expected[name]]
        else:
            assert got[name].dtype == expected[name].dtype
            assert np.array_equal(got[name], expected[name], equal_nan=expected[name].dtype.kind == "f"), name


def test_parts_are_chosen_by_the_columns_or_by_name(work: Path, tiercel_here: Tiercel) -> None:
    wanted = ["transform", "workflow", "users.parquet"]
    done = tiercel_here(*wanted, "users_out.parquet", "--json", cwd=work)
    assert json.loads(done.stdout)["parts"] == ["user"]
    done = tiercel_here(*wanted, "none.parquet", "--part", "both", "--json", cwd=work)
    assert done.returncode == 1
    assert (
        "users.parquet: columns 'item_id' (text), 'kind' (text)"
        in json.loads(done.stdout)["error"]["message"]
    )
    pq.write_table(pq.read_table(work / "users.parquet").drop_columns("device"), work / "partly.parquet")
    done = tiercel_here("transform", "workflow", "partly.parquet", "none.parquet", cwd=work)
    assert done.returncode == 1
    assert "  user: device\n  item: item_id, kind, tags, price\n" in done.stderr
    done = tiercel_here("transform", "workflow", "partly.parquet", "items.parquet", "none.parquet", cwd=work)
    assert done.returncode == 1
    assert not (work / "none.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "users.parquet", "o.parquet"], "nothing: expected a release, a run, or the folder"),
        (["workflow", "none.parquet", "o.parquet"], "none.parquet: there is no such file"),
        (["workflow", "workflow/categories", "users.parquet"], "--overwrite replaces it"),
        (["workflow", "users.parquet", "users.parquet", "--overwrite"], "one of the files to read"),
        (["workflow", "users.parquet", "no/o.parquet"], "there is no folder no"),
        (["workflow", "users.parquet", "o.parquet", "--part", "context"], "the parts are user, item, both"),
        (["workflow", "items.parquet", "o.parquet", "--list-length", "tags"], "expected NAME=N"),
        (["workflow", "items.parquet", "o.parquet", "--list-length", "kind=2"], "there are tags"),
        (["workflow", "items.parquet", "o.parquet", "--target-encoding", "all"], "expected no_fold"),
    ],
)
def test_what_cannot_be_is_exit_code_two(
    arguments: list[str], words: str, work: Path, tiercel_here: Tiercel
) -> None:
    done = tiercel_here("transform", *arguments, cwd=work)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not (work / "o.parquet").exists()


def test_packed_lists_of_a_workflow_need_a_length(work: Path, tiercel_here: Tiercel) -> None:
    wanted = ["transform", "workflow", "items.parquet", "p.parquet", "--packed"]
    done = tiercel_here(*wanted, cwd=work)
    assert done.returncode == 1
    assert "--list-length tags=N" in done.stderr
    assert tiercel_here(*wanted, "--list-length", "tags=2", cwd=work).returncode == 0
    assert pq.read_schema(work / "p.parquet").field("item_list_tags").type == pa.list_(pa.int64(), 2)


def test_a_newer_or_broken_program_is_refused(work: Path, release: Path, tiercel_here: Tiercel) -> None:
    shutil.copytree(release / "artefacts" / "item_features", work / "program")
    header = work / "program" / "header.json"
    good = header.read_text()
    changes: dict[str, Callable[[Any], None]] = {
        "NewerFormat": lambda h: h["meta"]["program"].update(format=99),
        "ArtefactCorrupt": lambda h: h["meta"]["program"]["steps"][-1].update(op="magic"),
    }
    for kind, change in changes.items():
        document = json.loads(good)
        change(document)
        header.write_text(json.dumps(document))
        done = tiercel_here("transform", "program", "items.parquet", "o.parquet", "--json", cwd=work)
        assert done.returncode == 1
        assert json.loads(done.stdout)["error"]["type"] == kind
        assert "upgrade" in done.stderr or "export again" in done.stderr
    header.write_text(good)
    assert tiercel_here("transform", "program", "items.parquet", "o.parquet", cwd=work).returncode == 0
    (work / "o.parquet").unlink()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_stopped_half_way_it_leaves_nothing(number: int, code: int, work: Path, tmp_path: Path) -> None:
    rows = pq.read_table(work / "items.parquet")
    with pq.ParquetWriter(tmp_path / "many.parquet", rows.schema) as writer:
        writer.write_table(pa.concat_tables([rows] * 8_000), row_group_size=100_000)
    code_of = "from tiercel_serving.commands.main import main; main()"
    arguments = ["transform", str(work / "workflow"), "many.parquet", "out.parquet", "--batch-rows", "500"]
    process = subprocess.Popen(
        [sys.executable, "-c", code_of, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not any(
        ".partial-" in name and os.path.getsize(tmp_path / name) > 10_000 for name in os.listdir(tmp_path)
    ):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert os.listdir(tmp_path) == ["many.parquet"]
