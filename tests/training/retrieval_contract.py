"""The contract of every retrieval family in one suite; a family's test subclasses it in a few lines.

A small world with a planted pattern: each user prefers one maker and consumes its items one after another in
a cycle. So the next item follows from the last one, and the preferred maker from the history.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from family_contract import FamilyContract

from tiercel_export.models.dense import forward_inputs, frozen
from tiercel_export.models.onnx import make_onnx
from tiercel_pipelines.arrays.inputs import CategoryColumn, ListColumn, ModelInputs, Side
from tiercel_pipelines.arrays.packed import Packed
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.families.table import RETRIEVAL_FAMILIES, Plan, RetrievalData, RetrievalFamily
from tiercel_pipelines.offline.in_memory import OfflineRetrieval
from tiercel_pipelines.recipe import ServingSettings, replace
from tiercel_serving.engines.onnx import Onnx
from tiercel_serving.sources.table import default_sources
from tiercel_serving.spec import TensorSpec

USERS, ITEMS, GROUPS, HAD, LENGTH = 80, 32, 4, 5, 6
MINE = ITEMS // GROUPS
USER = Side("user", (CategoryColumn("taste", GROUPS + 3), CategoryColumn("user_id", USERS + 3)))
ITEM = Side("item", (CategoryColumn("maker", GROUPS + 3), CategoryColumn("item_id", ITEMS + 3)))
GIVEN = ListColumn("embedding", None)
INPUTS = ModelInputs(USER, ITEM, ("item_id",), sources=2)
BOTH = msgspec.structs.replace(INPUTS, history=("maker", "item_id"))


def packed_items(items: np.ndarray) -> np.ndarray:
    """Return ``item_cat`` of items; -1 is an item that was not in training."""
    return np.where(items[:, None] < 0, 2, np.stack([items % GROUPS, items], 1) + 3)


def item_tensors(items: np.ndarray) -> dict[str, np.ndarray]:
    """Return ``item_cat``, and vectors that give an item's maker, whether or not it was in training."""
    makers = np.eye(GROUPS, dtype=np.float32)[np.maximum(items, 0) % GROUPS]
    return {"item_cat": packed_items(items), "item_list_embedding": makers}


def world(history: tuple[int, ...] = (1,)) -> tuple[Packed, Pairs]:
    """Return users known by id alone, each with five of one maker's eight items, in cyclic order."""
    users = np.arange(USERS)
    first = users // GROUPS % MINE
    turn = (first[:, None] + np.arange(HAD)) % MINE
    items = turn * GROUPS + (users % GROUPS)[:, None]
    packed = Packed(
        {"user_cat": np.stack([np.full(USERS, 2), users + 3], 1)},
        {name: np.append(array, array[:1] * 0, 0) for name, array in item_tensors(np.arange(ITEMS)).items()},
        history,
        LENGTH,
        USERS,
    )
    owner = np.repeat(users, HAD)
    return packed, Pairs.build(owner, items.ravel(), owner, np.ones(USERS * HAD), USERS)


def following() -> np.ndarray:
    """Return the next item of each user."""
    users = np.arange(USERS)
    return (users // GROUPS % MINE + HAD) % MINE * GROUPS + users % GROUPS


class States:
    """Keeps every training state; ``read`` returns the last one kept before this training."""

    def __init__(self, kept: list[Any]) -> None:
        self.kept, self._last = kept, copy.deepcopy(kept[-1]) if kept else None

    def read(self) -> Any:
        return self._last

    def offer(self, state: Callable[[], Any]) -> None:
        self.kept.append(copy.deepcopy(state()))


class RetrievalContract(FamilyContract):
    """Subclass it with a family's settings that learn the pattern in a second."""

    table: ClassVar[Any] = RETRIEVAL_FAMILIES
    protocol: ClassVar[type] = RetrievalFamily
    #: The inputs that models may use.
    inputs: ClassVar[ModelInputs] = INPUTS
    #: Whether it learns the order, and ranks the next item first.
    ordered: ClassVar[bool] = False
    #: The array of its form that depends on the seed.
    drawn: ClassVar[str] = "vectors"
    #: Settings that make the loss NaN or infinite.
    wild: ClassVar[dict[str, Any]] = {"learning_rate": 3e37}

    @pytest.fixture(scope="class")
    def fitted(self) -> Any:
        """Fit the model of ``settings`` once."""
        return self.fit()[0]

    def fit(self, settings: Any = None, pairs: Pairs | None = None, seed: int = 0, **plan: Any) -> Any:
        packed, all_pairs = world()
        data = RetrievalData(packed, all_pairs if pairs is None else pairs, self.inputs)
        return (settings or self.settings).fit(data, Plan(seed, "model, fold 1", **plan))

    def rows(self, fitted: Any, packed: Packed, pairs: Pairs, count: int) -> np.ndarray:
        """Return the served source's items for each user."""
        settings = self.settings
        serving = ServingSettings(
            candidates=count,
            kept=1,
            sources=default_sources({settings.name: settings.form}),
            history_length=LENGTH,
        )
        retrieval = OfflineRetrieval(serving, {settings.name: fitted}, packed, pairs)
        return retrieval.candidates(np.arange(packed.n_users))[1][1]

    def test_its_source_finds_the_pattern_and_it_is_read_back(self, fitted: Any, tmp_path: Path) -> None:
        packed, pairs = world()
        found = self.rows(fitted, packed, pairs, MINE - HAD)
        if self.ordered:  # an ordered family learns only the next item
            right = found[:, 0] == following()
        else:
            right = found % GROUPS == np.arange(USERS)[:, None] % GROUPS
        assert right.mean() > 0.9, right.mean()
        fitted.save(tmp_path)
        again = self.settings.load(tmp_path, self.inputs)
        np.testing.assert_array_equal(self.rows(again, packed, pairs, MINE - HAD), found)
        for name, array in fitted.form(packed.catalogue).items():
            np.testing.assert_array_equal(again.form(packed.catalogue)[name], array)
        file = sorted(tmp_path.iterdir())[0]
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(TrainingError, match=r"safetensors.*train again"):
            self.settings.load(tmp_path, self.inputs)

    def test_the_seed_decides(self) -> None:
        if self.settings.dimension is None:
            pytest.skip("nothing is drawn")
        epochs = {"epochs": 1}
        first, second, third = (
            self.fit(seed=seed, **epochs)[0].form(world()[0].catalogue)[self.drawn] for seed in (5, 5, 6)
        )
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, third)

    def test_a_training_that_was_killed_goes_on(self) -> None:
        """Training resumed from any epoch's state gives equal results; families without states restart."""
        kept: list[Any] = []
        states = States(kept)
        expected = self.fit(epochs=3, states=states)[0].form(world()[0].catalogue)
        assert len(kept) in (0, 3)
        for state in kept[:2]:
            again = self.fit(epochs=3, states=States([state]))[0].form(world()[0].catalogue)
            for name, array in expected.items():
                np.testing.assert_array_equal(again[name], array)

    def test_users_do_not_touch_each_other(self, fitted: Any) -> None:
        tensors = drawn(5)
        everybody = fitted.query(tensors)
        if everybody is None:
            return
        assert (everybody.shape, everybody.dtype) == ((5, self.settings.dimension), np.float32)
        for user in range(5):
            alone = fitted.query({name: array[user : user + 1] for name, array in tensors.items()})
            np.testing.assert_allclose(alone[0], everybody[user], rtol=1e-5, atol=1e-5)
        behind = np.arange(LENGTH)[:, None] >= tensors["history_length"][:, :, None]
        other = {**tensors, "history_cat": np.where(behind, 9, tensors["history_cat"])}
        np.testing.assert_allclose(fitted.query(other), everybody, rtol=1e-5, atol=1e-5)
        # Equal histories in a wider tensor give equal queries.
        wide = {**tensors, "history_cat": np.pad(tensors["history_cat"], ((0, 0), (0, 7), (0, 0)))}
        np.testing.assert_allclose(fitted.query(wide), everybody, rtol=1e-5, atol=1e-5)

    def test_what_nobody_knows_gives_numbers(self, fitted: Any) -> None:
        """Unknown users and items and empty histories work; an item unknown to training has a vector too."""
        form = fitted.form(item_tensors(np.array([7, -1, 3])))
        if self.settings.dimension is None:
            assert len(form["offsets"]) == 4
            return
        known = fitted.form(world()[0].catalogue)["vectors"]
        assert np.isfinite(form["vectors"]).all()
        np.testing.assert_allclose(form["vectors"][[0, 2]], known[[7, 3]], rtol=1e-6)
        for category in (0, 1, 2):
            tensors = drawn(2)
            for name in ("user_cat", "history_cat"):
                tensors[name] = np.full_like(tensors[name], category)
            for length in (0, 3):
                tensors["history_length"] = np.full((2, 1), length, np.int32)
                assert np.isfinite(fitted.query(tensors)).all()

    def test_users_with_one_item_or_none_and_items_nobody_has(self) -> None:
        packed, pairs = world()
        kept = np.arange(len(pairs)) % HAD < np.minimum(pairs.users % 3, 1)
        few = pairs.select(kept & (pairs.items > 5))
        fitted, _ = self.fit(pairs=few, epochs=2)
        assert (few.lengths <= 1).all()
        found = self.rows(fitted, packed, few, 4)
        assert ((found >= 0) & (found <= ITEMS)).all()

    def test_nothing_to_learn_and_a_loss_that_is_no_number_are_told(self) -> None:
        pairs = world()[1]
        with pytest.raises(TrainingError, match="model, fold 1: there are no interactions"):
            self.fit(pairs=pairs.select(np.zeros(len(pairs), bool)))
        if "learning_rate" in self.settings.__struct_fields__:
            with pytest.raises(TrainingError, match=r"model, fold 1: the loss became (nan|inf)"):
                self.fit(replace(self.settings, **self.wild), epochs=20)

    @pytest.mark.slow
    def test_onnx_with_a_dynamic_batch_equals_torch(self, tmp_path: Path) -> None:
        for place, settings in enumerate(self.each()):
            served = self.fit(settings, epochs=1)[0].served()
            if served.query is None:
                return
            module = frozen(copy.deepcopy(served.query))
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            specs = {
                name: TensorSpec(name, str(array.dtype), array.shape[1:]) for name, array in drawn(2).items()
            }
            inputs = forward_inputs(module, specs, "query")
            assert [spec.name for spec in inputs] == list(inspect.signature(module.forward).parameters)
            folder = tmp_path / str(place)
            folder.mkdir()
            make_onnx(module, folder, inputs=inputs, output="out", max_batch=64, build_id="b")
            check_onnx(module, folder / "model.onnx")


def drawn(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return tensors of arbitrary users."""
    rng = np.random.default_rng(seed)
    return {
        "user_cat": rng.integers(0, 6, (size, 2)),
        "history_cat": rng.integers(3, ITEMS + 3, (size, LENGTH, 1)),
        "history_length": rng.integers(0, LENGTH + 1, (size, 1)).astype(np.int32),
    }


def check_onnx(module: Any, file: Path) -> None:
    """Check that the ONNX file uses plain operators and equals torch to 1e-5 for any batch size."""
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert not operators & {"OneHot", "NonZero", "Unique", "Loop", "If", "Scan"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    served = Onnx.open(file, ["out"])
    for size in (1, 3, 7):
        tensors = {name: drawn(size, seed=size)[name] for name in module.input_names}
        (got,) = session.run(None, tensors)
        with torch.inference_mode():
            expected = module(**{name: torch.from_numpy(array) for name, array in tensors.items()})
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-5)
        # With the native loops, where they support the graph.
        np.testing.assert_allclose(served.run(tensors)["out"], expected.numpy(), rtol=1e-5, atol=1e-5)
