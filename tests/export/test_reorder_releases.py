"""A release with reorder steps is exported and verified, and refused where a step does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_release import SETTINGS, Parts, small_release

pytest.importorskip("nvtabular")

import msgspec

from tiercel_export.errors import ExportInputError
from tiercel_serving.reorder.cap import Cap
from tiercel_serving.reorder.constrained_sum import ConstrainedSum
from tiercel_serving.reorder.dpp import DPP
from tiercel_serving.reorder.gumbel_top_k import GumbelTopK
from tiercel_serving.reorder.mmr import MMR
from tiercel_serving.reorder.per_request import PerRequest
from tiercel_serving.reorder.pin_items import PinItems
from tiercel_serving.reorder.popularity_correction import PopularityCorrection
from tiercel_serving.runtime.chain import Chain

STEPS = (
    ConstrainedSum(maximise=0, floor=1, share=0.5),
    PopularityCorrection(source="popular", strength=0.05),
    DPP(column="tags", strength=0.1),
    MMR(source="towers", strength=PerRequest("diversity", 0.3, 0.0, 0.8)),
    Cap("kind", 4),
    GumbelTopK(),
    PinItems("item_id", (507,), 2),
)


def test_golden_answers_hold_with_steps_and_a_seed_explores(parts: Parts, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, reorder=STEPS)
    release = small_release(tmp_path / "r", parts, settings=settings, layout="staged")
    solved: Any = release.settings.reorder[0]
    assert 0 < solved.multiplier < 1e3
    chain = Chain.open(release)
    asked = {"user_id": np.array([[1000], [1003]]), "k": np.full((2, 1), 12, np.int32)}
    plain, _ = chain.run(asked)
    assert (plain["propensity"] == (np.arange(12) < plain["count"])).all(), "nothing is drawn without a seed"
    drawn, _ = chain.run({**asked, "seed": np.array([[1.0], [2.0]])})
    assert (drawn["propensity"][drawn["propensity"] != 0] < 1).any()
    assert (release.path / "triton/recommend/config.pbtxt").read_text().count('"propensity"') >= 2


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (MMR(column="price"), r"settings\.reorder\[0\]\.column: 'price' holds numbers"),
        (Cap("shade", 2), r"settings\.reorder\[0\]: 'shade' is not a column of `items`"),
        (PinItems("item_id", (1,)), r"settings\.reorder\[0\]\.values: no item has 1 in 'item_id'"),
        (MMR(source="tower"), r"settings\.reorder\[0\]\.source: there is no source 'tower'"),
        (
            MMR(source="towers", strength=PerRequest("age", 0.1)),
            r"settings\.reorder\[0\]\.strength\.name: 'age' is the name of a request column already",
        ),
    ],
)
def test_steps_that_do_not_fit_are_refused(parts: Parts, tmp_path: Path, step: Any, said: str) -> None:
    settings = msgspec.structs.replace(SETTINGS, reorder=(step,))
    with pytest.raises(ExportInputError, match=said):
        small_release(tmp_path / "r", parts, settings=settings)
