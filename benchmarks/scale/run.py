"""The scale benchmark from end to end."""

from __future__ import annotations

import datetime
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.scale.answering import Asked, measure_answers
from benchmarks.scale.exporting import measure_export
from benchmarks.scale.made_up import RULES, heavy_users, make_up
from benchmarks.scale.opening import measure_opening
from benchmarks.scale.parts import SOURCE
from benchmarks.scale.report import Measured, ScaleReport
from benchmarks.scale.searching import BUILD_HEAVY, BUILD_QUERIES, Searched, Users, measure_searches
from benchmarks.scale.serving import measure_served
from benchmarks.scale.sizes import SIZES, Size
from tiercel_serving.bench.machine import describe_machine, installed_versions
from tiercel_serving.lookups.lookup import read_keys
from tiercel_serving.release.opened import open_release
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
        The index types to search; the first one is exported. Empty takes those of each size.
    text_ids
        Whether users and items have text ids.
    command
        The command line, for the report.
    progress
        Called as ``progress(next step, steps done, all steps)``.
    """
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": describe_machine(),
        "versions": installed_versions(PACKAGES),
        "ids": "text" if text_ids else "int64",
    }
    # Each size has an export, an opening, and searches per index type; two steps measure all sizes together.
    each = len(indexes) or max(len(SIZES[name].indexes) for name in sizes)
    steps = itertools.count()

    def say(what: str) -> None:
        progress(what, min(next(steps), total), total)

    total = len(sizes) * (2 + each * (1 + len(RULES))) + 2
    with tempfile.TemporaryDirectory() as folder:
        asked, exports, openings = dict[str, Asked](), {}, {}
        for name in sizes:
            size, path = SIZES[name], Path(folder) / name
            say(f"{name}: exporting {_served(size, indexes)}")
            exports[name] = measure_export(path, name, _served(size, indexes), text_ids)
            release = open_release(path)
            user_ids = read_keys(release.artefact("users", "users").arrays, USER_LOOKUP)
            asked[name] = Asked(path, release, user_ids, size)
            say(f"{name}: opening")
            openings[name] = measure_opening(
                path, user_ids[1].item() if user_ids.dtype != object else user_ids[1]
            )
        say("answering")
        answers = measure_answers(asked)
        say("serving")
        served = measure_served(asked)
        measured = {
            name: Measured(
                size=name,
                index=_served(one.size, indexes),
                release_bytes=sum(file.stat().st_size for file in one.path.rglob("*") if file.is_file()),
                export=exports[name],
                opening=openings[name],
                answers=answers[name],
                served=served[name],
                text_ids=text_ids,
                source=dict(one.release.manifest.sources[SOURCE]),
                searches=_searches(name, one, tuple(indexes) or one.size.indexes, text_ids, say),
            )
            for name, one in asked.items()
        }
    return ScaleReport(facts, measured)


def _served(size: Size, indexes: Sequence[str]) -> str:
    """Return the index type of the release."""
    return indexes[0] if indexes else size.served


def _searches(
    name: str, one: Asked, indexes: tuple[str, ...], text_ids: bool, say: Callable[[str], None]
) -> tuple[Searched, ...]:
    """Measure the searches of one size."""
    light, heavy = _users(one)
    made = make_up(one.size, text_ids=text_ids)
    vectors, lots = made.vectors, made.items["lot"].to_numpy()
    del made
    return tuple(
        measure_searches(
            vectors, lots, light, heavy, one.size, indexes, lambda what: say(f"{name}: searching {what}")
        )
    )


def _users(one: Asked, seed: int = 1) -> tuple[Users, Users]:
    """Return some light and some heavy users, with their queries as served."""
    size, heavy, light = one.size, heavy_users(one.size), one.light()
    many = min(max(size.queries, BUILD_QUERIES), len(light))
    chosen = np.random.default_rng(seed).choice(light, many, replace=False)
    mixed = np.random.default_rng(seed).permutation(heavy)[: size.queries + BUILD_HEAVY]
    return _queries(one, chosen), _queries(one, mixed)


def _queries(one: Asked, rows: Array) -> Users:
    stage, release = query_stage(SOURCE), one.release
    names = list(release.stages)
    chain = Chain.open(release, names[: names.index(stage) + 1])
    ids = one.user_ids[rows][:, None]
    flat, counts = release.users.read(ids).seen()
    return Users(chain.run({"user_id": ids})[0][stage], np.split(flat, np.cumsum(counts)[:-1]))
