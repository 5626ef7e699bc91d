"""Each compiled operator is saved, compiled from the saved folder, and run without NVTabular installed.

The workflows are those of ``test_feature_operators.CASES``: the first of each operator, or all with
``--slow``. One process runs them, and its results must equal NVTabular's to the bit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import run_artefacts
from parity_helpers import Pair, compare, pair
from test_feature_operators import CASES, FIT, WHOLE, fitted, path

from tiercel_export.workflow.frames import columns_from_frame, oracle_frame

#: Rows that NVTabular answers for every operator.
FRAME = pd.concat([FIT.iloc[:6], WHOLE], ignore_index=True)
GRAPHS = [(key, number) for key, graphs in CASES.items() for number in range(len(graphs))]


@dataclass
class Trip:
    """The results of one workflow on both sides of the round trip."""

    both: Pair
    frame: pd.DataFrame
    expected: pd.DataFrame
    folder: Path


def depart(key: str, number: int, folder: Path) -> Trip:
    """Fit, save, move the saved folder, compile and write the artefact and its inputs."""
    categories, saved, moved = folder / "categories", folder / "saved", folder / "moved"
    categories.mkdir(parents=True)
    workflow = fitted(CASES[key][number](path(categories)))
    workflow.save(saved)
    shutil.rmtree(categories)
    shutil.move(saved, moved)
    both = pair(str(moved), "item" if "TagAsItem" in key else "user")
    both.compiled.write(folder / "artefact", run_artefacts.BUILD)
    frame = oracle_frame(FRAME, both.program.inputs)
    columns = columns_from_frame(frame, both.program.inputs)
    run_artefacts.save_columns(folder / "inputs.npz", columns, len(frame))
    return Trip(both, frame, both.oracle(frame), folder)


@pytest.fixture(scope="module")
def trips(request, tmp_path_factory):
    folder, slow = tmp_path_factory.mktemp("trips"), request.config.getoption("--slow")
    trips = {
        (key, number): depart(key, number, folder / f"{at}")
        for at, (key, number) in enumerate(GRAPHS)
        if slow or number == 0
    }
    command = [sys.executable, run_artefacts.__file__, *(str(trip.folder) for trip in trips.values())]
    subprocess.run(command, check=True, timeout=120)
    return trips


@pytest.mark.parametrize(
    ("key", "number"),
    [pytest.param(key, number, marks=[pytest.mark.slow] if number else []) for key, number in GRAPHS],
)
def test_round_trip_equals_nvtabular(trips, key, number):
    trip = trips[key, number]
    got, n = run_artefacts.load_columns(trip.folder / "outputs.npz")
    assert n == len(FRAME)
    assert list(got) == [output.name for output in trip.both.program.outputs]
    for name, column in got.items():
        compare(name, trip.expected[name], column, np.zeros(n, bool), flexible=True)


def test_artefacts_hold_no_pickle(trips):
    for trip in trips.values():
        names = {file.name for file in (trip.folder / "artefact").iterdir()}
        assert "header.json" in names
        assert all(name.endswith((".npy", ".json")) for name in names)
        for file in (trip.folder / "artefact").glob("*.npy"):
            np.load(file, allow_pickle=False)
