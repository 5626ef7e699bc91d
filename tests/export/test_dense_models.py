"""torch → ONNX: equal results at every batch size, and errors in the caller's terms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tiercel_export.errors import ExportError, ExportInputError
from tiercel_export.models.dense import check_output, example_inputs, forward_inputs, frozen
from tiercel_export.models.onnx import BUILD_ID_KEY, make_onnx
from tiercel_export.models.prepare import DenseModel
from tiercel_serving.engines.onnx import Onnx
from tiercel_serving.errors import ArtefactCorrupt
from tiercel_serving.spec import TensorSpec
from tiercel_serving.verify.compare import compare

K, L, MAX = 7, 5, 16
AVAILABLE = {
    spec.name: spec
    for spec in (
        TensorSpec("user_cat", "int64", (2,)),
        TensorSpec("user_num", "float32", (3,)),
        TensorSpec("history_cat", "int64", (L, 1)),
        TensorSpec("history_length", "int32", (1,)),
        TensorSpec("item_cat", "int64", (K, 2)),
        TensorSpec("kept_score", "float32", (K,)),
        TensorSpec("kept_source", "int32", (K,)),
    )
}


class Model(nn.Module):
    """Uses everything: embeddings, a masked mean, a broadcast user side, an argument of each dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.user = nn.Linear(8 + 3 + 4, 4)
        self.item = nn.Linear(8 + 2, 4)
        self.last = nn.Linear(8, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, user_cat, user_num, history_cat, history_length, item_cat, kept_score, kept_source):
        real = torch.arange(history_cat.shape[1]) < history_length
        mean = (self.table(history_cat[:, :, 0]) * real[..., None]).sum(1) / history_length.clamp(min=1)
        user = self.user(torch.cat([self.table(user_cat).flatten(1), user_num, mean], 1))
        more = torch.stack([kept_score, kept_source.float()], -1)
        item = self.item(torch.cat([self.table(item_cat).flatten(2), more], 2))
        wide = user[:, None].expand(-1, item.shape[1], -1)
        return self.last(self.dropout(torch.cat([wide, item], 2)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    torch.manual_seed(0)
    model = Model()
    folder = tmp_path_factory.mktemp("dense")
    inputs = forward_inputs(model, AVAILABLE, "model")
    make_onnx(frozen(model), folder, inputs=inputs, output="out", max_batch=MAX, build_id="b-1")
    return model, folder / Onnx.file


def batch(rows: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    arrays = {}
    for spec in AVAILABLE.values():
        shape = (rows, *spec.dims)
        arrays[spec.name] = (
            random.normal(size=shape).astype(np.float32)
            if spec.dtype == "float32"
            else random.integers(0, 6, shape).astype(spec.numpy_dtype)
        )
    arrays["history_length"][0] = 0
    for name in ("item_cat", "kept_score", "kept_source"):
        arrays[name][-1, K // 2 :] = 0
    return arrays


@pytest.mark.parametrize("rows", [1, 2, 3, MAX])
def test_onnx_equals_torch_at_every_batch(exported: tuple[Model, Path], rows: int) -> None:
    model, path = exported
    engine = Onnx.open(path, ["out"])
    inputs = forward_inputs(model, AVAILABLE, "model")
    oracle = DenseModel("ranking", frozen(model), inputs, TensorSpec("out", "float32", (K, 2)))
    assert engine.inputs == oracle.names
    for seed in range(5):
        arrays = batch(rows, seed)
        difference = compare(engine.run(arrays), oracle.run(arrays), Onnx.tolerance)
        assert difference.ok, difference.where
        assert difference.compared == rows * K * 2
        assert difference.worst < 1e-5


def test_exporting_leaves_the_module_as_it_was(exported: tuple[Model, Path]) -> None:
    assert exported[0].training


def test_graph_has_one_dynamic_axis_and_plain_operators(exported: tuple[Model, Path]) -> None:
    graph = onnx.load(str(exported[1]))
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    for tensor in [*graph.graph.input, *graph.graph.output]:
        dims = tensor.type.tensor_type.shape.dim
        assert dims[0].dim_param == "batch"
        assert all(dim.dim_value > 0 for dim in dims[1:])
    assert [tensor.name for tensor in graph.graph.input] == list(AVAILABLE)
    # Ids stay int64 from input to Gather, because each cast would cost a pass over all ids.
    casts = [node for node in graph.graph.node if node.op_type == "Cast"]
    ids = {"user_cat", "history_cat", "item_cat"}
    assert not any(set(node.input) & ids for node in casts)


def test_file_carries_its_build(exported: tuple[Model, Path]) -> None:
    properties = {entry.key: entry.value for entry in onnx.load(str(exported[1])).metadata_props}
    assert properties == {BUILD_ID_KEY: "b-1"}


def test_an_output_computed_from_users_alone_is_one_gemm_a_user(exported: tuple[Model, Path]) -> None:
    """The user's layer must see [B, …], not [B·K, …]."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(exported[1]))).graph
    weight = next(t.name for t in graph.initializer if t.name == "user.weight" or list(t.dims) == [4, 15])
    node = next(node for node in graph.node if weight in node.input)
    shape = next(v for v in graph.value_info if v.name == node.output[0]).type.tensor_type.shape.dim
    assert len(shape) == 2


class Wants(nn.Module):
    def forward(self, user_cat, nonsense):
        return user_cat


class Star(nn.Module):
    def forward(self, *tensors):
        return tensors[0]


class Nothing(nn.Module):
    def forward(self, scale: float = 1.0):
        return torch.zeros(1)


@pytest.mark.parametrize(
    ("module", "words"),
    [(Wants(), "'nonsense'"), (Star(), "must be named"), (Nothing(), "none of the tensors")],
)
def test_forward_must_name_tensors(module: nn.Module, words: str) -> None:
    with pytest.raises(ExportInputError, match=words) as error:
        forward_inputs(module, AVAILABLE, "ranker")
    assert "ranker" in str(error.value)
    assert "user_cat" in str(error.value)


def test_parameters_with_defaults_are_left_alone() -> None:
    class Scaled(nn.Module):
        def forward(self, user_num, scale: float = 2.0):
            return user_num * scale

    assert [spec.name for spec in forward_inputs(Scaled(), AVAILABLE, "m")] == ["user_num"]


class Mean(nn.Module):
    def forward(self, user_num, history_length):
        return user_num.sum(1, keepdim=True) / history_length


class Double(nn.Module):
    def forward(self, user_num):
        return user_num.double()


class Pair(nn.Module):
    def forward(self, user_num):
        return user_num, user_num


class Broken(nn.Module):
    def forward(self, user_num):
        return user_num @ torch.zeros(99, 1)


@pytest.mark.parametrize(
    ("module", "dims", "words"),
    [
        (Mean(), [1], "holds NaN"),
        (Double(), [3], "expected float32"),
        (Double(), [4], r"\[B, 4\]"),
        (Pair(), [3], "expected one tensor"),
        (Broken(), [1], "forward failed"),
    ],
)
def test_outputs_are_checked(module: nn.Module, dims: list[int], words: str) -> None:
    inputs = forward_inputs(module, AVAILABLE, "tower")
    with pytest.raises(ExportInputError, match=words):
        check_output(module, inputs, dims, "tower")


def test_a_free_length_is_told(exported: tuple[Model, Path]) -> None:
    model = frozen(exported[0])
    assert check_output(model, forward_inputs(model, AVAILABLE, "m"), [K, None], "m") == (K, 2)


def test_a_module_that_fixes_the_batch_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, user_num):
            return user_num.reshape(2, 3) * 2

    inputs = forward_inputs(Fixed(), AVAILABLE, "m")
    with pytest.raises(ExportError, match="batch is axis 0"):
        make_onnx(Fixed(), tmp_path, inputs=inputs, output="o", max_batch=4, build_id="b")


def test_examples_are_zeros_of_the_right_kind() -> None:
    arrays = example_inputs(list(AVAILABLE.values()), 2)
    assert all(array.dtype == AVAILABLE[name].numpy_dtype for name, array in arrays.items())
    assert arrays["item_cat"].shape == (2, K, 2)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(ArtefactCorrupt, match=r"m\.onnx"):
        Onnx.open(tmp_path / "m.onnx", ["out"])


def test_a_file_without_the_output_is_named(exported: tuple[Model, Path]) -> None:
    with pytest.raises(ArtefactCorrupt, match=r"expected the outputs \['query'\]"):
        Onnx.open(exported[1], ["query"])
