"""Fitting a recipe's workflow is quiet and repeatable, leaves no files behind, and the result compiles."""

import functools
import gc
import operator
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import nvtabular
import pandas as pd
import pytest
from merlin.dag import Node
from merlin.dag.ops.subgraph import Subgraph
from nvtabular import ops

from nvtabular_tensors import packed_frame, padded
from tiercel_export.errors import WorkflowError
from tiercel_export.workflow.cut import compile_workflow
from tiercel_export.workflow.frames import columns_from_frame, frame_oracle
from tiercel_pipelines.data import Dataset, MovieLens100K, Synthetic, load_dataset, split_dataset
from tiercel_pipelines.data.movielens_100k import find_ml_100k
from tiercel_pipelines.features.fit_progress import fit_progress
from tiercel_pipelines.features.graph_columns import feature_columns, list_lengths, packed_columns
from tiercel_pipelines.features.workflow import fit_workflow
from tiercel_pipelines.recipe.check import check_recipe
from tiercel_pipelines.recipe.load import load_recipe
from tiercel_pipelines.recipe.recipe import Recipe

CASES = {
    "movielens": MovieLens100K(),
    "synthetic-int": Synthetic(users=120, items=80, interactions=2_000),
    "synthetic-str": Synthetic(users=120, items=80, interactions=2_000, ids="str"),
}


#: Text ids cover all that integer ids do, and more.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name == "synthetic-int" else []) for name in CASES
    ],
)
def fitted(request: pytest.FixtureRequest) -> tuple[Recipe, Dataset, pd.DataFrame, Any]:
    spec = CASES[request.param]
    if isinstance(spec, MovieLens100K) and find_ml_100k() is None:
        pytest.skip("ml-100k is not on this machine: set TIERCEL_DATA_DIR to the folder that holds it")
    dataset = load_dataset(spec)
    recipe = check_recipe(load_recipe(request.param.partition("-")[0]), dataset)
    train = split_dataset(dataset).train
    return recipe, dataset, train, fit_workflow(recipe, dataset, train)


def raw_rows(part: str, dataset: Dataset) -> pd.DataFrame:
    return dataset.items if part == "item" else dataset.joined().iloc[::7]


@pytest.mark.parametrize("part", ["user", "item"])
def test_compiles_and_equals_nvtabular(fitted: Any, part: str) -> None:
    _, dataset, _, workflow = fitted
    frame = raw_rows(part, dataset)
    lengths = list_lengths(workflow, dataset)
    program = compile_workflow(workflow, part, list_lengths=lengths).program
    columns = columns_from_frame(frame, program.inputs)
    expected = frame_oracle(workflow, part, frame)
    for name, column in program.run(columns, len(frame)).items():
        if column.is_list:
            flat = np.concatenate([np.asarray(row) for row in expected[name] if len(row)])
            np.testing.assert_array_equal(column.values, flat)
        else:
            assert column.values.dtype == expected[name].dtype
            assert column.values.tobytes() == np.ascontiguousarray(expected[name].to_numpy()).tobytes()
    packed = packed_frame(workflow, part, frame, lengths)
    compiled = program.packed(columns, len(frame))
    assert compiled.keys() == packed.keys()
    for name, array in packed.items():
        assert compiled[name].dtype == array.dtype, name
        np.testing.assert_array_equal(compiled[name], array, err_msg=name)


@pytest.mark.parametrize("part", ["user", "item"])
def test_columns_are_packed_in_the_compilers_order(fitted: Any, part: str) -> None:
    _, _, _, workflow = fitted
    mine = [(column.name, column.kind, column.is_list) for column in packed_columns(workflow, part)]
    program = compile_workflow(workflow, part).program
    assert mine == [(column.name, column.kind, column.is_list) for column in program.outputs]


def test_every_id_is_below_the_cardinality(fitted: Any) -> None:
    _, dataset, _, workflow = fitted
    lengths = list_lengths(workflow, dataset)
    for part in ("user", "item"):
        packed = packed_frame(workflow, part, raw_rows(part, dataset), lengths)
        columns = [column for column in packed_columns(workflow, part) if column.kind == "cat"]
        scalars = [column for column in columns if not column.is_list]
        assert (packed[f"{part}_cat"].max(axis=0) < [column.cardinality for column in scalars]).all()
        for column in columns:
            if column.is_list:
                assert 0 < packed[f"{part}_list_{column.name}"].max() < column.cardinality


def test_only_training_interactions_count(fitted: Any) -> None:
    recipe, dataset, train, _ = fitted
    few = train[train[dataset.item_id].isin(train[dataset.item_id].unique()[:10])]
    workflow = fit_workflow(recipe, dataset, few)
    columns = {column.name: column for column in feature_columns(workflow)}
    assert columns["item_id"].cardinality == 3 + 10
    items = packed_frame(workflow, "item", dataset.items)
    place = [c.name for c in packed_columns(workflow, "item") if c.kind == "cat"].index("item_id")
    known = dataset.items[dataset.item_id].isin(few[dataset.item_id]).to_numpy()
    # The catalogue has all others too, with the id of unseen values.
    assert (items["item_cat"][~known, place] == 2).all()
    assert (items["item_cat"][known, place] > 2).all()
    assert np.isfinite(items["item_num"]).all()


def test_the_same_data_gives_the_same_ids_and_fitting_is_quiet_and_leaves_nothing_behind(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, dataset, train, first = fitted
    scratch, here = tmp_path / "scratch", tmp_path / "here"
    scratch.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workflow = fit_workflow(recipe, dataset, train)
        packed_frame(workflow, "item", dataset.items)
    assert capfd.readouterr() == ("", "")
    assert os.listdir(here) == []
    for part in ("user", "item"):
        again = packed_frame(workflow, part, raw_rows(part, dataset))
        for name, array in packed_frame(first, part, raw_rows(part, dataset)).items():
            np.testing.assert_array_equal(again[name], array)
    del workflow
    gc.collect()
    assert os.listdir(scratch) == []


def test_a_saved_workflow_needs_nothing_else_and_may_move(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, dataset, train, workflow = fitted
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fit_workflow(recipe, dataset, train, tmp_path / "workflow")
    gc.collect()
    assert os.listdir(tmp_path) == ["workflow"]
    (tmp_path / "workflow").rename(tmp_path / "moved")
    moved = nvtabular.Workflow.load(str(tmp_path / "moved"))
    expected = packed_frame(workflow, "item", dataset.items)
    for name, array in packed_frame(moved, "item", dataset.items).items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_failing_fit_leaves_nothing_behind(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, dataset, _, _ = fitted
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(Exception, match=r"."):
        fit_workflow(recipe, dataset, dataset.interactions.drop(columns=dataset.item_id))
    assert os.listdir(tmp_path) == []


def test_long_lists_are_cut_and_short_onespadded() -> None:
    rows = [[1, 2, 3], [], [4]]
    np.testing.assert_array_equal(padded(rows, 2, np.int64), [[1, 2], [0, 0], [4, 0]])
    np.testing.assert_array_equal(padded(rows, None, np.int64), [[1, 2, 3], [0, 0, 0], [4, 0, 0]])
    np.testing.assert_array_equal(padded([[], []], None, np.int64), [[0], [0]])
    assert padded([], 4, np.float32).shape == (0, 4)


AGES = pd.DataFrame(
    {"age": [15, 22, 22, 37, 41, 41, 41, 68], "price": [1.0, 2.0, 4.0, 8.0, 16.0, 0.5, 0.25, 3]}
)
#: The same values as interactions of one user with one item.
EVENTS = AGES.assign(user_id=1, item_id=1)
ONE = Dataset("ages", EVENTS[["user_id"]].head(1), EVENTS[["item_id"]].head(1), EVENTS, timestamp=None)
#: Fitted operators of one column; NVTabular stores each under that column's name.
OF_AGE = {
    "exact": lambda: ["age"] >> ops.Categorify(),
    "groups": lambda: ["age"] >> ops.Bucketize([18, 30, 60]) >> ops.Categorify(),
    "frequent": lambda: ["age"] >> ops.Categorify(freq_threshold=2),
    "given": lambda: ["age"] >> ops.Categorify(vocabs={"age": pd.Series([22, 41])}),
    "nested": lambda: Node.construct_from(Subgraph("n", ["age"] >> ops.Bucketize([30]) >> ops.Categorify())),
    "means": lambda: ["age"] >> ops.JoinGroupby(["price"], stats=["mean"]),
    "sums": lambda: ["age"] >> ops.Bucketize([30]) >> ops.JoinGroupby(["price"], stats=["sum", "mean"]),
    "target": lambda: ["age"] >> ops.TargetEncoding("price", kfold=1),
    "rough target": lambda: ["age"] >> ops.Bucketize([30]) >> ops.TargetEncoding("price", kfold=1),
}


def of_ages(*names: str, directory: Path | None = None) -> Any:
    """Fit some of :data:`OF_AGE` as a recipe's workflow, each with its own postfix."""

    def features() -> Any:
        chains = [
            OF_AGE[name]()
            >> ops.Rename(f=lambda column, end=name: f"{column} {end}")
            >> ops.TagAsUserFeatures()
            for name in names
        ]
        return functools.reduce(operator.add, chains)

    return fit_workflow(SimpleNamespace(features=features), ONE, EVENTS, directory)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("alone"))
        return {name: of_ages(name).transform(AGES) for name in OF_AGE}


@pytest.mark.parametrize("names", [list(OF_AGE), list(OF_AGE)[::-1]])
def test_fitted_operators_of_one_column_keep_apart(
    names: list[str], alone: dict[str, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_ages(*names, directory=tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "moved")
    workflow = nvtabular.Workflow.load(str(tmp_path / "moved"))
    program = compile_workflow(workflow, "user").program
    compiled = program.run(columns_from_frame(AGES, program.inputs), len(AGES))
    transformed = workflow.transform(AGES)
    for name in OF_AGE:
        for column, values in alone[name].items():
            pd.testing.assert_series_equal(transformed[column], values, check_exact=True)
            np.testing.assert_array_equal(compiled[str(column)].values, values.to_numpy())


def test_one_operator_at_two_places_is_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def features() -> Any:
        both = ops.Categorify()
        exact = ["age"] >> both >> ops.Rename(postfix=" exact")
        return (exact + (["age"] >> ops.Bucketize([18, 30, 60]) >> both)) >> ops.TagAsUserFeatures()

    told: list[tuple[str, int, int | None]] = []
    with fit_progress(lambda *said: told.append(said)):
        workflow = fit_workflow(SimpleNamespace(features=features), ONE, EVENTS)  # type: ignore[arg-type]
    # Each pass begins at its first task and ends at its last.
    passes = list(dict.fromkeys(what for what, _, _ in told))
    assert passes
    for what in passes:
        assert [done for name, done, _ in told if name == what] == list(
            range(1, next(total for name, _, total in told if name == what) + 1)
        )
    assert workflow.transform(AGES).to_dict("list") == {
        "age exact": [5, 4, 4, 6, 3, 3, 3, 7],
        "age": [5, 4, 4, 3, 3, 3, 3, 6],
    }


def test_two_vocabularies_given_for_one_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # NVTabular writes both when the operators are created, so the second overwrites the first.
    monkeypatch.chdir(tmp_path)

    def features() -> Any:
        few, more = (ops.Categorify(vocabs={"age": pd.Series(ages)}) for ages in ([22], [22, 41]))
        return (["age"] >> few >> ops.Rename(postfix="_few")) + (["age"] >> more)

    with pytest.raises(WorkflowError, match=r"'age': another one was given vocabs.*out_path of its own"):
        fit_workflow(SimpleNamespace(features=features), ONE, EVENTS)  # type: ignore[arg-type]


#: numba sets the number of threads once per process.
THREADS = """
import torch
from nvtabular import ops
from scipy.sparse import identity
from tiercel_pipelines.data import Synthetic, load_dataset
from tiercel_pipelines.features.workflow import _fitted
dataset = load_dataset(Synthetic(users=40, items=40, interactions=400))
similar = ops.ColumnSimilarity(identity(100_000, format="coo"))
print(torch.get_num_threads(), end=" ")
_fitted([["user_id", "item_id"]] >> similar, dataset, dataset.interactions)
print(torch.get_num_threads(), end=" ")
"""


@pytest.mark.slow
def test_similarities_leave_torch_its_threads() -> None:
    own = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", THREADS], env=own, capture_output=True, text=True)
    assert done.stdout == "1 1 ", done.stderr
