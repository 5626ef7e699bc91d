"""Query the oracles at export, for the golden vectors and for the verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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

#: Number of requests on which a reduced-precision ranker is compared with the original.
REDUCED_REQUESTS = 1000

#: Number of requests that calibrate an 8-bit ranker.
CALIBRATION_REQUESTS = 256


@dataclass(frozen=True)
class ModelRequests:
    """Draws requests for models: users of the store, random items, and scores from real retrievals.

    Parameters
    ----------
    uncompiled
        Tables and models.
    random
        Random generator.
    scores, sources
        ``[N]`` float32 and int32: retrieval's scores of real candidates, and their sources.
    """

    uncompiled: Uncompiled
    random: np.random.Generator
    scores: Array
    sources: Array

    def inputs(self, model: DenseModel, users: Array) -> dict[str, Array]:
        """Return a model's inputs for users; candidates end in empty slots, except for a lone user.

        Of several users, the last one has no candidates at all.
        """
        settings, items, random = self.uncompiled.settings, self.uncompiled.items, self.random
        shape = (len(users), settings.kept)
        rows = random.integers(0, items, shape)
        real = np.arange(shape[1]) < random.integers(1, shape[1] + 1, shape[0])[:, None]
        real[-1] &= len(users) == 1
        if len(self.scores):
            drawn = random.integers(0, len(self.scores), shape)
            scores, sources = self.scores[drawn], self.sources[drawn]
        else:
            scores, sources = random.normal(size=shape), random.integers(1, len(settings.sources) + 1, shape)
        known = self.uncompiled.users(users) | self.uncompiled.candidates(
            np.where(real, rows, items),
            np.where(real, scores, 0).astype(np.float32),
            np.where(real, sources, 0).astype(np.int32),
        )
        # The ranker for fewer candidates takes the first ones; other inputs already have the spec's width.
        return {spec.name: known[spec.name][:, : spec.dims[0]] for spec in model.inputs}

    def batches(self, model: DenseModel, count: int) -> list[dict[str, Array]]:
        """Return ``count`` requests for a model, in batches of ``max_batch_size``."""
        users = self.random.integers(0, self.uncompiled.nobody + 1, count)
        size = self.uncompiled.settings.max_batch_size
        return [self.inputs(model, users[start : start + size]) for start in range(0, count, size)]

    def calibration(self, model: DenseModel) -> list[dict[str, Array]]:
        """Return requests for calibration; none if there are no users or no real candidates."""
        known = self.uncompiled.nobody > 0 and len(self.scores) > 0
        return self.batches(model, CALIBRATION_REQUESTS) if known else []


def ask_oracles(
    inputs: Inputs, programs: Programs, uncompiled: Uncompiled, made: Mapping[str, Made]
) -> tuple[Golden, Originals, ModelRequests]:
    """Query every oracle: NVTabular for features, the original models, and plain references for the rest.

    Parameters
    ----------
    inputs, programs, uncompiled, made
        The results of the export's earlier steps.

    Returns
    -------
    The golden vectors, the originals for the verification, and the generator of model requests.
    """
    random = np.random.default_rng(inputs.seed)
    golden = Golden()
    features = ask_nvtabular(golden, inputs, programs, random)
    requests = ModelRequests(uncompiled, random, *ask_for_answers(golden, inputs, programs, uncompiled, made))
    batches = _ask_models(golden, requests)
    _ask_sources(golden, uncompiled, made)
    models = {model.stage: model.run for model in uncompiled.models.dense}
    arrays = {name: one.arrays for name, one in made.items()}
    return golden, Originals(features, models, batches, arrays), requests


def _few_users(uncompiled: Uncompiled) -> Array:
    """Return user rows spread evenly over the store, followed by the row of unknown users."""
    last = max(uncompiled.nobody - 1, 0)
    return np.append(np.linspace(0, last, MODEL_ROWS - 1).astype(np.int64), uncompiled.nobody)


def _ask_models(golden: Golden, requests: ModelRequests) -> dict[str, list[dict[str, Array]]]:
    """Add golden vectors of each model for a few users; return batches for the verification, by stage."""
    uncompiled = requests.uncompiled
    few, most = _few_users(uncompiled), uncompiled.settings.max_batch_size
    many = requests.random.integers(0, uncompiled.nobody + 1, most)
    batches = {}
    for model in uncompiled.models.dense:
        inputs = requests.inputs(model, few)
        golden.add_tensors("engines", model.stage, inputs, model.run(inputs))
        batches[model.stage] = [requests.inputs(model, rows) for rows in (many[:1], many)]
    return batches


def with_reduced(originals: Originals, requests: ModelRequests, engine: str, artefacts: Path) -> Originals:
    """Return the originals with a CPU simulation of a reduced-precision ranker, and many requests for it.

    Parameters
    ----------
    originals
        The originals so far.
    requests
        The generator of requests.
    engine
        The engine's row for the dense models; others than reduced-precision rows add nothing.
    artefacts
        The directory of the models' artefacts.
    """
    kind: Any = ENGINES.find(engine)
    ranker = requests.uncompiled.models.ranker
    if not isinstance(kind, Reduced) or ranker is None:
        return originals
    precision = engine.rpartition("-")[2]
    run = rounded_model(artefacts / ranker.stage / Onnx.file, precision, ranker.output.name)
    batches = requests.batches(ranker, REDUCED_REQUESTS)
    model = ReducedModel(run, batches, ENGINES.find(engine).tolerance, precision)
    return replace(originals, reduced={ranker.stage: model})


def _ask_sources(golden: Golden, uncompiled: Uncompiled, made: Mapping[str, Made]) -> None:
    """Add golden vectors of each source from its plain reference, for a few users and their seen items."""
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
