"""A typical hand-written service with FastAPI, pandas, torch and FAISS, in its own environment.

Start it by ``uvicorn handwritten:app --workers N``, where ``PREPARED`` names the folder of ``prepare.py``.
It imports nothing of Tiercel. It is faster than most such services, because features are encoded beforehand,
and users and items are data frames in memory.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

torch.set_num_threads(1)
PREPARED = Path(os.environ["PREPARED"])
META = json.loads((PREPARED / "meta.json").read_text())
USERS, ITEMS = (pd.read_pickle(PREPARED / f"{name}.pkl") for name in ("users", "items"))
#: Packed tensor → its columns in a frame.
COLUMNS: dict[str, list[str]] = {}
for column in (*USERS.columns, *ITEMS.columns):
    COLUMNS.setdefault(column.partition(".")[0], []).append(column)
# Without the guards of exported programs, which a hand-written module does not have.
TOWER, RANKER = (
    torch.export.load(PREPARED / f"{name}.pt2").module(check_guards=False) for name in ("tower", "ranker")
)
VECTORS = np.load(PREPARED / "vectors.npy")
INDEX = faiss.IndexFlatIP(VECTORS.shape[1])
INDEX.add(VECTORS)

app = FastAPI()


class Asked(BaseModel):
    """One request."""

    user_id: int
    k: int = 10


def tensor(frame: Any, name: str) -> torch.Tensor:
    """Return a packed tensor of a frame's rows: ``[rows, columns]``, or ``[rows, …]`` for a list column."""
    columns = COLUMNS[name]
    if columns == [name]:
        return torch.from_numpy(np.stack(frame[name].to_list()))
    return torch.from_numpy(frame[columns].to_numpy())


def recommend(asked: Asked) -> dict[str, Any]:
    """Return the best k of the items that the user has not had; 404 if the user is unknown."""
    if asked.user_id not in USERS.index:
        raise HTTPException(404, f"there is no user {asked.user_id}")
    user = USERS.loc[[asked.user_id]]
    with torch.inference_mode():
        query = TOWER(**{name: tensor(user, name) for name in META["tower"]})
        seen = user["seen"].iloc[0]
        scores, rows = INDEX.search(query.numpy(), META["candidates"] + len(seen))
        kept = [
            (score, row)
            for score, row in zip(scores[0], rows[0], strict=True)
            if row >= 0 and row not in seen
        ]
        kept = kept[: META["kept"]]
        items = ITEMS.iloc[[row for _, row in kept]]
        given = {
            "kept_score": torch.tensor([[score for score, _ in kept]], dtype=torch.float32),
            "kept_source": torch.ones((1, len(kept)), dtype=torch.int32),
        }
        for name in META["ranker"]:
            if name not in given:
                part = tensor(user, name) if name in META["user"] else tensor(items, name)[None]
                given[name] = part
        rank = RANKER(**given)[0, :, 0].numpy()
    best = np.argsort(-rank, kind="stable")[: asked.k]
    return {"item_id": items["item_id"].to_numpy()[best].tolist(), "score": rank[best].tolist()}


app.post("/recommend")(recommend)
