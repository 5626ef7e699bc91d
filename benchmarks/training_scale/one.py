"""One training in a process of its own: ``python -m benchmarks.training_scale.one SIZE [EPOCHS [N]]``.

If N is given, each epoch ends after N batches.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.scale.exporting import memory
from benchmarks.training_scale.sizes import SIZES
from tiercel_pipelines.data import Progress, load_dataset
from tiercel_pipelines.recipe import DLRM, Recipe, TwoTower, load_recipe, replace
from tiercel_pipelines.tasks.listwise_softmax import SampledLists
from tiercel_pipelines.tasks.sampled_softmax import InBatch
from tiercel_pipelines.training import train_recipe


def recipe_of(size: str, epochs: int | None) -> Recipe:
    """Return the recipe ``synthetic`` at this size, with default models or at most ``epochs`` epochs."""
    models: list[Any] = [TwoTower(), DLRM()]
    if epochs is not None:
        models = [msgspec.structs.replace(model, max_epochs=epochs) for model in models]
    return replace(load_recipe("synthetic"), dataset=SIZES[size], retrieval=models[0], ranking=models[1])


def watched() -> tuple[dict[str, float], dict[str, int], Progress]:
    """Return seconds and peak memory in bytes by step, and the progress callback that fills both."""
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}
    at: list[Any] = ["start", time.perf_counter()]

    def progress(what: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        seconds[at[0]] = round(seconds.get(at[0], 0.0) + now - at[1], 2)
        peaks[at[0]] = memory("VmHWM")
        at[:] = [what, now]

    return seconds, peaks, progress


def shorten(batches: int) -> None:
    """End each epoch after ``batches`` batches in this process, since later ones take no more memory."""
    for task in (InBatch, SampledLists):
        whole: Any = task.epoch

        def epoch(self: Any, rng: Any, whole: Any = whole) -> Any:
            return itertools.islice(whole(self, rng), batches)

        setattr(task, "epoch", epoch)  # noqa: B010


def measure(
    size: str, epochs: int | None = None, batches: int | None = None, *, say: Callable[[str], None] = print
) -> None:
    """Train once, and pass times, memory and figures to ``say`` as JSON."""
    if batches is not None:
        shorten(batches)
    recipe = recipe_of(size, epochs)
    begun = time.perf_counter(), time.process_time()
    dataset = load_dataset(recipe.dataset)
    made = time.perf_counter(), time.process_time()
    # Reset the peak that the kernel counts (VmHWM); it still includes the data set.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = memory("VmRSS")
    seconds, peaks, progress = watched()
    with tempfile.TemporaryDirectory() as folder:
        run = train_recipe(recipe, dataset, Path(folder) / "run", progress=progress)
        progress("end", 0, None)
    spent = time.perf_counter(), time.process_time()
    say(
        json.dumps(
            {
                "interactions": len(dataset.interactions),
                "make_s": round(made[0] - begun[0], 1),
                "train_s": round(spent[0] - made[0], 1),
                "train_cpu_s": round(spent[1] - made[1], 1),
                "dataset_bytes": before,
                "peak_bytes": memory("VmHWM"),
                "parts_s": {**run.metrics["seconds"]},
                "epochs": {name: course["run"] for name, course in run.metrics["epochs"].items()},
                "steps_s": seconds,
                "peaks_bytes": peaks,
                "ndcg": run.metrics["ranking"]["ndcg"],
                "popularity_ndcg": run.metrics["popularity"]["ndcg"],
            }
        )
    )


if __name__ == "__main__":
    measure(sys.argv[1], *map(int, sys.argv[2:]))
