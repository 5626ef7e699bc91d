"""A workflow fitted on partitions in files, or on a Dask cluster, equals the one fitted in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import nvtabular
import pandas as pd
import pytest
from nvtabular import ops

from tiercel_export.workflow.cut import cut_workflow
from tiercel_pipelines.arrays.packing import pack_dataset
from tiercel_pipelines.data import Synthetic, load_dataset
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.features import fit_progress, joined
from tiercel_pipelines.features.dask_cluster import dask_cluster
from tiercel_pipelines.features.workflow import fit_workflow
from tiercel_pipelines.recipe import load_recipe, replace


@pytest.fixture(scope="module")
def world():
    recipe = load_recipe("synthetic")
    recipe = replace(recipe, dataset=Synthetic(users=60, items=50, interactions=1000, ids="str"))
    dataset = load_dataset(recipe.dataset)
    return recipe, dataset, fit_workflow(recipe, dataset, dataset.interactions)


def packed(world, workflow):
    recipe, dataset, _ = world
    return pack_dataset(cut_workflow(workflow), dataset, dataset.interactions, recipe.served)


def check_same(world, workflow):
    """Check for equal categories and, except for the order of sums, equal numbers."""
    mine, expected = packed(world, workflow), packed(world, world[2])
    for part in ("user", "item"):
        one, other = getattr(mine, part), getattr(expected, part)
        assert one.keys() == other.keys()
        for name, array in one.items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(array, other[name], rtol=1e-5, atol=1e-6)
            else:
                _check_renamed(array, other[name])
    for name, array in mine.contexts.columns.items():
        _check_renamed(array, expected.contexts.columns[name])


def _check_renamed(ids, expected):
    """Check that ids differ at most by swaps, as of equally frequent categories."""
    for column in range(ids.shape[1]):
        pairs = pd.DataFrame({"a": ids[:, column], "b": expected[:, column]}).drop_duplicates()
        assert not pairs["a"].duplicated().any()
        assert not pairs["b"].duplicated().any()


def test_many_rows_are_joined_and_fitted_in_pieces(world, monkeypatch, tmp_path):
    recipe, dataset, _ = world
    for name in ("ROWS", "PIECE"):
        monkeypatch.setattr(joined, name, 300)
    workflow = fit_workflow(recipe, dataset, dataset.interactions, tmp_path / "workflow")
    check_same(world, workflow)
    assert [path.name for path in tmp_path.iterdir()] == ["workflow"]


def test_pieces_without_any_value_of_a_column_fit_the_others(world, tmp_path):
    _, dataset, _ = world
    interactions = dataset.interactions.iloc[:8].copy()
    interactions["device"] = [None] * 7 + ["phone"]
    columns = ["device", "interests", "country", "price"]
    with joined.joined_rows(dataset, interactions, columns, tmp_path, in_files=True) as rows:
        frame = rows.to_ddf().compute()
        assert len(list(tmp_path.rglob("*.parquet"))) == 8
    expected = dataset.joined(interactions)[columns]
    assert frame["device"].isna().tolist() == [True] * 7 + [False]
    assert [list(row) for row in frame["interests"]] == expected["interests"].tolist()
    np.testing.assert_array_equal(frame["price"], expected["price"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["memory", "pieces", "files"])
def test_a_list_that_no_operator_reads_may_be_empty_in_the_first_row(world, monkeypatch, tmp_path, where):
    _, dataset, _ = world
    interactions = dataset.interactions.iloc[:400]
    first = dataset.items["item_id"] == interactions["item_id"].iloc[0]
    vectors = pd.Series([[] if empty else [0.5, 2.0] for empty in first], dataset.items.index)
    dataset = dataclasses.replace(dataset, items=dataset.items.assign(vector=vectors))
    if where == "pieces":
        for name in ("ROWS", "PIECE"):
            monkeypatch.setattr(joined, name, 300)
    with joined.joined_rows(dataset, interactions, ["vector"], in_files=where == "files") as rows:
        workflow = nvtabular.Workflow(["vector"] >> ops.TagAsItemFeatures()).fit(rows)
    assert workflow.output_schema["vector"].dtype.name == "float64"


@pytest.mark.slow
def test_a_cluster_of_two_workers_fits_the_same(world, tmp_path: Path, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(fit_progress, "POLL_S", 0.02)
    told: list[tuple[str, int, int | None]] = []
    recipe, dataset, _ = world
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True) as cluster,
        dask_cluster(cluster.scheduler_address) as client,
    ):
        with fit_progress.fit_progress(lambda *report: told.append(report), client):
            workflow = fit_workflow(
                recipe, dataset, dataset.interactions, tmp_path / "workflow", client=client
            )
        worked = client.run(lambda dask_worker: len(dask_worker.state.log))
    assert len(worked) == 2
    assert min(worked.values()) > 0
    check_same(world, workflow)
    assert {what for what, _, _ in told} >= {"fitting the workflow, pass 1"}
    assert all(0 <= done <= total for _, done, total in told)
    assert len({done for _, done, _ in told}) > 1


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    from tiercel_pipelines.features import dask_cluster as module

    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    with pytest.raises(TrainingError, match=r"Dask scheduler tcp://127\.0\.0\.1:9: none answered"):
        with dask_cluster("tcp://127.0.0.1:9"):
            pass
