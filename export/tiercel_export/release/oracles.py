"""Asking the oracles at export: what the golden vectors hold, and what the verification is shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from tiercel_serving.features import InputColumn
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Pipeline
from tiercel_serving.spec import Array
from tiercel_serving.verify import golden
from tiercel_serving.verify.checks import FeatureSource, Sources

from ..errors import ExportInputError
from ..models.runners import TorchRunner
from ..workflow.cut import CompiledProgram
from ..workflow.frames import FrameOracle, columns_from_frame, golden_inputs, oracle_frame
from . import reference
from .parts import Given, Models, Programs, Tables

#: Users whose queries measure the index, and rows that are compared with NVTabular at export.
RECALL_QUERIES, SOURCE_ROWS = 1000, 2000


def make_oracle(given: Given, made: Tables, models: Models, head: Mapping[str, Any]) -> reference.Oracle:
    """Put the uncompiled parts together."""
    item_cat = head["packed"]["item_cat"]
    return reference.Oracle(
        settings=given.settings,
        stages={spec.name: spec for spec in models.stages},
        user_tower=models.user_tower,
        ranker=models.ranker,
        vectors=models.vectors,
        user_arrays=made.user_arrays,
        item_packed=made.item_packed,
        history_columns=[item_cat.index(name) for name in given.settings.history_columns],
        popular_rows=made.item_arrays["popular_rows"],
        popular_scores=made.item_arrays["popular_scores"],
        allowed=reference.allowed_items(given.items, given.settings.rules),
        item_ids=given.item_ids,
    )


def user_queries(given: Given, oracle: reference.Oracle) -> Array:
    """Return queries like those to come: real users', or item vectors where there are no users."""
    random = np.random.default_rng(given.seed)
    if len(given.user_ids):
        count = min(RECALL_QUERIES, len(given.user_ids))
        rows = np.sort(random.choice(len(given.user_ids), count, replace=False))
        queries = np.concatenate(
            [oracle.query(oracle.of_users(block)) for block in np.array_split(rows, -(-count // 256))]
        )
    else:
        count = min(RECALL_QUERIES, len(oracle.vectors))
        queries = oracle.vectors[np.sort(random.choice(len(oracle.vectors), count, replace=False))]
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise ExportInputError(
            f"user_tower: {int((~finite).sum())} of {len(finite)} users' vectors hold NaN or infinity; a "
            "null in a numeric column stays NaN unless the workflow fills it (FillMissing)"
        )
    return np.ascontiguousarray(queries, np.float32)


def write_golden(
    release: Release, given: Given, programs: Programs, oracle: reference.Oracle, *, exact: bool
) -> Sources:
    """Ask every oracle, write the artefact ``golden``, and return the sources for the verification."""
    random = np.random.default_rng(given.seed)
    arrays: dict[str, Array] = {}
    meta: dict[str, Any] = {"features": {}, "engines": {}}
    features = {}
    for artefact, program, frame in (
        ("user_features", programs.user, _user_frame(given, programs, random)),
        ("item_features", programs.item, given.items),
    ):
        if not program.inputs or frame is None:
            continue
        ask = FrameOracle(programs.parts, program.part)
        few = _few_rows(ask, program, frame)
        arrays |= golden.put_columns(f"{artefact}.in", few.inputs)
        arrays |= golden.put_columns(f"{artefact}.out", few.outputs)
        meta["features"][artefact] = {
            "inputs": list(few.inputs),
            "outputs": list(few.outputs),
            "rows": few.rows,
        }
        picked = random.choice(len(frame), min(SOURCE_ROWS, len(frame)), replace=False)
        features[artefact] = _asked(ask, program, oracle_frame(frame.iloc[picked], program.inputs))
    runners, batches = _model_golden(release, oracle, arrays, meta, random)
    queries = user_queries(given, oracle)[: golden.PIPELINE_USERS]
    searched = golden.index_golden(oracle.vectors, queries, given.settings.candidates)
    arrays |= golden.put_arrays("index", searched)
    _pipeline_golden(release, given, oracle, arrays, meta, exact=exact)
    write_artefact(release.path / "artefacts" / "golden", "golden", release.build_id, arrays, meta)
    return Sources(features, runners, batches, oracle.vectors)


def _asked(ask: FrameOracle, program: CompiledProgram, frame: pd.DataFrame) -> FeatureSource:
    inputs = columns_from_frame(frame, program.inputs)
    outputs = reference.oracle_columns(ask(frame), program.outputs)
    return FeatureSource(inputs, outputs, len(frame))


def _few_rows(ask: FrameOracle, program: CompiledProgram, frame: pd.DataFrame) -> FeatureSource:
    """Ask for some real rows and one with nulls, as far as NVTabular answers those.

    It raises on some nulls, in an integer id for example; then only the columns in which it takes one
    are null.
    """
    full = golden_inputs(frame, program.inputs, golden.FEATURE_ROWS)
    with _silent("merlin"):
        try:
            return _asked(ask, program, full)
        except Exception:
            real, nulls = full.iloc[:-1], full.iloc[-1]
            row = real.iloc[0].astype(object)
            for column in program.inputs:
                trial = row.copy()
                trial[column.name] = nulls[column.name]
                try:
                    ask(_with_row(real, trial, program))
                except Exception:
                    continue
                row = trial
        return _asked(ask, program, _with_row(real, row, program))


def _with_row(frame: pd.DataFrame, row: pd.Series, program: CompiledProgram) -> pd.DataFrame:
    return oracle_frame(
        pd.concat([frame.astype(object), row.to_frame().T], ignore_index=True), program.inputs
    )


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a library from logging failures that are expected here."""
    library = logging.getLogger(name)
    disabled, library.disabled = library.disabled, True
    try:
        yield
    finally:
        library.disabled = disabled


def _user_frame(given: Given, programs: Programs, random: np.random.Generator) -> pd.DataFrame | None:
    """Return raw user rows with examples of the context beside them; None without users."""
    if given.users is None:
        return None
    frame = given.users
    context = [column for column in programs.user.inputs if column.part != "user"]
    if context:
        frame = frame.copy()
    for column in context:
        source = given.interactions
        if source is not None and column.name in source.columns and len(source):
            picked = source[column.name].iloc[random.integers(0, len(source), len(frame))]
            frame[column.name] = picked.to_numpy()
        else:
            frame[column.name] = _made_up(column, len(frame), random)
    return frame


def _made_up(column: InputColumn, rows: int, random: np.random.Generator) -> pd.Series:
    """Return values for a column of which no example was given."""
    if column.dtype == "bytes":
        values = [f"value {number}" for number in random.integers(0, 5, rows)]
    elif column.dtype == "bool":
        values = (random.random(rows) < 0.5).tolist()
    elif column.dtype == "int64":
        values = random.integers(0, 50, rows).tolist()
    else:
        values = random.normal(size=rows).astype(column.dtype).tolist()
    return pd.Series([[value] for value in values] if column.is_list else values)


def _model_golden(
    release: Release,
    oracle: reference.Oracle,
    arrays: dict[str, Array],
    meta: dict[str, Any],
    random: np.random.Generator,
) -> tuple[dict[str, TorchRunner], dict[str, list[dict[str, Array]]]]:
    """Run the modules on a few users, the user of whom nothing is known last."""
    specs = release.stages
    runners, batches = {}, {}
    nobody = len(oracle.user_arrays["seen_offsets"]) - 2
    few = np.append(np.linspace(0, max(nobody - 1, 0), golden.MODEL_ROWS - 1).astype(np.int64), nobody)
    many = random.integers(0, nobody + 1, oracle.settings.max_batch_size)
    for stage, module in (("user_tower", oracle.user_tower), ("ranking", oracle.ranker)):
        runner = TorchRunner(module, [t.name for t in specs[stage].inputs], specs[stage].outputs[0].name)
        inputs = _model_inputs(oracle, stage, few, random)
        outputs = runner.run(inputs)
        arrays |= golden.put_arrays(f"{stage}.in", inputs)
        arrays |= golden.put_arrays(f"{stage}.out", outputs)
        meta["engines"][stage] = {"inputs": list(inputs), "outputs": list(outputs)}
        runners[stage] = runner
        batches[stage] = [_model_inputs(oracle, stage, rows, random) for rows in (many[:1], many)]
    return runners, batches


def _model_inputs(
    oracle: reference.Oracle, stage: str, users: Array, random: np.random.Generator
) -> dict[str, Array]:
    """Return what a model takes for users; their candidates end in empty slots, the last one has none."""
    tensors = oracle.of_users(users)
    if stage == "user_tower":
        return oracle.tower_inputs(tensors)
    shape = (len(users), oracle.settings.kept)
    rows = random.integers(0, oracle.items, shape)
    real = np.arange(shape[1]) < random.integers(1, shape[1] + 1, shape[0])[:, None]
    real[-1] &= len(users) == 1
    scores = np.where(real, random.normal(size=shape), 0).astype(np.float32)
    sources = np.where(real, random.integers(1, len(oracle.settings.sources) + 1, shape), 0)
    return oracle.ranker_inputs(tensors, np.where(real, rows, oracle.items), scores, sources.astype(np.int32))


def _pipeline_golden(
    release: Release,
    given: Given,
    oracle: reference.Oracle,
    arrays: dict[str, Array],
    meta: dict[str, Any],
    *,
    exact: bool,
) -> None:
    """Answer for some users; those whose candidates depend on the last bit of a score are left out."""
    users = len(given.user_ids)
    rows = np.unique(np.linspace(0, max(users - 1, 0), golden.PIPELINE_USERS).astype(np.int64))[:users]
    ids = given.user_ids[rows]
    if given.settings.unknown_users == "popular":
        rows = np.append(rows, users)
        ids = np.concatenate([ids, stranger(given.user_ids)])
    if not len(rows):
        ids, rows = stranger(given.user_ids), np.array([users])
    inputs = {"user_id": ids[:, None], "k": np.full((len(ids), 1), given.settings.k_max, np.int32)}
    retrieved = None
    if not exact:
        found, _ = Pipeline.open(release, ("user_features", "user_tower", "retrieval")).run(inputs)
        retrieved = found["retrieved_row"], found["source"]
    answers = reference.answer(oracle, rows, retrieved)
    clear = answers.clear
    arrays |= golden.put_arrays("pipeline.in", {name: array[clear] for name, array in inputs.items()})
    outputs = {name: array[clear] for name, array in answers.outputs.items()}
    arrays |= golden.put_arrays("pipeline.out", outputs)
    meta["pipeline"] = {"inputs": list(inputs), "outputs": list(outputs)}


def stranger(user_ids: Array) -> Array:
    """Return ``[1]`` an id that no user has."""
    if user_ids.dtype == np.object_:
        longest = max((len(value) for value in user_ids), default=0)
        unknown = np.empty(1, object)
        unknown[0] = b"?" * (longest + 1)
        return unknown
    taken = set(user_ids.tolist())
    return np.array([next(i for i in range(-1, -len(taken) - 2, -1) if i not in taken)], np.int64)
