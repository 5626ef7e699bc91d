"""Verify every artefact of a release against its golden vectors, and against its originals.

This needs only what serving needs, because golden vectors replace NVTabular and torch. An export also passes
its originals, so that more rows are compared with them while they exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time

import numpy as np

from ..columns import Column, null_column
from ..errors import InvalidConfig
from ..features import FeatureProgram
from ..features.blocks import transform
from ..ranked.masks import make_mask
from ..release.artefacts import Artefact
from ..release.opened import Release, check_files, open_release
from ..repository.validate import validate_repository
from ..rules.table import AskingRule
from ..runtime.batching import absent
from ..runtime.chain import Chain
from ..sources.table import SourceKind, open_source
from ..spec import Array, Arrays
from ..stages.column_tensors import user_rule_columns
from ..stages.request_rules import RequestRules
from ..stages.sent_columns import SentColumn
from ..stages.specs import RETRIEVAL
from ..stores.memory_mapped import MemoryMapped
from .answers import StoredAnswers
from .compare import (
    ENGINE,
    EXACT,
    Difference,
    compare,
    compare_arrays,
    compare_columns,
    compare_rankings,
    merge,
)
from .engine_checks import ReducedModel, check_engines, check_models, ranker_tolerance
from .golden import StoredGolden
from .reference import plain_items
from .report import VerifyReport, VerifyRow
from .stand_in import ANSWERS, with_stand_ins

#: Number of items on which rules are compared.
RULE_ITEMS = 1000

#: Number of users for whom rules are compared that depend on more than the item.
RULE_USERS = 5

#: How far a source's recall may be below the manifest's, in addition to the sampling error of few users.
RECALL_SLACK = 0.02

#: Called with the check's name, the number of checks done, and the number of all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FeatureRows:
    """Fresh input rows with NVTabular's outputs."""

    inputs: Mapping[str, Column]
    outputs: Mapping[str, Column]
    rows: int


@dataclass(frozen=True)
class Originals:
    """What a release was made from, for the comparison that only an export can make.

    Parameters
    ----------
    features
        Artefact name → rows with NVTabular's outputs.
    models
        Engine stage → a function that runs the torch module on named arrays.
    batches
        Engine stage → batches to run both on.
    sources
        Source → the arrays that it was made from.
    reduced
        Engine stage → the model in its engine's reduced precision.
    """

    features: Mapping[str, FeatureRows]
    models: Mapping[str, Callable[[Arrays], dict[str, Array]]]
    batches: Mapping[str, list[dict[str, Array]]]
    sources: Mapping[str, Mapping[str, Array]]
    reduced: Mapping[str, ReducedModel] = field(default_factory=dict)


def verify_release(
    release: Release | str | Path,
    *,
    originals: Originals | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare every artefact of a release with its golden vectors, and with its originals if given.

    Parameters
    ----------
    release
        The release or its directory.
    originals
        What it was made from, during an export.
    progress
        Called after each check.

    Returns
    -------
    VerifyReport
        Differences are rows that are not ok, and do not raise.

    Raises
    ------
    ReleaseError
        A file is missing, changed, of another build or of another format.
    """
    opened = release if isinstance(release, Release) else open_release(release)
    # Later writes to a store are not part of the release, and must not count as differences.
    opened = Release(opened.path, opened.manifest, MemoryMapped())
    checks: dict[str, Callable[[], Iterator[VerifyRow]]] = {
        name: lambda check=check: check(opened)  # type: ignore[misc]
        for name, check in CHECKS.items()
    }
    if originals is not None:
        checks["originals"] = lambda: _originals(opened, originals)
    rows: list[VerifyRow] = []
    for number, (name, check) in enumerate(checks.items()):
        rows.extend(check())
        if progress is not None:
            progress(name, number + 1, len(checks))
    return VerifyReport(opened.build_id, tuple(rows))


def _files(release: Release) -> Iterator[VerifyRow]:
    check_files(release)
    files = release.manifest.files
    size = sum(entry.bytes for entry in files.values())
    yield VerifyRow("files", "size and SHA-256", len(files), None, "exact", True, f"{size / 1e6:.1f} MB")


def _triton(release: Release) -> Iterator[VerifyRow]:
    directory = release.path / "triton"
    models = sum(path.is_dir() for path in directory.iterdir()) if directory.is_dir() else 0
    try:
        validate_repository(directory)
    except InvalidConfig as error:
        yield VerifyRow("triton", "Triton's rules", models, None, "exact", False, str(error))
    else:
        yield VerifyRow("triton", "Triton's rules", models, None, "exact", True)


def _features(release: Release) -> Iterator[VerifyRow]:
    golden = StoredGolden(release)
    for name, entry in golden.contents.features.items():
        program = FeatureProgram.open(release.artefact(name, "features"))
        inputs, outputs = golden.columns(name)
        yield VerifyRow.of(
            name, "NVTabular (golden)", compare_columns(program.run(inputs, entry.rows), outputs)
        )


def _items(release: Release) -> Iterator[VerifyRow]:
    table = release.items
    program = FeatureProgram.open(release.artefact("item_features", "features"))
    columns = table.columns(column.name for column in program.inputs)
    made = transform(program, columns, table.size) if program.inputs else {}
    differences = [_table(table.packed(name), _fitted(made[name], table.packed(name)), name) for name in made]
    yield VerifyRow.of("items", "item program, all rows", merge(differences))
    found = compare_arrays(table.lookup.find(table.all_ids()), np.arange(table.size), name="item_id")
    yield VerifyRow.of("items", "id lookup, all rows", found)


def _table(stored: Array, made: Array, name: str) -> Difference:
    """Compare a table with its recomputed rows, and its pad row with zeros."""
    pad = np.zeros((1, *stored.shape[1:]), stored.dtype)
    return compare_arrays(np.asarray(stored), np.concatenate([made, pad]), EXACT, name)


def _fitted(made: Array, like: Array) -> Array:
    """Pad or cut a packed list to the width of the table's."""
    if made.ndim < 2 or made.shape[1] == like.shape[1]:
        return made
    out = np.zeros((len(made), *like.shape[1:]), made.dtype)
    width = min(made.shape[1], like.shape[1])
    out[:, :width] = made[:, :width]
    return out


def _rules(release: Release) -> Iterator[VerifyRow]:
    """Compare each rule with its plain reference, on a sample of items."""
    settings, table = release.settings, release.items
    columns = table.columns(dict.fromkeys(name for rule in settings.rules for name in rule.columns()))
    rows = np.unique(np.linspace(0, table.size - 1, RULE_ITEMS).astype(np.int64))
    item_of = plain_items(columns)
    for rule in settings.rules:
        want = np.array([rule.reference(item_of(row)) for row in rows.tolist()], np.bool_)
        difference = compare_arrays(rule.passes(columns)[rows], want, name=rule.name)
        yield VerifyRow.of("rules", f"{rule.name}, plain reference", difference)
    yield from _asking_rules(release)


def _asking_rules(release: Release) -> Iterator[VerifyRow]:
    """Compare rules that depend on the user or request with their references, for a few plain requests."""
    rules = RequestRules(release, clock=time)
    if not rules.opened:
        return
    settings, size = release.settings, release.items.size
    user_ids = StoredGolden(release).tensors("answers")[0]["user_id"][:RULE_USERS]
    blank = absent(release.stages[RETRIEVAL].inputs, len(user_ids))
    users = release.store.read(user_ids)
    for column, carried in user_rule_columns(release.manifest):
        stored = users.raw(column.name)
        nulls = null_column(column.dtype, column.is_list, len(user_ids))
        blank |= SentColumn(carried).tensors(nulls if stored is None else stored)
    given = rules.given({**blank, "user_id": user_ids})
    rows = np.unique(np.linspace(0, size - 1, RULE_ITEMS // RULE_USERS).astype(np.int64))
    places = np.broadcast_to(rows, (len(user_ids), len(rows)))
    user_of = plain_items(given.users)
    for number, opened in rules.opened:
        rule = settings.rules[number]
        assert isinstance(rule, AskingRule)
        columns = release.items.columns(rule.columns())
        item_of, own = plain_items(columns), rule.passes(columns)[rows]
        told = zip(range(len(user_ids)), given.now.tolist(), strict=True)
        want = [
            [rule.reference_of(item_of(row), user_of(user), {}, now) for row in rows.tolist()]
            for user, now in told
        ]
        got = np.broadcast_to(opened.allows(given, places), places.shape) & own
        difference = compare_arrays(got, np.array(want, np.bool_).reshape(got.shape), name=rule.name)
        yield VerifyRow.of("rules", f"{rule.name}, {len(user_ids)} users, plain reference", difference)


def _users(release: Release) -> Iterator[VerifyRow]:
    # The release's own users even if another store serves, because this checks the export.
    store = release.users
    users = store.at(np.arange(store.size + 1))
    program = FeatureProgram.open(release.artefact("user_features", "features"))
    columns = {}
    for column in program.inputs:
        stored = users.raw(column.name) if column.part == "user" else None
        nulls = null_column(column.dtype, column.is_list, store.size + 1)
        columns[column.name] = nulls if stored is None else stored
    made = transform(program, columns, store.size + 1) if program.inputs else {}
    differences = [
        compare_arrays(np.asarray(store.packed(name)), _fitted(rows, store.packed(name)), EXACT, name)
        for name, rows in made.items()
    ]
    yield VerifyRow.of("users", "user program, all rows", merge(differences))


def _sources(release: Release) -> Iterator[VerifyRow]:
    """Compare each source's candidates with its plain reference's, with the users' seen items masked."""
    golden, items = StoredGolden(release), release.manifest.catalogue.items
    for kind in release.settings.sources:
        artefact = release.artefact(f"source_{kind.name}", "source")
        inputs, want = golden.tensors("sources", kind.name)
        source = open_source(kind, artefact, items, release.settings.engine_threads)
        counts = inputs["seen_count"][:, 0]
        mask = make_mask(len(counts), items, inputs["seen_row"], counts)
        count = want["rows"].shape[1]
        scores, rows = source.candidates({name: inputs[name] for name in kind.reads()}, mask, count)
        scores = np.where(rows == items, np.float32(0), scores)
        yield _source_row(release, kind, scores, rows, want)


def _source_row(
    release: Release, kind: SourceKind, scores: Array, rows: Array, want: Mapping[str, Array]
) -> VerifyRow:
    """Compare rank by rank, or by recall if the source is approximate."""
    figures = release.manifest.sources[kind.name]
    measured, check = figures.get("recall", 1.0), "plain reference (golden)"
    if figures.get("exact", True):
        difference = compare_rankings(rows, scores, want["rows"], want["scores"])
        return VerifyRow.of(kind.name, check, difference, ENGINE)
    items = release.manifest.catalogue.items
    shares = []
    for expected, found, best, own in zip(want["rows"], rows, want["scores"], scores, strict=True):
        real = expected < items
        if real.any():
            # Items that tie at the cut-off are interchangeable.
            cut = best[real].min()
            ties = np.abs(own - cut) <= ENGINE.absolute + ENGINE.relative * abs(cut)
            reached = np.isin(found, expected[real]) | ((found < items) & ties)
            shares.append(min(np.count_nonzero(reached) / np.count_nonzero(real), 1.0))
    share = float(np.mean(shares)) if shares else 1.0
    floor = _floor(measured, len(shares))
    detail = f"recall {share:.4f} of {rows.shape[1]} (export measured {measured:.4f})"
    return VerifyRow(kind.name, check, rows.size, None, f"recall ≥ {floor:.4f}", share >= floor, detail)


def _floor(measured: float, users: int) -> float:
    """Return the lowest recall that sampling error of so few users explains, less :data:`RECALL_SLACK`."""
    # Two standard errors. A user's share is between 0 and 1, so its variance is at most r(1 - r).
    return float(measured - RECALL_SLACK - 2 * np.sqrt(measured * (1 - measured) / max(users, 1)))


def _answers(release: Release) -> Iterator[VerifyRow]:
    inputs, want = StoredGolden(release).tensors("answers")
    users, wanted = len(inputs["user_id"]), int(want["wanted"][0])
    opened, reasons = with_stand_ins(release)
    tolerance = ranker_tolerance(opened)
    chain, answers = Chain.open(opened), StoredAnswers(release, want, tolerance)
    said, warned = f"{users} users compared", users < wanted or ANSWERS in reasons
    if users < wanted:
        said = f"only {users} of {wanted} users compared: of the others too many candidates nearly tie"
    if ANSWERS in reasons:
        said = f"{said}; {reasons[ANSWERS]}"
    if not users:
        yield VerifyRow("answers", "opens", 0, None, "exact", True, said, warning=warned)
        return
    chain.check(inputs)
    for batch in sorted({1, min(users, release.settings.max_batch_size)}):
        parts = [
            chain.run({name: array[start : start + batch] for name, array in inputs.items()})[0]
            for start in range(0, users, batch)
        ]
        names = ["kept_row", "kept_score", "kept_source", "item_id", "score", "count", "status"]
        names += [name for name in ("rank_score", "history_row", "history_length") if name in parts[0]]
        got = {name: np.concatenate([part[name] for part in parts]) for name in names}
        difference, share = answers.compare(got)
        detail = said
        if answers.recall is not None:
            floor = _floor(answers.recall, users)
            detail = f"{said}, with {share:.4f} of the candidates of exact search"
            if share < floor:
                difference = replace(difference, ok=False, where=f"{detail}; expected at least {floor:.4f}")
        check = f"plain reference (golden), batch {batch}"
        yield replace(VerifyRow.of("answers", check, difference, tolerance, detail), warning=warned)


def _originals(release: Release, originals: Originals) -> Iterator[VerifyRow]:
    for name, fresh in originals.features.items():
        program = FeatureProgram.open(release.artefact(name, "features"))
        difference = compare_columns(program.run(fresh.inputs, fresh.rows), fresh.outputs)
        yield VerifyRow.of(name, f"NVTabular, {fresh.rows} rows", difference)
    yield from check_models(release, originals.models, originals.batches, originals.reduced)
    for name, arrays in originals.sources.items():
        artefact: Artefact = release.artefact(f"source_{name}", "source")
        stored = {key: np.asarray(artefact.array(key)) for key in arrays}
        yield VerifyRow.of(name, "as it was made", compare(stored, arrays))


#: Every check of a release, in the order of the table.
CHECKS: Mapping[str, Callable[[Release], Iterator[VerifyRow]]] = {
    "files": _files,
    "triton": _triton,
    "features": _features,
    "items": _items,
    "rules": _rules,
    "users": _users,
    "engines": check_engines,
    "sources": _sources,
    "answers": _answers,
}
