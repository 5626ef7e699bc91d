"""The hand-written service's files: data frames, vectors and exported torch modules of a trained run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tiercel_pipelines.families.layers import run_module
from tiercel_pipelines.training import TrainedRun
from tiercel_serving.errors import BenchError
from tiercel_serving.lookups.lookup import read_keys
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.stores.memory_mapped import USER_LOOKUP

#: Number of users per run of the stage that makes their tensors.
BATCH = 64

Arrays = dict[str, Any]


def prepare(run: TrainedRun, release: Release, folder: Path) -> None:
    """Write the folder that ``handwritten.py`` reads.

    Raises
    ------
    BenchError
        The run is not one two-tower model with a ranker, which is all that the service implements.
    """
    retrieval: dict[str, Any] = dict(run.load_retrieval())
    ranker: Any = run.load_ranking()
    if len(retrieval) != 1 or ranker is None or not hasattr(next(iter(retrieval.values())), "user_tower"):
        raise BenchError(
            "the hand-written service is one of a two-tower model and a ranker; train such a recipe"
        )
    [towers] = retrieval.values()
    folder.mkdir(parents=True, exist_ok=True)
    ids = read_keys(release.artefact("users", "users").arrays, USER_LOOKUP)
    user = _user_tensors(release, ids)
    items = release.items
    packed = {
        spec.name: np.asarray(items.packed(spec.name))[: items.size]
        for spec in release.stages["candidate_features"].outputs
    }
    _frame(user, "user_id", ids, _seen(release, ids)).to_pickle(folder / "users.pkl")
    _frame(packed, "item_id", items.ids(np.arange(items.size)), None).to_pickle(folder / "items.pkl")
    np.save(folder / "vectors.npy", run_module(towers.item_tower, packed))
    kept = release.settings.kept
    given = {
        **{name: array[:1] for name, array in user.items()},
        **{name: array[None, :kept] for name, array in packed.items()},
        "kept_score": np.zeros((1, kept), np.float32),
        "kept_source": np.ones((1, kept), np.int32),
    }
    for name, module in (("tower", towers.user_tower), ("ranker", ranker.module)):
        example = {key: torch.from_numpy(np.ascontiguousarray(given[key])) for key in module.input_names}
        torch.export.save(torch.export.export(module.eval(), (), example), folder / f"{name}.pt2")
    meta = {
        "tower": list(towers.user_tower.input_names),
        "ranker": list(ranker.module.input_names),
        "user": list(user),
        "candidates": release.settings.candidates,
        "kept": kept,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def _user_tensors(release: Release, ids: Any) -> Arrays:
    chain = Chain.open(release, ["user_features"])
    parts = [chain.run({"user_id": ids[at : at + BATCH, None]})[0] for at in range(0, len(ids), BATCH)]
    names = [name for name in parts[0] if name not in ("status", "excluded_row")]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _seen(release: Release, ids: Any) -> list[set[int]]:
    flat, counts = release.users.read(ids[:, None]).seen()
    return [set(part.tolist()) for part in np.split(flat, np.cumsum(counts)[:-1])]


def _frame(tensors: Arrays, id_name: str, ids: Any, seen: list[set[int]] | None) -> Any:
    """Return a frame with a row per entity, a column per packed column, and object columns for lists."""
    columns: Arrays = {id_name: ids}
    for name, array in tensors.items():
        if name in ("user_cat", "user_num", "item_cat", "item_num", "history_length"):
            columns |= {f"{name}.{place}": array[:, place] for place in range(array.shape[1])}
        else:
            columns[name] = list(array)
    if seen is not None:
        columns["seen"] = seen
    frame = pd.DataFrame(columns)
    return frame.set_index(id_name, drop=False)
