"""ONNX files in place of torch modules give the same answers, and unsupported ones are refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_release import SETTINGS, Parts, small_release

from tiercel_export import Vectors
from tiercel_export.errors import ExportInputError
from tiercel_export.models import onnx_model
from tiercel_export.models.dense import check_output, run_module
from tiercel_export.models.onnx import BUILD_ID_KEY, make_onnx, write_onnx
from tiercel_export.models.opened import open_model, run_over_rows
from tiercel_export.models.tensorrt import check_ready
from tiercel_serving.engines.onnx import Onnx
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.spec import TensorSpec
from tiercel_serving.verify.checks import verify_release

K = 3
SPECS = {
    spec.name: spec
    for spec in (
        TensorSpec("user_num", "float32", (2,)),
        TensorSpec("user_cat", "int64", (2,)),
        TensorSpec("kept_score", "float32", (K,)),
    )
}
FLOAT = TensorProto.FLOAT


def graph(
    *nodes: onnx.NodeProto,
    inputs: dict[str, Any] | None = None,
    outputs: dict[str, Any] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """Return ``user_num @ w`` by default; inputs and outputs map a name to (type, shape)."""
    given = {"user_num": (FLOAT, ["batch", 2])} if inputs is None else inputs
    given_out = {"query": (FLOAT, ["batch", 2])} if outputs is None else outputs
    values = {"w": np.array([[1, 2], [3, 4]], np.float32)} if weights is None else weights
    made = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["user_num", "w"], ["query"], name="product")],
        "given",
        [helper.make_tensor_value_info(name, *one) for name, one in given.items()],
        [helper.make_tensor_value_info(name, *one) for name, one in given_out.items()],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    domains = {node.domain for node in made.node} | {""}
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid(one, 1 if one else opset) for one in domains], ir_version=9
    )


def opened(model: onnx.ModelProto | str | Path, output: str = "query") -> Any:
    found, inputs = open_model(model, SPECS, output, "ranker")
    check_output(found, inputs, [None], "ranker")
    return found


def test_a_release_of_onnx_files_answers_as_that_of_the_modules(
    parts: Parts, release: Release, tmp_path: Path
) -> None:
    def export(module: torch.nn.Module, output: str, **inputs: tuple[int, ...]) -> Path:
        names, path = list(inputs), tmp_path / f"{output}.onnx"
        dtypes = {"history_length": torch.int32, "kept_source": torch.int32}
        kinds = [dtypes.get(n, torch.float32 if n.endswith(("num", "score")) else torch.int64) for n in names]
        arguments = tuple(torch.zeros(2, *inputs[n], dtype=k) for n, k in zip(names, kinds, strict=True))
        axes = {name: {0: "rows"} for name in (*names, output)}
        torch.onnx.export(
            module,
            arguments,
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=[output],
            dynamic_axes=axes,
        )
        return path

    length, kept = SETTINGS.history_length, SETTINGS.kept
    query = export(
        parts.user_tower, "q", user_cat=(4,), user_num=(1,), history_cat=(length, 2), history_length=(1,)
    )
    items = export(parts.item_tower, "v", item_cat=(2,), item_num=(1,), item_list_tags=(3,))
    ranker = export(
        parts.ranker,
        "r",
        user_cat=(4,),
        item_cat=(kept, 2),
        item_num=(kept, 1),
        kept_score=(kept,),
        kept_source=(kept,),
    )
    made = small_release(
        tmp_path / "r",
        parts,
        retrieval={"towers": Vectors(str(query), items)},
        ranker=ranker,
        layout="staged",
    )
    ranker.write_bytes(b"altered")  # the build uses the file as it was read
    assert verify_release(made.path).ok
    assert made.manifest.queries == release.manifest.queries
    assert made.manifest.ranking == release.manifest.ranking
    request = {"user_id": parts.users["user_id"].to_numpy()[:, None]}
    one, other = (Chain.open(each).run(request)[0] for each in (made, release))
    assert np.array_equal(one["item_id"], other["item_id"])
    np.testing.assert_allclose(one["score"], other["score"], atol=1e-5)
    written = onnx.load(str(made.path / "artefacts" / "ranking" / Onnx.file))
    assert {p.key: p.value for p in written.metadata_props}[BUILD_ID_KEY] == made.manifest.build_id
    assert not any("TensorRT" in note for note in made.manifest.notes)


def test_torch_only_engines_refuse_onnx_before_any_work(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(ExportInputError, match=r"ranker: it is not a torch module, .* engine 'aoti'.*onnx"):
        small_release(tmp_path / "r", parts, ranker="ranker.onnx", engine="aoti")


@pytest.mark.parametrize("rows", [1, 5])
def test_a_graph_is_run_and_written_as_it_is(tmp_path: Path, rows: int) -> None:
    model = opened(graph(outputs={"query": (FLOAT, None)}))
    numbers = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    expected = numbers @ np.array([[1, 2], [3, 4]], np.float32)
    assert np.array_equal(run_module(model, {"user_num": numbers, "other": numbers}), expected)
    assert np.array_equal(run_over_rows(graph(), SPECS, {"user_num": numbers}, rows, "items"), expected)
    assert model.weight_count == 4
    model.fix_output((2,))
    notes = make_onnx(model, tmp_path, inputs=model.inputs, output="query", max_batch=8, build_id="b")
    served = Onnx.open(tmp_path / Onnx.file, ["query"]).run({"user_num": numbers})
    assert np.array_equal(served["query"], expected)
    assert notes == ()
    check_ready(tmp_path / Onnx.file, "tensorrt")


def test_why_there_are_no_loops_is_kept_where_they_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiercel_export.models.loops.lower.DENSE", 3)
    model = opened(graph(outputs={"query": (FLOAT, None)}))
    model.fix_output((2,))
    for make, why in ((make_onnx, "not as loops: 4 dense weights, more than 3"), (write_onnx, None)):
        folder = tmp_path / str(why is None)
        folder.mkdir()
        make(model, folder, inputs=model.inputs, output="query", max_batch=8, build_id="b")
        assert Onnx.form(folder / Onnx.file) is None
        assert Onnx.unlowered(folder / Onnx.file) == why


def test_names_and_axes_become_those_of_the_stage() -> None:
    loose = graph(inputs={"user_num": (FLOAT, ["n", "width"])}, outputs={"query": (FLOAT, ["n", 2])})
    model = opened(loose, "query_towers")
    dims = [dim.dim_value or dim.dim_param for dim in model.graph.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 2]
    assert [put.name for put in model.graph.graph.output] == ["query_towers"]
    twice = graph(
        helper.make_node("MatMul", ["user_num", "w"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["query"]),
        outputs={"hidden": (FLOAT, ["batch", 2]), "query": (FLOAT, ["batch", 2])},
    )
    assert [put.name for put in opened(twice).graph.graph.output] == ["query"]
    with pytest.raises(ExportInputError, match=r"called 'rank_score', got \['hidden', 'query'\]"):
        opened(twice, "rank_score")
    inner = graph(
        helper.make_node("MatMul", ["user_num", "w"], ["rank_score"]),
        helper.make_node("Relu", ["rank_score"], ["query"]),
    )
    with pytest.raises(ExportInputError, match="'rank_score' is another tensor of the graph"):
        opened(inner, "rank_score")


def test_weights_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights = tmp_path / "m.onnx", tmp_path / "m.bin"
    onnx.save_model(graph(), str(path), save_as_external_data=True, location="m.bin", size_threshold=0)
    assert opened(path).weight_count == 4
    monkeypatch.setattr(onnx_model, "MESSAGE_BYTES", 8)  # as if the weights were too large for one message
    numbers = np.ones((1, 2), np.float32)
    assert run_module(opened(path), {"user_num": numbers}).tolist() == [[4, 6]]
    weights.write_bytes(weights.read_bytes()[:7])
    with pytest.raises(ExportInputError, match=r"m.onnx\): its weights? .*('w'|m.bin)"):
        opened(path)
    weights.unlink()
    with pytest.raises(ExportInputError, match=r"its weights lie in m.bin beside it, which can't be read"):
        opened(path)


def _relu(domain: str, name: str) -> onnx.ModelProto:
    return graph(helper.make_node(name, ["user_num"], ["query"], domain=domain), weights={})


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "operator": (lambda: _relu("", "Swoosh"), r"got Swoosh \(operator set 18\)"),
    "domain": (lambda: _relu("mine", "Swoosh"), "expected operators of ONNX, got mine.Swoosh"),
    "operator of a newer set": (lambda: _relu("", "Gelu"), r"got Gelu \(operator set 18\)"),
    "operator set": (lambda: graph(opset=99), r"operator set of 7 to \d+, got 99; .*opset 18"),
    "input": (
        lambda: graph(inputs={"age": (FLOAT, ["b", 2])}),
        r"got inputs 'age'; available here: kept_score, user_cat, user_num",
    ),
    "no input": (lambda: graph(helper.make_node("Relu", ["w"], ["query"]), inputs={}), "got no input"),
    "float64": (
        lambda: graph(inputs={"user_num": (TensorProto.DOUBLE, ["b", 2])}),
        "input 'user_num': expected float32, got float64; cast it",
    ),
    "bfloat16": (
        lambda: graph(inputs={"user_num": (TensorProto.BFLOAT16, ["b", 2])}),
        "expected float32, got bfloat16",
    ),
    "int32 categories": (
        lambda: graph(inputs={"user_cat": (TensorProto.INT32, ["b", 2])}),
        "input 'user_cat': expected int64, got int32",
    ),
    "fixed batch": (
        lambda: graph(inputs={"user_num": (FLOAT, [1, 2])}),
        r"dynamic batch as axis 0, got \[1, 2\].*dynamic_axes=\{'user_num': \{0: 'batch'\}\}",
    ),
    "width": (
        lambda: graph(inputs={"user_num": (FLOAT, ["b", 7])}),
        r"expected \['B', 2\] as this recommender has it, got \['b', 7\]",
    ),
    "rank": (lambda: graph(inputs={"user_num": (FLOAT, ["b", 2, 1])}), r"got \['b', 2, 1\]"),
    "output type": (
        lambda: graph(
            helper.make_node("Cast", ["user_num"], ["query"], to=TensorProto.DOUBLE),
            outputs={"query": (TensorProto.DOUBLE, ["b", 2])},
        ),
        "output 'query': expected float32, got float64",
    ),
    "output shape": (
        lambda: graph(
            helper.make_node("Unsqueeze", ["user_num", "one"], ["query"]), weights={"one": np.array([1])}
        ),
        r"expected float32 \[B, any\], got float32 \[3, 1, 2\] for a batch of 3",
    ),
    "batch within": (
        lambda: graph(
            helper.make_node("Reshape", ["user_num", "shape"], ["query"]),
            weights={"shape": np.array([1, 2])},
        ),
        r"ranker: the graph failed on \(user_num float32 \[3, 2\]\)",
    ),
    "weights": (
        lambda: graph(weights={"w": np.array([[1, np.nan], [3, np.inf]], np.float32)}),
        "2 of the 4 numbers of its weight 'w' are NaN or infinite",
    ),
    "NaN for padding": (
        lambda: graph(helper.make_node("Div", ["user_num", "user_num"], ["query"]), weights={}),
        "the output for padding .* holds NaN",
    ),
    "no nodes": (onnx.ModelProto, "it has no nodes"),
    "invalid": (
        lambda: graph(helper.make_node("MatMul", ["user_num", "lost"], ["query"])),
        "expected a valid ONNX graph",
    ),
    "not typed": (
        lambda: graph(
            helper.make_node("MatMul", ["user_cat", "w"], ["query"]),
            inputs={"user_cat": (TensorProto.INT64, ["b", 2])},
        ),
        r"ONNX Runtime \S+ can't open it",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused_is_named(fault: str) -> None:
    make, message = REFUSED[fault]
    with pytest.raises(ExportInputError, match=message):
        opened(make())


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportInputError, match=r"ranker \(.*m.onnx\): there is no such file"):
        opened(path)
    path.write_bytes(graph().SerializeToString()[:-20])
    with pytest.raises(ExportInputError, match=r"can't be read as one .*cut short"):
        opened(str(path))
    with pytest.raises(ExportInputError, match=r"ranker: expected a torch module, the path .* got int"):
        open_model(3, SPECS, "query", "ranker")


def test_the_guide_exports_a_file_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code block of docs/bring-your-own.md with the ranker of its example."""
    guide = (Path(__file__).parents[2] / "docs" / "bring-your-own.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(shapes = .*?)```", guide, re.DOTALL)
    code = block[: block.index("release = build_release(")]

    class BookRanker(torch.nn.Module):
        def forward(self, item_num: torch.Tensor, kept_score: torch.Tensor) -> torch.Tensor:
            return (kept_score + 0.5 * item_num[..., 0])[..., None]

    monkeypatch.chdir(tmp_path)
    exec(code, {"torch": torch, "BookRanker": BookRanker})
    kept = 40
    specs = {
        "item_num": TensorSpec("item_num", "float32", (kept, 1)),
        "kept_score": TensorSpec("kept_score", "float32", (kept,)),
    }
    model, inputs = open_model("ranker.onnx", specs, "rank_score", "ranker")
    assert check_output(model, inputs, [kept, None], "ranker") == (kept, 1)
