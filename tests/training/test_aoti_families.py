"""Every family under AOTInductor: its package is compiled for this CPU and equals torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranking_contract import SPECS, RankingContract, call, drawn
from test_tensorrt_families import SUITES, query_model

from tiercel_export.models.aoti import make_aoti
from tiercel_export.models.dense import forward_inputs, frozen
from tiercel_pipelines.families.table import RANKING_FAMILIES, RETRIEVAL_FAMILIES
from tiercel_serving.engines.aoti import Aoti
from tiercel_serving.verify.compare import compare

pytestmark = pytest.mark.slow


def hold(module: Any, folder: Path) -> None:
    """Check that a module compiles with a dynamic batch and equals torch at every batch size."""
    inputs = forward_inputs(module, SPECS, "m")
    assert make_aoti(module, folder, inputs=inputs, output="out", max_batch=64, build_id="b") == ()
    engine = Aoti.open(folder / Aoti.file, ("out",))
    for size in (1, 3, 64):
        tensors = drawn(size, seed=size)
        want = call(module, tensors).numpy()
        got = engine.run({name: tensor.numpy() for name, tensor in tensors.items()})
        difference = compare(got, {"out": want}, Aoti.tolerance)
        assert difference.ok, (size, difference.where)
    engine.close()


@pytest.mark.parametrize("family", RANKING_FAMILIES)
def test_every_ranking_family_is_compiled(family: str, tmp_path: Path) -> None:
    suite = SUITES[family]
    if suite.kept_in != RankingContract.kept_in:
        pytest.skip("trees are no torch module, and exports say so")
    hold(frozen(suite().built(suite.settings)), tmp_path)


@pytest.mark.parametrize("family", RETRIEVAL_FAMILIES)
def test_every_query_model_is_compiled(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind: Any = RETRIEVAL_FAMILIES.find(family)
    if kind().dimension is None:
        pytest.skip("a family without queries has no model to compile")
    hold(frozen(query_model(kind())), tmp_path)
