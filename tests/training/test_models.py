"""Modules: shapes, masks and names, and that they pass through torch.export and ONNX."""

from __future__ import annotations

import inspect

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tiercel_export.models.dense import forward_inputs, frozen
from tiercel_export.models.onnx import make_onnx
from tiercel_pipelines.arrays.inputs import CategoryColumn, ListColumn, ModelInputs, Side
from tiercel_pipelines.families.cdae import CDAE
from tiercel_pipelines.families.dlrm import DLRM
from tiercel_pipelines.families.mult_vae import MultVAE
from tiercel_pipelines.families.two_tower import Towers, TwoTower
from tiercel_pipelines.families.weights import load_weights, save_weights
from tiercel_pipelines.tasks.listwise_softmax import ListwiseSoftmax
from tiercel_serving.spec import TensorSpec, list_tensor

K, L = 5, 6
USER = Side(
    "user",
    (CategoryColumn("user_id", 9), CategoryColumn("age_group", 4, vocabulary=False)),
    ("age",),
    (ListColumn("interests", 7), ListColumn("visits", None)),
)
ITEM = Side(
    "item",
    (CategoryColumn("item_id", 12), CategoryColumn("maker", 5)),
    ("year", "price"),
    (ListColumn("genres", 8),),
)
DIMS = {
    "user_cat": ("int64", (2,)),
    "user_num": ("float32", (1,)),
    "user_list_interests": ("int64", (3,)),
    "user_list_visits": ("float32", (2,)),
    "history_cat": ("int64", (L, 2)),
    "history_length": ("int32", (1,)),
    "item_cat": ("int64", (K, 2)),
    "item_num": ("float32", (K, 2)),
    "item_list_genres": ("int64", (K, 4)),
    "kept_score": ("float32", (K,)),
    "kept_source": ("int32", (K,)),
}
SPECS = {name: TensorSpec(name, dtype, dims) for name, (dtype, dims) in DIMS.items()}


INPUTS = ModelInputs(USER, ITEM, ("item_id", "maker"), sources=2)


class TwoTasks(ListwiseSoftmax, frozen=True, tag="two_tasks"):
    tasks = 2


def towers(inputs=INPUTS, **changes):
    widths = {"dimension": 6, "embedding_dimension": 4, "user_layers": (8,)}
    return Towers(TwoTower(**{**widths, **changes}), inputs)


def ranker(scale=5.0, **changes):
    return DLRM(embedding_dimension=4, **changes).build(INPUTS, scale)


def batch(size, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, (dtype, dims) in DIMS.items():
        shape = (size, *dims)
        arrays[name] = rng.normal(size=shape) if dtype == "float32" else rng.integers(0, 4, size=shape)
        arrays[name] = arrays[name].astype(dtype)
    arrays["history_length"] = rng.integers(0, L + 1, size=(size, 1)).astype(np.int32)
    arrays["kept_source"] %= 3
    arrays["kept_score"] = -np.sort(-arrays["kept_score"], axis=1)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def call(module, tensors):
    return module(**{name: tensors[name] for name in module.input_names})


def randomised(module):
    """Give every parameter a random value, so that layers which start at zero cannot hide a mistake."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


def test_towers_name_their_tensors_and_give_unit_vectors():
    model = randomised(towers())
    tensors = batch(4)
    assert list(inspect.signature(model.user_tower.forward).parameters) == list(model.user_tower.input_names)
    assert model.user_tower.input_names == (
        "user_cat", "user_num", "user_list_interests", "user_list_visits", "history_cat", "history_length"
    )  # fmt: skip
    assert model.item_tower.input_names == ("item_cat", "item_num", "item_list_genres")
    query = call(model.user_tower, tensors)
    items = model.item_tower(
        tensors["item_cat"][:, 0], tensors["item_num"][:, 0], tensors["item_list_genres"][:, 0]
    )
    for vectors in (query, items):
        assert vectors.shape == (4, 6)
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))


def test_ranker_gives_one_score_a_candidate_and_task():
    model = randomised(ranker(task=TwoTasks()))
    assert call(model, batch(3)).shape == (3, K, 2)


def test_history_is_shared_with_the_item_tower():
    model = towers()
    assert model.user_tower.history_tables[0] is model.item_tower.encoder.tables[0]


@pytest.mark.parametrize("build", [lambda: towers().user_tower, ranker])
def test_what_stands_behind_the_history_is_never_looked_at(build):
    module, tensors = randomised(build()), batch(5)
    expected = call(module, tensors)
    places = torch.arange(L).view(1, L, 1)
    beyond = places >= tensors["history_length"].view(-1, 1, 1)
    other = {**tensors, "history_cat": torch.where(beyond, 3, tensors["history_cat"])}
    torch.testing.assert_close(call(module, other), expected)


def test_padding_of_lists_and_nulls_change_nothing():
    module, tensors = randomised(towers().user_tower), batch(3)
    expected = call(module, tensors)
    longer = dict(tensors)
    for name in ("user_list_interests", "user_list_visits"):
        longer[name] = torch.cat([tensors[name], torch.zeros_like(tensors[name])], dim=1)
    torch.testing.assert_close(call(module, longer), expected)
    null = call(module, {**tensors, "user_num": torch.full((3, 1), float("nan"))})
    torch.testing.assert_close(null, call(module, {**tensors, "user_num": torch.zeros(3, 1)}))


def test_all_padding_gives_numbers():
    tensors = {name: torch.zeros_like(tensor) for name, tensor in batch(2).items()}
    for module in (towers().user_tower, ranker()):
        assert torch.isfinite(call(module.eval(), tensors)).all()


def test_rows_and_candidates_do_not_touch_each_other():
    module, tensors = randomised(ranker()), batch(4)
    expected = call(module, tensors)
    alone = call(module, {name: tensor[2:3] for name, tensor in tensors.items()})
    torch.testing.assert_close(alone[0], expected[2], rtol=1e-5, atol=1e-5)
    # Changing a candidate in the middle leaves the scores of its neighbours.
    changed = {**tensors, "item_cat": tensors["item_cat"].clone()}
    changed["item_cat"][:, 2] = (changed["item_cat"][:, 2] + 1) % 4
    others = [0, 1, 3, 4]
    torch.testing.assert_close(call(module, changed)[:, others], expected[:, others])
    assert not torch.allclose(call(module, changed)[:, 2], expected[:, 2])


def test_a_fresh_ranker_keeps_retrievals_order():
    tensors = batch(6)
    scores = call(ranker(scale=5.0).eval(), tensors)[:, :, 0]
    torch.testing.assert_close(scores, 5.0 * tensors["kept_score"])


def test_parts_can_be_left_out():
    tensors = batch(2)
    plain = ranker(use_history=False, use_retrieval_score=False)
    assert not {"history_cat", "history_length", "kept_score", "kept_source"} & set(plain.input_names)
    assert call(plain, tensors).shape == (2, K, 1)
    only_ids = Side("user", (CategoryColumn("user_id", 9),))
    tower = towers(ModelInputs(only_ids, ITEM), use_history=False).user_tower
    assert tower.input_names == ("user_cat",)
    assert call(tower, {"user_cat": tensors["user_cat"][:, :1]}).shape == (2, 6)


def test_ids_that_training_never_sees_add_nothing():
    model = towers()
    assert not model.item_tower.encoder.tables[0].weight[:3].any()
    assert model.item_tower.encoder.tables[0].weight[3:].all()


@pytest.mark.parametrize(
    "kind",
    ["ranker", *(pytest.param(tower, marks=pytest.mark.slow) for tower in ("user_tower", "item_tower"))],
)
def test_onnx_with_a_dynamic_batch_equals_torch(kind, tmp_path):
    model = towers()
    module = {"user_tower": model.user_tower, "item_tower": model.item_tower}.get(kind)
    module = frozen(randomised(ranker() if module is None else module))
    specs = SPECS
    if kind == "item_tower":
        specs = {
            name: TensorSpec(name, dtype, dims[1:]) for name, (dtype, dims) in DIMS.items() if "item" in name
        }
    inputs = forward_inputs(module, specs, kind)
    make_onnx(module, tmp_path, inputs=inputs, output="out", max_batch=64, build_id="b")

    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not operators & {"OneHot", "NonZero", "Unique", "Loop", "If", "Scan"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 3, 7):
        tensors = batch(size, seed=size)
        if kind == "item_tower":
            tensors = {name: tensor[:, 0] for name, tensor in tensors.items() if "item" in name}
        tensors = {name: tensors[name] for name in module.input_names}
        (got,) = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        np.testing.assert_allclose(got, module(**tensors).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_lists_of_any_name_reach_the_models(tmp_path):
    """A parameter of ``forward`` is named like its tensor, but a column may have any name."""
    # Columns of categories, whose tables take torch half a second each, and of numbers.
    hostile = {"🏷️ tags": 7, "größe/cm": 7, "a-b": None, "2nd": None, "class": None, "": None}
    hostile |= {"gro\u0308ße": None, "a__x20_b": None, "a b": None, "城市": None}
    user = Side("user", USER.cat, (), tuple(ListColumn(*column) for column in hostile.items()))
    module = frozen(randomised(towers(ModelInputs(user, ITEM), use_history=False).user_tower))
    lists = {
        list_tensor("user", name): ("int64" if kinds else "float32", (3,)) for name, kinds in hostile.items()
    }
    specs = {name: TensorSpec(name, dtype, dims) for name, (dtype, dims) in {**DIMS, **lists}.items()}
    inputs = forward_inputs(module, specs, "tower")
    assert [spec.name for spec in inputs] == ["user_cat", *lists]
    make_onnx(module, tmp_path, inputs=inputs, output="out", max_batch=64, build_id="b")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 7, (len(lists), 4, 3)))
    tensors = {"user_cat": batch(4)["user_cat"]}
    for values, (name, (dtype, _)) in zip(ids, lists.items(), strict=True):
        tensors[name] = values.to(getattr(torch, dtype))
    (got,) = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
    np.testing.assert_allclose(got, module(**tensors).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_weights_survive_safetensors(tmp_path):
    module = randomised(towers().user_tower)
    save_weights(module, tmp_path / "w.safetensors")
    other = towers().user_tower.eval()
    load_weights(other, tmp_path / "w.safetensors")
    tensors = batch(4)
    assert torch.equal(call(other, tensors), call(module, tensors))


def test_weights_of_another_model_are_refused(tmp_path):
    from tiercel_pipelines.errors import TrainingError

    save_weights(towers().user_tower, tmp_path / "w.safetensors")
    with pytest.raises(TrainingError, match="not the weights of this UserTower"):
        load_weights(towers(dimension=7).user_tower, tmp_path / "w.safetensors")
    with pytest.raises(TrainingError, match=r"found no file"):
        load_weights(ranker(), tmp_path / "none.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="train again"):
        load_weights(ranker(), tmp_path / "w.safetensors")


def test_many_bags_are_read_without_the_padding_that_they_share() -> None:
    user, item = (CategoryColumn("user_id", 100),), (CategoryColumn("item_id", 90),)
    inputs = ModelInputs(Side("user", user), Side("item", item), ("item_id",), 2)
    rng, users = np.random.default_rng(0), 70
    lengths = rng.integers(0, 31, users)
    lengths[:2] = 0, 30
    real = np.arange(40) < lengths[:, None]
    arrays = {
        "user_cat": np.arange(users)[:, None] + 3,
        "history_cat": np.where(real, rng.integers(3, 90, (users, 40)), 0)[..., None],
        "history_length": lengths[:, None].astype(np.int32),
    }
    for family in (MultVAE(hidden_dimension=8, latent_dimension=4), CDAE(hidden_dimension=8)):
        fitted = family.fresh(inputs)
        fitted.user_tower.eval()
        together = fitted.query(arrays)
        apart = [fitted.query({name: array[[one]] for name, array in arrays.items()}) for one in range(users)]
        np.testing.assert_allclose(together, np.concatenate(apart), rtol=1e-5, atol=1e-6)
