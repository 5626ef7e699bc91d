"""Eight bits: which products are quantised and with what scales, how far scores move, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_release import Parts, Ranker, small_release
from test_casts import IDS, WEIGHTS, network, run
from torch import nn

from tiercel_export.errors import ExportError, ExportInputError
from tiercel_export.models import tensorrt as makers
from tiercel_export.models.onnx import save_onnx
from tiercel_export.models.quantized import (
    EIGHT_BITS,
    Product,
    Scales,
    modelopt_scales,
    quantize_graph,
    wide_products,
)
from tiercel_export.models.readiness import graph_problems
from tiercel_export.release.goal import refuse_unmakeable
from tiercel_serving.engines import tensorrt as kinds
from tiercel_serving.engines.table import ENGINES
from tiercel_serving.engines.trt.specification import BuildSpecification
from tiercel_serving.errors import KindUnavailable

REQUESTS = [{"ids": IDS[:64]}, {"ids": IDS[64:128]}]


def largest(products: Sequence[Product], precision: str, batches: Any) -> list[Scales]:
    """Return scales as ModelOpt's ``max`` does; its import takes longer than all of these tests."""
    row, shown = EIGHT_BITS[precision], list(batches())
    found = []
    for place, product in enumerate(products):
        by_column = np.abs(product.weight).max(0) if precision == "int8" else np.abs(product.weight).max()
        read = max(float(np.abs(batch[place]).max()) for batch in shown)
        evened = np.ones(len(product.weight), np.float32) if precision == "int8" else None
        found.append(Scales(product.weight, by_column / row.largest, read / row.largest, evened))
    return found


def quantized(precision: str, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    return quantize_graph(model or network(), precision, REQUESTS, "ranking", largest)


def test_wide_products_and_no_other() -> None:
    found = wide_products(network())
    assert [(one.read, one.weight.shape) for one in found] == [("e", (32, 64)), ("h4", (64, 48))]
    np.testing.assert_allclose(found[1].weight, WEIGHTS["w2"].T.astype(np.float32))  # transposed in Gemm


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_products_are_quantized_and_nothing_else(precision: str) -> None:
    model = network()
    before = model.SerializeToString()
    made = quantized(precision, model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert graph_problems(made) == []
    types = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert types["table"] == types["w3"] == types["b1"] == types["b2"] == TensorProto.FLOAT
    assert "w1" not in types, "its bits stand in its place"
    bits = {name for name, kind in types.items() if kind == EIGHT_BITS[precision].number}
    assert bits == {f"{name}_{part}" for name in ("h1", "h5") for part in ("zero", "weight_bits")}
    kinds_of = [node.op_type for node in made.graph.node]
    assert kinds_of.count("QuantizeLinear") == 2
    assert kinds_of.count("DequantizeLinear") == 4
    assert {opset.version for opset in made.opset_import} == {max(18, EIGHT_BITS[precision].opset)}
    for tensor in (*made.graph.input, *made.graph.output):
        assert tensor.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.INT64)


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_the_numbers_move_a_little(precision: str) -> None:
    want, got = run(network(), IDS), run(quantized(precision), IDS)
    assert 1e-4 < np.abs(got - want).max() / want.std() < {"int8": 0.1, "fp8": 0.3}[precision]


def test_int8_is_what_numpy_computes() -> None:
    model = quantized("int8")
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    read = WEIGHTS["table"].astype(np.float32)[IDS[:4]]
    scale = known["h1_read_scale"]
    rounded = np.clip(np.rint(read / scale), -128, 127) * scale
    want = rounded @ (known["h1_weight_bits"] * known["h1_weight_scale"]) + known["b1"]
    model.graph.output.append(helper.make_tensor_value_info("h2", TensorProto.FLOAT, None))
    del model.graph.output[0]
    np.testing.assert_allclose(run(model, IDS[:4]), want, atol=1e-4)


def old(operator: str, **attributes: Any) -> onnx.ModelProto:
    """Return a graph of operator set 11 that ends with an operator."""
    model = network()
    model.graph.node.append(helper.make_node(operator, ["score"], ["last"], **attributes))
    model.graph.output[0].name = "last"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.opset_import[0].version = 11
    return model


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_an_older_graph_is_converted(precision: str) -> None:
    model = old("Unsqueeze", axes=[3])
    before = model.SerializeToString()
    made = quantized(precision, model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert {opset.version for opset in made.opset_import} == {EIGHT_BITS[precision].opset}
    np.testing.assert_array_equal(run(made, IDS), run(quantized(precision), IDS)[..., None])


def test_an_older_graph_that_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ExportError, match=r"ranking: .* from operator set 11 to 13 .* again with opset 18"):
        quantized("int8", old("Upsample"))


def narrow() -> onnx.ModelProto:
    """Return a graph whose only product has 8 columns."""
    return network(w1=WEIGHTS["w1"][:, :8], b1=WEIGHTS["b1"][:8], w2=WEIGHTS["w2"][:, :8])


def test_what_is_refused() -> None:
    with pytest.raises(ExportError, match=r"ranking: no layer of it takes and gives 16 columns or more"):
        quantized("int8", narrow())
    with pytest.raises(
        ExportInputError, match=r"ranking: fp8 learns its scales from requests .* give users and inter"
    ):
        quantize_graph(network(), "fp8", [], "ranking", largest)
    forked = network()
    body = helper.make_graph([], "b", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])])
    forked.graph.node.append(
        helper.make_node("If", ["c"], ["o"], name="fork", then_branch=body, else_branch=body)
    )
    with pytest.raises(ExportError, match="If at layer 'fork': control flow"):
        quantized("int8", forked)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name.endswith(("int8", "fp8"))])
def test_without_modelopt(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    monkeypatch.setattr(kinds, "load", lambda flavour: None)
    with pytest.raises(
        KindUnavailable, match=r'NVIDIA ModelOpt, which is not installed; pip install "tiercel\[modelopt\]"'
    ):
        refuse_unmakeable("tensorrt", engine)


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_a_plan_is_built(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makers, "quantize_graph", lambda *given: quantize_graph(*given, largest))
    save_onnx(network(), tmp_path / "model.onnx")
    calibrate = getattr(makers, f"calibrate_tensorrt_rtx_{precision}")
    calibrate(tmp_path, REQUESTS, max_batch=8)
    assert BuildSpecification.read(tmp_path).network == f"model.{precision}.onnx"
    assert (tmp_path / "model.plan").stat().st_size > 10_000
    got = makers.rounded_model(tmp_path / "model.onnx", precision, "score")({"ids": IDS})["score"]
    np.testing.assert_array_equal(got, run(quantized(precision), IDS))


@pytest.mark.slow
@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_modelopts_scales(precision: str) -> None:
    pytest.importorskip("modelopt", reason='ModelOpt is not installed: pip install "tiercel[modelopt]"')
    model = network()
    seen = [IDS[:64], IDS[64:128]]
    table = WEIGHTS["table"].astype(np.float32)

    def batches() -> Iterator[Sequence[np.ndarray]]:
        yield from ([table[ids]] for ids in seen)

    (product, _) = wide_products(model)
    (made,) = modelopt_scales([product], precision, batches)
    read = table[np.concatenate(seen)]
    if made.evened is None:
        np.testing.assert_allclose(made.read_scale * 448, np.abs(read).max(), rtol=1e-5)
        np.testing.assert_array_equal(made.weight, product.weight)
    else:
        np.testing.assert_allclose(made.read_scale * 127, np.abs(read * made.evened).max(), rtol=1e-4)
        np.testing.assert_allclose(made.weight * made.evened[:, None], product.weight, rtol=1e-4)
    got = run(quantize_graph(model, precision, REQUESTS, "ranking"), IDS)
    want = run(model, IDS)
    assert np.abs(got - want).max() / want.std() < {"int8": 0.1, "fp8": 0.3}[precision]


class Wide(Ranker):
    """The small release's ranker, with layers wide enough for eight bits, plus retrieval's score.

    Families add retrieval's score to their own; random weights alone would give no order to preserve.
    """

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item, self.last = nn.Linear(32, 32), nn.Linear(19, 32), nn.Linear(64, 2)

    def forward(
        self,
        user_cat: torch.Tensor,
        item_cat: torch.Tensor,
        item_num: torch.Tensor,
        kept_score: torch.Tensor,
        kept_source: torch.Tensor,
    ) -> torch.Tensor:
        return super().forward(user_cat, item_cat, item_num, kept_score, kept_source) + kept_score[..., None]


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_a_release_in_eight_bits(precision: str, parts: Parts, tmp_path: Path) -> None:
    pytest.importorskip("modelopt", reason='ModelOpt is not installed: pip install "tiercel[modelopt]"')
    engine = f"tensorrt-rtx-{precision}"
    torch.manual_seed(2)
    release = small_release(
        tmp_path / "small", parts, target="tensorrt-rtx", engine=engine, ranker=Wide().eval()
    )
    assert release.manifest.ranking is not None
    assert release.manifest.ranking.engine == engine
    assert {query.engine for query in release.manifest.queries.values()} == {"tensorrt-rtx"}
    folder = release.path / "artefacts" / "ranking"
    assert {"model.onnx", f"model.{precision}.onnx", "model.plan", "build.json"} <= {
        file.name for file in folder.iterdir()
    }
