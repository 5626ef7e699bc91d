"""The dense models of an export: what they take, what they give, and their engines on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.repository.targets import find_target
from tiercel_serving.spec import Array, StageSpec, TensorSpec
from tiercel_serving.stages.specs import stage_specs

from ..errors import ExportInputError
from ..release.given import check_vectors
from ..release.parts import Given, Models, Tables
from .dense import check_output, export_onnx, forward_inputs, frozen, run_module

#: Items that go through the item tower at once.
_ITEM_BLOCK = 4096


def prepare_models(
    given: Given,
    head: Mapping[str, Any],
    made: Tables,
    user_tower: torch.nn.Module,
    ranker: torch.nn.Module,
    item_vectors: Array | None,
    item_tower: torch.nn.Module | None,
) -> Models:
    """Find what each module takes, make the item vectors, and check every output's shape."""
    draft = {**head, "engines": {"user_tower": {"inputs": []}, "ranking": {"inputs": [], "tasks": 1}}}
    specs = {spec.name: spec for spec in stage_specs(draft)}
    of_users = {
        tensor.name: tensor
        for tensor in specs["user_features"].outputs
        if tensor.name.startswith(("user_cat", "user_num", "user_list_", "history_"))
    }
    of_items = _outputs(specs, "candidate_features")
    if item_vectors is None:
        assert item_tower is not None
        item_vectors = _vectors_of(item_tower, of_items, made, len(given.item_ids))
    tower, rank = frozen(user_tower), frozen(ranker)
    tower_inputs = forward_inputs(tower, of_users, "user_tower")
    check_output(tower, tower_inputs, [item_vectors.shape[1]], "user_tower")
    kept = {t.name: t for t in specs["filtering"].outputs if t.name in ("kept_score", "kept_source")}
    rank_inputs = forward_inputs(rank, {**of_users, **of_items, **kept}, "ranker")
    tasks = check_output(rank, rank_inputs, [given.settings.kept, None], "ranker")[1]
    weights = given.settings.task_weights
    if weights and len(weights) != tasks:
        raise ExportInputError(f"settings: {len(weights)} task_weights for a ranker with {tasks} tasks")
    engine = find_target(given.target).engine
    engines: dict[str, dict[str, Any]] = {
        "user_tower": {"engine": engine, "inputs": [t.name for t in tower_inputs]},
        "ranking": {"engine": engine, "inputs": [t.name for t in rank_inputs], "tasks": tasks},
    }
    for stage, module in (("user_tower", tower), ("ranking", rank)):
        engines[stage]["parameters"] = sum(parameter.numel() for parameter in module.parameters())
    catalogue = {**head["catalogue"], "dimension": item_vectors.shape[1]}
    stages = stage_specs({**head, "catalogue": catalogue, "engines": engines})
    return Models(item_vectors, tower, rank, stages, engines)


def _outputs(specs: Mapping[str, StageSpec], stage: str) -> dict[str, TensorSpec]:
    return {tensor.name: tensor for tensor in specs[stage].outputs} if stage in specs else {}


def _vectors_of(
    item_tower: torch.nn.Module, of_items: Mapping[str, TensorSpec], made: Tables, items: int
) -> Array:
    """Run the item tower over the item tables, without the pad row."""
    # At serving the item axis comes second; the tower sees rows.
    rows = {
        name: TensorSpec(name, tensor.dtype, tensor.dims[1:], doc=tensor.doc)
        for name, tensor in of_items.items()
    }
    tower = frozen(item_tower)
    inputs = forward_inputs(tower, rows, "item_tower")
    check_output(tower, inputs, [None], "item_tower")
    blocks = [
        run_module(
            tower,
            {t.name: made.item_packed[t.name][start : min(start + _ITEM_BLOCK, items)] for t in inputs},
        )
        for start in range(0, items, _ITEM_BLOCK)
    ]
    return check_vectors(np.concatenate(blocks), items, "item_tower")


def write_engines(staging: Path, head: Mapping[str, Any], models: Models) -> None:
    """Write the artefacts ``user_tower`` and ``ranking``."""
    specs = {spec.name: spec for spec in models.stages}
    build_id = str(head["build_id"])
    largest = int(head["settings"]["max_batch_size"])
    for stage, module in (("user_tower", models.user_tower), ("ranking", models.ranker)):
        path = staging / "artefacts" / stage
        path.mkdir(parents=True)
        spec = specs[stage]
        export_onnx(
            module,
            path / "model.onnx",
            inputs=spec.inputs,
            output=spec.outputs[0].name,
            max_batch=largest,
            build_id=build_id,
        )
        meta = {
            "engine": models.engines[stage]["engine"],
            "inputs": [tensor.to_json() for tensor in spec.inputs],
            "outputs": [tensor.to_json() for tensor in spec.outputs],
        }
        write_artefact(path, "engine", build_id, {}, meta)
