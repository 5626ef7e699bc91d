"""Every family under TensorRT: its graph is ready, and its plan is built in FP32, FP16 and BF16.

Executed with TensorRT-RTX, whose parser is TensorRT's and which needs no GPU to build.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_ranking_families
import torch
from ranking_contract import INPUTS, SPECS, USERS, RankingContract, call, drawn, world

from tiercel_export.models.casts import HALF_TYPES
from tiercel_export.models.dense import forward_inputs, frozen
from tiercel_export.models.onnx import make_onnx
from tiercel_export.models.tensorrt import check_ready, rounded_model, write_cast
from tiercel_pipelines.arrays.inputs import ListColumn
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.families.table import RANKING_FAMILIES, RETRIEVAL_FAMILIES, Plan, RetrievalData
from tiercel_pipelines.recipe import replace
from tiercel_serving.engines.trt.build import build_plan, network_sha256
from tiercel_serving.engines.trt.flavours import FLAVOURS, load
from tiercel_serving.engines.trt.specification import BuildSpecification
from tiercel_serving.spec import TensorSpec
from tiercel_serving.verify.compare import TOP, same_top

pytestmark = pytest.mark.tensorrt

RTX = FLAVOURS["tensorrt_rtx"]
#: Number of ranked candidates, enough for a top ten.
K = 60
REQUESTS = 1000


def build(folder: Path, network: Path) -> None:
    check_ready(network, RTX.name)
    plan = build_plan(
        load(RTX), RTX, folder, BuildSpecification(network.name, network_sha256(network), (1, 8, 64))
    )
    assert plan.outputs == ("out",)
    assert plan.layers > 1
    assert len(plan.plan) > 1000


def in_every_precision(module: Any, folder: Path, specs: dict[str, TensorSpec]) -> None:
    inputs = forward_inputs(module, specs, "m")
    assert make_onnx(module, folder, inputs=inputs, output="out", max_batch=64, build_id="b") == ()
    build(folder, folder / "model.onnx")
    for precision in HALF_TYPES:
        build(folder, write_cast(folder / "model.onnx", precision))


def ranking_specs() -> dict[str, TensorSpec]:
    """Return the specs of the contract's tensors, with :data:`K` candidates."""
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in drawn(1, count=K).items()}
    return {name: TensorSpec(name, spec.dtype, shapes[name]) for name, spec in SPECS.items()}


def hold(suite: type[RankingContract], folder: Path, settings: Any) -> None:
    """Check that a ranker builds, and that in half precision its ten best are those of torch."""
    module = frozen(suite().built(settings))
    in_every_precision(module, folder, ranking_specs())
    requests = drawn(REQUESTS, seed=9, count=K)
    want = call(module, requests).numpy()
    arrays = {name: tensor.numpy() for name, tensor in requests.items()}
    shares = {}
    for precision in HALF_TYPES:
        got = rounded_model(folder / "model.onnx", precision, "out")(arrays)["out"]
        shares[precision] = float(same_top(got, want, TOP).mean())
    assert shares["fp16"] >= LEAST["fp16"], shares
    assert shares["bf16"] >= LEAST["bf16"], shares


#: Weights are random, not trained, so the tenth of sixty candidates is hardly better than the eleventh, and
#: BF16's eight bits swap more of them than with a trained ranker, for which an export requires 99%.
LEAST = {"fp16": 0.99, "bf16": 0.9}

SUITES = {RANKING_FAMILIES.name_of(suite.settings): suite for suite in RankingContract.__subclasses__()}


def test_the_guide_says_of_every_family_whether_it_builds() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    table = guide.split("| family | builds |")[1].split("\n\n")[0]
    named = re.findall(r"\w+", " ".join(line.split("|")[1] for line in table.splitlines()[2:]))
    assert sorted(named) == sorted([*RANKING_FAMILIES, *RETRIEVAL_FAMILIES])


@pytest.mark.slow
@pytest.mark.parametrize("family", RANKING_FAMILIES)
def test_every_ranking_family_is_built(family: str, tmp_path: Path) -> None:
    if SUITES[family].kept_in != RankingContract.kept_in:
        pytest.skip("TensorRT has no trees, and exports say so")
    for place, settings in enumerate(SUITES[family]().each()):
        folder = tmp_path / str(place)
        folder.mkdir()
        hold(SUITES[family], folder, settings)


def test_one_small_family_is_built(tmp_path: Path) -> None:
    """The others are exported with ``--slow``; torch's export is slow, not the builder."""
    suite = test_ranking_families.TestDLRM
    in_every_precision(frozen(suite().built(suite.settings)), tmp_path, ranking_specs())


def query_model(settings: Any) -> Any:
    """Return the query model of a family, trained for an epoch on the contract's small world."""
    packed, lists = world(from_history=False)
    users, places = np.nonzero(lists.weights)
    items = lists.rows[users, places]
    rated = {"rating": 1.0 + items % 5}
    pairs = Pairs.build(users, items, users, np.ones(len(users)), USERS, numbers=rated)
    inputs = INPUTS
    if "vectors" in settings.__struct_fields__:
        given = ListColumn(settings.vectors, None)
        inputs = replace(INPUTS, item=replace(INPUTS.item, lists=(*INPUTS.item.lists, given)))
        vectors = np.random.default_rng(0).normal(size=(packed.n_items + 1, settings.length))
        name = inputs.item.list_tensor(given)
        packed = dataclasses.replace(packed, item={**packed.item, name: vectors.astype(np.float32)})
    if "max_epochs" in settings.__struct_fields__:
        settings = replace(settings, max_epochs=1)
    fitted, _ = settings.fit(RetrievalData(packed, pairs, inputs), Plan(0, "m", epochs=1))
    return fitted.served().query


@pytest.mark.slow
@pytest.mark.parametrize("family", RETRIEVAL_FAMILIES)
def test_every_query_model_is_built(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind: Any = RETRIEVAL_FAMILIES.find(family)
    if kind().dimension is None:
        pytest.skip("a family without queries has no model to build")
    module = query_model(kind())
    in_every_precision(frozen(module), tmp_path, dict(SPECS))
    arrays = {name: tensor.numpy() for name, tensor in drawn(100).items()}
    want = call(module.eval(), drawn(100)).numpy()
    for precision in HALF_TYPES:
        got = rounded_model(tmp_path / "model.onnx", precision, "out")(arrays)["out"]
        assert np.abs(got - want).max() <= {"fp16": 5e-3, "bf16": 5e-2}[precision] * np.abs(want).max()
