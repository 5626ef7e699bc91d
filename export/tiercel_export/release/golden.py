"""Asking the oracles at export: what the golden vectors hold, and what the verification is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tiercel_serving.engines.onnx import Onnx
from tiercel_serving.engines.table import ENGINES, Reduced
from tiercel_serving.sources.table import Made
from tiercel_serving.spec import Array
from tiercel_serving.verify.checks import Originals
from tiercel_serving.verify.engine_checks import ReducedModel
from tiercel_serving.verify.golden import MODEL_ROWS, Golden

from ..models.prepare import DenseModel
from ..models.tensorrt import rounded_model
from .golden_answers import ask_for_answers
from .golden_features import ask_nvtabular
from .parts import Inputs, Programs
from .uncompiled import Uncompiled

#: Requests on which a ranker of less than float32 is compared with torch.
REDUCED_REQUESTS = 1000


def ask_oracles(
    inputs: Inputs,
    programs: Programs,
    uncompiled: Uncompiled,
    made: Mapping[str, Made],
    engine: str,
    artefacts: Path,
) -> tuple[Golden, Originals]:
    """Ask every oracle: NVTabular for features, torch for models, the plain references for the rest.

    Parameters
    ----------
    inputs, programs, uncompiled, made
        What the steps of the export made.
    engine
        The row of the dense models.
    artefacts
        Where their artefacts lie.
    """
    random = np.random.default_rng(inputs.seed)
    golden = Golden()
    features = ask_nvtabular(golden, inputs, programs, random)
    batches = _ask_models(golden, uncompiled, random)
    reduced = _reduced(uncompiled, engine, artefacts, random)
    _ask_sources(golden, uncompiled, made)
    ask_for_answers(golden, inputs, programs, uncompiled, made)
    models = {model.stage: model.run for model in uncompiled.models.dense}
    return golden, Originals(
        features, models, batches, {name: one.arrays for name, one in made.items()}, reduced
    )


def _few_users(uncompiled: Uncompiled) -> Array:
    """Return user rows spread over the store, and last the row of nobody."""
    last = max(uncompiled.nobody - 1, 0)
    return np.append(np.linspace(0, last, MODEL_ROWS - 1).astype(np.int64), uncompiled.nobody)


def _ask_models(
    golden: Golden, uncompiled: Uncompiled, random: np.random.Generator
) -> dict[str, list[dict[str, Array]]]:
    """Run the modules on a few users, and return batches to compare both with."""
    few = _few_users(uncompiled)
    many = random.integers(0, uncompiled.nobody + 1, uncompiled.settings.max_batch_size)
    batches = {}
    for model in uncompiled.models.dense:
        inputs = _model_inputs(uncompiled, model, few, random)
        golden.add_tensors("engines", model.stage, inputs, model.run(inputs))
        batches[model.stage] = [_model_inputs(uncompiled, model, rows, random) for rows in (many[:1], many)]
    return batches


def _reduced(
    uncompiled: Uncompiled, engine: str, artefacts: Path, random: np.random.Generator
) -> dict[str, ReducedModel]:
    """Return what a ranker of less than float32 will compute, and many requests for it."""
    kind: Any = ENGINES.find(engine)
    ranker = uncompiled.models.ranker
    if not isinstance(kind, Reduced) or ranker is None:
        return {}
    precision = engine.rpartition("-")[2]
    run = rounded_model(artefacts / ranker.stage / Onnx.file, precision, ranker.output.name)
    users = random.integers(0, uncompiled.nobody + 1, REDUCED_REQUESTS)
    size = uncompiled.settings.max_batch_size
    batches = [
        _model_inputs(uncompiled, ranker, users[start : start + size], random)
        for start in range(0, len(users), size)
    ]
    tolerance = ENGINES.find(engine).tolerance
    return {ranker.stage: ReducedModel(run, batches, tolerance, precision)}


def _model_inputs(
    uncompiled: Uncompiled, model: DenseModel, users: Array, random: np.random.Generator
) -> dict[str, Array]:
    """Return what a model takes for users; their candidates end in empty slots, the last one has none."""
    settings = uncompiled.settings
    shape = (len(users), settings.kept)
    rows = random.integers(0, uncompiled.items, shape)
    real = np.arange(shape[1]) < random.integers(1, shape[1] + 1, shape[0])[:, None]
    real[-1] &= len(users) == 1
    scores = np.where(real, random.normal(size=shape), 0).astype(np.float32)
    sources = np.where(real, random.integers(1, len(settings.sources) + 1, shape), 0).astype(np.int32)
    known = uncompiled.users(users) | uncompiled.candidates(
        np.where(real, rows, uncompiled.items), scores, sources
    )
    # The ranker for fewer candidates takes the first of them; every other tensor is as wide as its spec says.
    return {spec.name: known[spec.name][:, : spec.dims[0]] for spec in model.inputs}


def _ask_sources(golden: Golden, uncompiled: Uncompiled, made: Mapping[str, Made]) -> None:
    """Ask each source's plain reference for a few users, with what they have had."""
    rows = _few_users(uncompiled)
    users = uncompiled.with_queries(uncompiled.users(rows))
    seen = [uncompiled.seen(row) for row in rows]
    masks = {
        "seen_row": np.concatenate(seen).astype(np.int64),
        "seen_count": np.array([[len(of_user)] for of_user in seen], np.int64),
    }
    count = uncompiled.settings.candidates
    for kind in uncompiled.settings.sources:
        found = np.full((len(rows), count), uncompiled.items, np.int64)
        scores = np.zeros(found.shape, np.float32)
        for number, row in enumerate(rows):
            user = {name: tensor[number] for name, tensor in users.items()}
            best = kind.reference(made[kind.name].arrays, user, uncompiled.allowed(row, asking=False), count)
            found[number, : len(best)] = [row for row, _ in best]
            scores[number, : len(best)] = [score for _, score in best]
        inputs = {name: users[name] for name in kind.reads()} | masks
        golden.add_tensors("sources", kind.name, inputs, {"rows": found, "scores": scores})
