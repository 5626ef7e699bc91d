"""What a training holds for each further interaction, seen from the peak of a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Trains on so many interactions into a folder, and says how many there were and the most memory it held.
TRAINED = """
import sys
from pathlib import Path
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
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(len(dataset.interactions), peak * 1024)
"""

#: Most bytes an interaction may cost: the data set has 40, the arrays that are learned from 90, and there is
#: what is made of them for a moment.
MOST_BYTES = 250


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_grows_by_little_with_the_interactions(tmp_path: Path) -> None:
    told = []
    for interactions in (60_000, 720_000):
        command = [sys.executable, "-c", TRAINED, str(interactions), str(tmp_path / str(interactions))]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
        told.append(tuple(map(int, said.stdout.split()[-2:])))
    (few, small), (many, large) = told
    print(f"{few:,} interactions {small / 1e9:.2f} GB, {many:,} {large / 1e9:.2f} GB")
    assert (large - small) / (many - few) < MOST_BYTES
