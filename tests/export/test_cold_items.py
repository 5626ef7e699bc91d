"""An item without interactions is found next to similar items, in a new export and between releases.

Each user has items of one maker, which each family learns by item ids. Dropout of item ids, or given vectors,
make the features carry that too, so an item with the features of a known one gets that one's neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nvtabular import ops

from tiercel_pipelines.data import Dataset
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.recipe import (
    VBPR,
    Index,
    Popular,
    Recipe,
    SampledSoftmax,
    ServingSettings,
    SoftmaxDNN,
    Synthetic,
    TwoTower,
)
from tiercel_pipelines.training import train_recipe
from tiercel_serving.live_items.store import ItemStore
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.stores.embedded import Embedded

pytestmark = pytest.mark.slow

MAKERS, EACH, USERS, HAD = 6, 12, 180, 6
#: An item with interactions, one with the same features but without any, and one added later.
WARM, COLD, LATER = 100 + MAKERS + 2, 9_001, 9_002

FAMILIES: dict[str, Any] = {
    "two_tower": TwoTower(
        dimension=16,
        embedding_dimension=16,
        max_epochs=30,
        item_id_dropout=0.3,
        task=SampledSoftmax(batch_size=128),
    ),
    "softmax_dnn": SoftmaxDNN(embedding_dimension=16, layers=(16,), max_epochs=30, item_id_dropout=0.5),
    "vbpr": VBPR(dimension=16, vector_dimension=8, length=MAKERS, max_epochs=60, learning_rate=0.05),
}


def dataset() -> Dataset:
    """Return items of alternating makers, and users who had half of the items of one maker."""
    rng = np.random.default_rng(0)
    maker = np.arange(MAKERS * EACH) % MAKERS
    items = pd.DataFrame(
        {
            "item_id": 100 + np.arange(len(maker)),
            "maker": [f"maker {one}" for one in maker],
            "embedding": list(np.eye(MAKERS, dtype=np.float32)[maker]),
        }
    )
    had = [rng.choice(np.flatnonzero(maker == user % MAKERS), HAD, replace=False) for user in range(USERS)]
    users = pd.DataFrame({"user_id": np.arange(1, USERS + 1)})
    interactions = pd.DataFrame(
        {
            "user_id": np.repeat(users["user_id"], HAD),
            "item_id": items["item_id"].to_numpy()[np.concatenate(had)],
            "timestamp": np.arange(USERS * HAD),
        }
    )
    return Dataset("makers", users, items, interactions.reset_index(drop=True))


def features() -> Any:
    user = ["user_id"] >> ops.Categorify() >> ops.TagAsUserID()
    item = ["item_id"] >> ops.Categorify() >> ops.TagAsItemID()
    maker = ["maker"] >> ops.Categorify() >> ops.TagAsItemFeatures()
    return user + item + maker + (["embedding"] >> ops.TagAsItemFeatures())


def recipe_of(family: str) -> Recipe:
    serving = ServingSettings(
        candidates=EACH,
        kept=EACH,
        k_max=EACH,
        history_length=HAD,
        history_columns=("item_id",),
        sources=(Index(family), Popular(quota=0)),
        related=(family,),
        added_items=1,
    )
    return Recipe("makers", Synthetic(), features, FAMILIES[family], serving=serving)


def like(release: Release, item: int) -> list[int]:
    """Return the items that ``related`` gives for an item, as many as there are others of its maker."""
    length, k = np.array([[1]], np.int32), np.array([[EACH]], np.int32)
    sent = {"related_item_ids": np.array([[item]]), "related_item_ids__length": length, "k": k}
    return [int(one) for one in Chain.open(release, ["related"]).run(sent)[0]["item_id"][0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_has_the_neighbours_of_one_with_its_features(family: str, tmp_path: Path) -> None:
    data = dataset()
    run = train_recipe(recipe_of(family), data.check(), tmp_path / "run")
    twin = data.items[data.items["item_id"] == WARM]
    items = pd.concat([data.items, twin.assign(item_id=COLD)], ignore_index=True)
    made = export_run(run, tmp_path / "release", items=items)
    assert made.manifest.tables["items"]["new"] == 1

    kind = Embedded(path=str(tmp_path / "store"))
    values = {"maker": twin["maker"].iloc[0], "embedding": twin["embedding"].iloc[0].tolist()}
    ItemStore.open(made, kind).put(LATER, values)
    served = Release(made.path, made.manifest, kind)

    alike = {WARM, COLD, LATER}
    of_warm = set(like(served, WARM)) - alike
    same_maker = set(data.items["item_id"][data.items["maker"] == values["maker"]]) - alike
    assert len(of_warm & same_maker) >= 0.8 * len(of_warm)
    for item in (COLD, LATER):
        near = like(served, item)
        assert len(set(near) & of_warm) >= 0.8 * len(of_warm), (item, near, of_warm)
        assert (alike - {item, WARM}) < set(near)
