"""The scale benchmark from end to end."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.scale.answering import measure_answers
from benchmarks.scale.exporting import measure_export
from benchmarks.scale.made_up import heavy_users, make_up
from benchmarks.scale.opening import measure_opening
from benchmarks.scale.parts import SOURCE
from benchmarks.scale.report import Measured, ScaleReport
from benchmarks.scale.searching import BUILD_HEAVY, BUILD_QUERIES, Users, measure_searches
from benchmarks.scale.serving import measure_served
from benchmarks.scale.sizes import SIZES, Size
from tiercel_serving.bench.machine import describe_machine, installed_versions
from tiercel_serving.lookups.lookup import read_keys
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.spec import Array
from tiercel_serving.stages.specs import query_stage
from tiercel_serving.stores.memory_mapped import USER_LOOKUP

#: Packages whose versions the report names.
PACKAGES = ("tiercel", "numpy", "pandas", "faiss-cpu", "onnxruntime", "torch", "nvtabular")

Progress = Callable[[str, int, int | None], None]


def run_scale(
    sizes: Sequence[str],
    *,
    indexes: Sequence[str] = (),
    text_ids: bool = False,
    command: str = "",
    progress: Progress = lambda what, done, total: None,
) -> ScaleReport:
    """Measure sizes, one after the other.

    Parameters
    ----------
    sizes
        Keys of :data:`~benchmarks.scale.sizes.SIZES`.
    indexes
        The index types that are searched, and the first of them exported; none takes each size's own.
    text_ids
        Whether users and items have text ids.
    command
        What was typed.
    progress
        Called with what comes next, how many sizes are done, and of how many.
    """
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": describe_machine(),
        "versions": installed_versions(PACKAGES),
        "ids": "text" if text_ids else "int64",
    }
    measured = {}
    for done, name in enumerate(sizes):

        def say(what: str, name: str = name, done: int = done) -> None:
            progress(f"{name}: {what}", done, len(sizes))

        measured[name] = _measure(name, tuple(indexes), text_ids, say)
    return ScaleReport(facts, measured)


def _measure(name: str, indexes: tuple[str, ...], text_ids: bool, say: Callable[[str], None]) -> Measured:
    size = SIZES[name]
    index = indexes[0] if indexes else size.served
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "release"
        say(f"exporting {index}")
        export = measure_export(path, name, index, text_ids)
        release = open_release(path)
        user_ids = read_keys(release.artefact("users", "users").arrays, USER_LOOKUP)
        say("opening")
        opening = measure_opening(path, user_ids[1].item() if user_ids.dtype != object else user_ids[1])
        say("answering")
        answers = measure_answers(release, user_ids, size)
        say("serving")
        served = measure_served(path, user_ids, release.items.ids(np.arange(size.items)), size)
        say("searching")
        light, heavy = _users(release, user_ids, size)
        made = make_up(size, text_ids=text_ids)
        vectors, lots = made.vectors, made.items["lot"].to_numpy()
        del made
        searches = list(measure_searches(vectors, lots, light, heavy, size, indexes or size.indexes, say))
        weight = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        recall = release.manifest.sources[SOURCE]
        return Measured(
            *(name, index, weight, export, opening, answers),
            *(served, text_ids, dict(recall), tuple(searches)),
        )


def _users(release: Release, user_ids: Array, size: Size, seed: int = 1) -> tuple[Users, Users]:
    """Return some users who have had little, and some who have had much, with their queries as served."""
    heavy = heavy_users(size)
    light = np.setdiff1d(np.arange(size.users), heavy)
    many = min(max(size.queries, BUILD_QUERIES), len(light))
    chosen = np.random.default_rng(seed).choice(light, many, replace=False)
    mixed = np.random.default_rng(seed).permutation(heavy)[: size.queries + BUILD_HEAVY]
    return _asked(release, user_ids, chosen), _asked(release, user_ids, mixed)


def _asked(release: Release, user_ids: Array, rows: Array) -> Users:
    stage = query_stage(SOURCE)
    names = list(release.stages)
    chain = Chain.open(release, names[: names.index(stage) + 1])
    ids = user_ids[rows][:, None]
    flat, counts = release.users.read(ids).seen()
    return Users(chain.run({"user_id": ids})[0][stage], np.split(flat, np.cumsum(counts)[:-1]))
