"""Verification: every artefact of a release against its golden vectors, and against its sources.

It needs what serving needs and no more: golden vectors stand in for NVTabular and torch. An export hands
its sources over as well, so that fresh rows are compared with the originals while they are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiercel_serving.errors import InvalidConfig, VerificationFailed

from ..columns import Column, null_column
from ..features import FeatureProgram
from ..features.blocks import transform
from ..release.artefacts import Artefact
from ..release.opened import Release, check_files, open_release
from ..repository.validate import validate_repository
from ..runtime.chain import Pipeline
from ..spec import Array
from ..tables.store import ItemTable, UserStore
from ..verify.recall import exact_search, recall
from .compare import ENGINE, EXACT, Difference, Tolerance, compare, compare_arrays, compare_rankings, merge
from .golden import get_arrays, get_columns
from .runners import OnnxRunner, Runner

#: How far the measured recall may lie below the manifest's, on fewer queries.
RECALL_SLACK = 0.02

#: Called with the check's name, how many are done, and of how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class VerifyRow:
    """One line of the table.

    Parameters
    ----------
    artefact
        Which part of the release.
    check
        What it was compared with.
    compared
        How many values.
    worst
        The largest difference; None where the check is not about numbers.
    tolerance
        What was allowed.
    ok
        Whether it is within.
    detail
        Where it failed, or what was measured.
    """

    artefact: str
    check: str
    compared: int
    worst: float | None
    tolerance: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class VerifyReport:
    """The table that ``tiercel verify`` prints."""

    build_id: str
    rows: tuple[VerifyRow, ...]

    @property
    def ok(self) -> bool:
        """Whether every row is."""
        return all(row.ok for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form; an infinite difference is written as null."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            if row["worst"] is not None and not np.isfinite(row["worst"]):
                row["worst"] = None
        return {"ok": self.ok, "build_id": self.build_id, "rows": rows}

    def raise_if_failed(self) -> None:
        """Raise :class:`~tiercel_export.errors.VerificationFailed` with every row that is not ok."""
        failed = [row for row in self.rows if not row.ok]
        if failed:
            lines = "\n".join(f"  {row.artefact}, {row.check}: {row.detail or row.worst}" for row in failed)
            raise VerificationFailed(
                f"build {self.build_id}: {len(failed)} of {len(self.rows)} checks failed:\n{lines}\n"
                "What is served would not be what was trained; the release must not be used"
            )


@dataclass(frozen=True)
class FeatureSource:
    """Fresh rows with what NVTabular makes of them."""

    inputs: Mapping[str, Column]
    outputs: Mapping[str, Column]
    rows: int


@dataclass(frozen=True)
class Sources:
    """What a release was made of, for the comparison that only an export can make.

    Parameters
    ----------
    features
        Artefact name → rows with NVTabular's own answer.
    models
        Engine name → the torch runner.
    batches
        Engine name → batches to run both on.
    vectors
        ``[I, D]`` the item vectors that the index was made of.
    """

    features: Mapping[str, FeatureSource]
    models: Mapping[str, Runner]
    batches: Mapping[str, list[dict[str, Array]]]
    vectors: Array


def verify_release(
    release: Release | str | Path, *, sources: Sources | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Compare every artefact of a release with its golden vectors, and with its sources if given.

    Parameters
    ----------
    release
        The release or its directory.
    sources
        What it was made of.
    progress
        Called after each check.

    Returns
    -------
    VerifyReport
        One row a check. Differences are rows that are not ok, and do not raise.

    Raises
    ------
    ReleaseError
        If a file is missing, changed, of another build or of a newer format.
    """
    opened = release if isinstance(release, Release) else open_release(release)
    checks = _checks(opened, sources)
    rows: list[VerifyRow] = []
    for number, (name, check) in enumerate(checks):
        rows.extend(check())
        if progress is not None:
            progress(name, number + 1, len(checks))
    return VerifyReport(opened.build_id, tuple(rows))


Check = Callable[[], Iterator[VerifyRow]]


def _checks(release: Release, sources: Sources | None) -> list[tuple[str, Check]]:
    checks: list[tuple[str, Check]] = [
        ("files", lambda: _files(release)),
        ("triton", lambda: _triton(release)),
        ("features", lambda: _features(release)),
        ("items", lambda: _items(release)),
        ("users", lambda: _users(release)),
        ("engines", lambda: _engines(release)),
        ("index", lambda: _index(release)),
        ("pipeline", lambda: _pipeline(release)),
    ]
    if sources is not None:
        checks.append(("sources", lambda: _sources(release, sources)))
    return checks


def _row(
    artefact: str, check: str, difference: Difference, tolerance: Tolerance = EXACT, detail: str = ""
) -> VerifyRow:
    return VerifyRow(
        artefact,
        check,
        difference.compared,
        difference.worst,
        str(tolerance),
        difference.ok,
        difference.where or detail,
    )


def _files(release: Release) -> Iterator[VerifyRow]:
    check_files(release)
    count = len(release.manifest["files"])
    size = sum(entry["bytes"] for entry in release.manifest["files"].values())
    yield VerifyRow("files", "size and SHA-256", count, None, "exact", True, f"{size / 1e6:.1f} MB")


def _triton(release: Release) -> Iterator[VerifyRow]:
    directory = release.path / "triton"
    models = sum(path.is_dir() for path in directory.iterdir()) if directory.is_dir() else 0
    try:
        validate_repository(directory)
    except InvalidConfig as error:
        yield VerifyRow("triton", "Triton's rules", models, None, "exact", False, str(error))
    else:
        yield VerifyRow("triton", "Triton's rules", models, None, "exact", True)


def _golden(release: Release) -> Artefact:
    return release.artefact("golden", "golden")


def _features(release: Release) -> Iterator[VerifyRow]:
    golden = _golden(release)
    for name, entry in golden.meta["features"].items():
        program = FeatureProgram.open(release.artefact(name, "features"))
        inputs = get_columns(golden.arrays, f"{name}.in", entry["inputs"])
        outputs = get_columns(golden.arrays, f"{name}.out", entry["outputs"])
        difference = compare_columns(program.run(inputs, entry["rows"]), outputs)
        yield _row(name, "NVTabular (golden)", difference)


def compare_columns(candidate: Mapping[str, Column], oracle: Mapping[str, Column]) -> Difference:
    """Compare feature columns to the last bit: values, what is null, and where lists end."""
    return compare(_comparable(candidate), _comparable(oracle))


def _comparable(columns: Mapping[str, Column]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name, column in columns.items():
        values = column.values
        valid = np.ones(len(values), np.bool_) if column.valid is None else np.asarray(column.valid)
        if values.dtype.kind == "f":
            valid = valid & ~np.isnan(values)
        # What stands at a null's place is unspecified.
        blank = b"" if values.dtype == np.object_ else values.dtype.type(0)
        arrays[name] = np.where(valid, values, blank).astype(values.dtype)
        arrays[f"{name} (not null)"] = valid
        if column.offsets is not None:
            arrays[f"{name} (list ends)"] = np.asarray(column.offsets, np.int64)
    return arrays


def _items(release: Release) -> Iterator[VerifyRow]:
    table = ItemTable.open(release)
    program = FeatureProgram.open(release.artefact("item_features", "features"))
    columns = {}
    for column in program.inputs:
        stored = table.raw(column.name)
        if stored is not None:
            columns[column.name] = stored.take(np.arange(table.size))
    made = transform(program, columns, table.size) if program.inputs else {}
    names = [tensor.name for tensor in release.stages["candidate_features"].outputs] if made else []
    differences = [
        _table(table.packed(name), _fitted(made[name], table.packed(name)), name) for name in names
    ]
    yield _row("items", "item program, all rows", merge(differences))
    ids = table.ids[: table.size]
    found = compare_arrays(table.lookup.find(ids), np.arange(table.size), name="item_id")
    yield _row("items", "id lookup, all rows", found)


def _table(stored: Array, made: Array, name: str) -> Difference:
    """Compare a table with its rows made anew, and the pad row with zeros."""
    pad = np.zeros((1, *stored.shape[1:]), stored.dtype)
    return compare_arrays(np.asarray(stored), np.concatenate([made, pad]), EXACT, name)


def _fitted(made: Array, like: Array) -> Array:
    """Give a list's rectangle the width of the table's."""
    if made.ndim < 2 or made.shape[1] == like.shape[1]:
        return made
    out = np.zeros((len(made), *like.shape[1:]), made.dtype)
    width = min(made.shape[1], like.shape[1])
    out[:, :width] = made[:, :width]
    return out


def _users(release: Release) -> Iterator[VerifyRow]:
    store = UserStore.open(release)
    program = FeatureProgram.open(release.artefact("user_features", "features"))
    rows = np.arange(store.size + 1)
    columns = {}
    for column in program.inputs:
        stored = store.raw(column.name) if column.part == "user" else None
        columns[column.name] = (
            null_column(column.dtype, column.is_list, len(rows)) if stored is None else stored.take(rows)
        )
    made = transform(program, columns, len(rows)) if program.inputs else {}
    differences = [
        compare_arrays(np.asarray(store.packed(name)), _fitted(made[name], store.packed(name)), EXACT, name)
        for name in (tensor.name for tensor in release.stages["user_features"].outputs)
        if name in made
    ]
    yield _row("users", "user program, all rows", merge(differences))


def _engines(release: Release) -> Iterator[VerifyRow]:
    golden = _golden(release)
    largest = release.settings.max_batch_size
    for name, entry in golden.meta["engines"].items():
        runner = OnnxRunner(release.artefact(name, "engine").file("model.onnx"))
        inputs = get_arrays(golden.arrays, f"{name}.in", entry["inputs"])
        outputs = get_arrays(golden.arrays, f"{name}.out", entry["outputs"])
        for batch in sorted({1, largest}):
            yield _row(
                name, f"torch (golden), batch {batch}", _at_batch(runner, inputs, outputs, batch), ENGINE
            )


def _at_batch(
    runner: Runner, inputs: Mapping[str, Array], outputs: Mapping[str, Array], batch: int
) -> Difference:
    """Run the golden rows in batches of this size, repeating them to fill the last."""
    rows = len(next(iter(outputs.values())))
    differences = []
    for start in range(0, rows, batch):
        take = np.arange(start, start + batch) % rows
        got = runner.run({name: array[take] for name, array in inputs.items()})
        differences.append(compare(got, {name: array[take] for name, array in outputs.items()}, ENGINE))
    return merge(differences)


def _index(release: Release) -> Iterator[VerifyRow]:
    import faiss

    golden, artefact = _golden(release), release.artefact("index", "index")
    vectors = np.asarray(artefact.arrays["vectors"])
    want = get_arrays(golden.arrays, "index", ["queries", "rows", "scores"])
    rows, scores = exact_search(vectors, want["queries"], want["rows"].shape[1])
    exact = compare_rankings(rows, scores, want["rows"], want["scores"])
    yield _row("index", "vectors against golden top-N", exact, ENGINE)
    index = faiss.read_index(str(artefact.file("index.faiss")))
    entry = release.manifest["index"]
    measured = recall(index, vectors, want["queries"], int(entry["candidates"]))
    floor = float(entry["recall"]) - RECALL_SLACK
    detail = f"recall {measured:.4f} at {entry['candidates']} (export measured {entry['recall']:.4f})"
    compared = len(want["queries"]) * int(entry["candidates"])
    yield VerifyRow(
        "index", "exact search", compared, None, f"recall ≥ {floor:.4f}", measured >= floor, detail
    )


def _pipeline(release: Release) -> Iterator[VerifyRow]:
    golden = _golden(release)
    entry = golden.meta["pipeline"]
    inputs = get_arrays(golden.arrays, "pipeline.in", entry["inputs"])
    want = get_arrays(golden.arrays, "pipeline.out", entry["outputs"])
    users = len(inputs["user_id"])
    pipeline = Pipeline.open(release)
    if not users:
        detail = "every example's candidates depend on the last bit of a score"
        yield VerifyRow("pipeline", "opens", 0, None, "exact", True, detail)
        return
    pipeline.check(inputs)
    for batch in sorted({1, min(users, release.settings.max_batch_size)}):
        parts = [
            pipeline.run({name: array[start : start + batch] for name, array in inputs.items()})[0]
            for start in range(0, users, batch)
        ]
        got = {name: np.concatenate([part[name] for part in parts]) for name in want}
        yield _row(
            "pipeline", f"reference answers (golden), batch {batch}", compare_answers(got, want), ENGINE
        )


def compare_answers(candidate: Mapping[str, Array], oracle: Mapping[str, Array]) -> Difference:
    """Compare ``item_id``, ``score``, ``count`` and ``status``; items whose scores tie may swap."""
    names = ("count", "status")
    return merge(
        [
            *(compare_arrays(candidate[name], oracle[name], EXACT, name) for name in names),
            compare_rankings(
                candidate["item_id"], candidate["score"], oracle["item_id"], oracle["score"], ENGINE
            ),
        ]
    )


def _sources(release: Release, sources: Sources) -> Iterator[VerifyRow]:
    for name, source in sources.features.items():
        program = FeatureProgram.open(release.artefact(name, "features"))
        difference = compare_columns(program.run(source.inputs, source.rows), source.outputs)
        yield _row(name, f"NVTabular, {source.rows} rows", difference)
    for name, model in sources.models.items():
        runner = OnnxRunner(release.artefact(name, "engine").file("model.onnx"))
        differences = [compare(runner.run(b), model.run(b), ENGINE) for b in sources.batches[name]]
        yield _row(name, f"torch, {len(differences)} batches", merge(differences), ENGINE)
    stored = np.asarray(release.artefact("index", "index").arrays["vectors"])
    yield _row("index", "item vectors", compare_arrays(stored, sources.vectors, EXACT, "vectors"))
