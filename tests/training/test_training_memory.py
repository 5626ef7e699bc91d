"""The memory of a training per further interaction, from the peak of its own process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from peak_memory import peak_bytes

#: Trains on a given number of interactions into a folder, and prints their number.
TRAINED = """
import sys
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.recipe import Synthetic, TwoTower, load_recipe, replace
from tiercel_pipelines.training import train_recipe

recipe = replace(
    load_recipe("synthetic"),
    dataset=Synthetic(users=3_000, items=1_000, interactions=int(sys.argv[1])),
    retrieval=TwoTower(dimension=8, embedding_dimension=8, max_epochs=1),
    ranking=None,
)
dataset = load_dataset(recipe.dataset)
train_recipe(recipe, dataset, sys.argv[2])
print(len(dataset.interactions))
"""

#: Memory limit per interaction, in bytes: 40 in the data set, 90 in the arrays to learn from, and the rest
#: for temporary arrays.
MOST_BYTES = 250


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_grows_by_little_with_the_interactions(tmp_path: Path) -> None:
    told = []
    for interactions in (60_000, 720_000):
        command = [sys.executable, "-c", TRAINED, str(interactions), str(tmp_path / str(interactions))]
        peak, said = peak_bytes(command, "VmHWM")
        told.append((int(said.split()[-1]), peak))
    (few, small), (many, large) = told
    print(f"{few:,} interactions {small / 1e9:.2f} GB, {many:,} {large / 1e9:.2f} GB")
    assert (large - small) / (many - few) < MOST_BYTES
