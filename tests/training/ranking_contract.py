"""The contract of every ranking family in one suite; a family's test subclasses it in a few lines.

A small world with a planted pattern: each user prefers one maker and picks its items. The models see the
pattern in the columns of both sides or, with ``from_history``, in the history alone.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from family_contract import FamilyContract
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tiercel_export.models.dense import forward_inputs, frozen
from tiercel_export.models.onnx import make_onnx
from tiercel_pipelines.arrays.inputs import CategoryColumn, ListColumn, ModelInputs, Side
from tiercel_pipelines.arrays.lists import RankingLists
from tiercel_pipelines.arrays.packed import Packed
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.families.fitted import FittedRanker
from tiercel_pipelines.families.table import RANKING_FAMILIES, Plan, RankingData, RankingFamily
from tiercel_pipelines.recipe import replace
from tiercel_pipelines.tasks.listwise_softmax import ListwiseSoftmax
from tiercel_serving.engines.onnx import Onnx
from tiercel_serving.spec import TensorSpec

USERS, ITEMS, GROUPS, KEPT, LENGTH = 64, 32, 4, 7, 5
USER = Side(
    "user",
    (CategoryColumn("user_id", USERS + 3), CategoryColumn("taste", GROUPS + 3)),
    ("age",),
    (ListColumn("interests", 9),),
)
ITEM = Side(
    "item",
    (CategoryColumn("item_id", ITEMS + 3), CategoryColumn("maker", GROUPS + 3)),
    ("year", "price"),
    (ListColumn("genres", 9),),
)
INPUTS = ModelInputs(USER, ITEM, ("item_id",), sources=2)
#: Name → dtype and shape for one user; K is prime and equal to no other size.
TENSORS: dict[str, tuple[str, tuple[int, ...]]] = {
    "user_cat": ("int64", (2,)),
    "user_num": ("float32", (1,)),
    "user_list_interests": ("int64", (3,)),
    "history_cat": ("int64", (LENGTH, 1)),
    "history_length": ("int32", (1,)),
    "item_cat": ("int64", (KEPT, 2)),
    "item_num": ("float32", (KEPT, 2)),
    "item_list_genres": ("int64", (KEPT, 4)),
    "kept_score": ("float32", (KEPT,)),
    "kept_source": ("int32", (KEPT,)),
}
OF_CANDIDATES = {"item_cat", "item_num", "item_list_genres", "kept_score", "kept_source"}
SPECS = {name: TensorSpec(name, dtype, dims) for name, (dtype, dims) in TENSORS.items()}


class TwoTasks(ListwiseSoftmax, frozen=True, tag="two_tasks"):
    tasks = 2


def world(*, from_history: bool) -> tuple[Packed, RankingLists]:
    """Return packed tensors, and for each user a list in which two candidates are of the preferred maker."""
    rng = np.random.default_rng(0)
    users, items = np.arange(USERS), np.arange(ITEMS)
    taste, maker = users % GROUPS, items % GROUPS
    user_cat = np.stack([users, taste], 1) + 3
    packed = Packed(
        {
            "user_cat": np.full_like(user_cat, 2) if from_history else user_cat,
            "user_num": rng.normal(size=(USERS, 1)).astype(np.float32),
            "user_list_interests": rng.integers(0, 9, (USERS, 3)),
        },
        {
            "item_cat": np.append(np.stack([items, maker], 1) + 3, [[0, 0]], 0),
            "item_num": rng.normal(size=(ITEMS + 1, 2)).astype(np.float32),
            "item_list_genres": rng.integers(0, 9, (ITEMS + 1, 4)),
        },
        (0,),
        LENGTH,
        USERS,
    )
    rows, history = np.empty((USERS, KEPT), np.int64), np.empty((USERS, LENGTH), np.int64)
    for user in users:
        liked = rng.permutation(items[maker == taste[user]])
        history[user] = liked[2 : 2 + LENGTH]
        others = rng.choice(items[maker != taste[user]], KEPT - 2, replace=False)
        rows[user] = rng.permutation(np.append(liked[:2], others))
    scores = -np.sort(-rng.random(rows.shape).astype(np.float32), axis=1)
    weights = (maker[rows] == taste[:, None]).astype(np.float32)
    sources = np.ones(rows.shape, np.int32)
    return packed, RankingLists(users, users, history, rows, scores, sources, weights)


def drawn(size: int, seed: int = 0, count: int = KEPT) -> dict[str, torch.Tensor]:
    """Return tensors of arbitrary users with ``count`` candidates each, best first."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, (dtype, dims) in TENSORS.items():
        shape = (size, count, *dims[1:]) if name in OF_CANDIDATES else (size, *dims)
        array = rng.normal(size=shape) if dtype == "float32" else rng.integers(0, 5, shape)
        arrays[name] = array.astype(dtype)
    arrays["history_length"] = rng.integers(0, LENGTH + 1, (size, 1)).astype(np.int32)
    arrays["kept_source"] %= 3
    arrays["kept_score"] = -np.sort(-arrays["kept_score"], axis=1)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def call(module: Any, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module(**{name: tensors[name] for name in module.input_names})
    return result


class RankingContract(FamilyContract):
    """Subclass it with a family's settings that learn the pattern in a second."""

    table: ClassVar[Any] = RANKING_FAMILIES
    protocol: ClassVar[type] = RankingFamily
    from_history: ClassVar[bool] = False
    #: The settings learn the pattern within this number of epochs.
    epochs: ClassVar[int] = 30
    #: Number of known products over per-candidate copies of the user.
    joined: ClassVar[int] = 0
    #: Pattern of the file name of the fitted model.
    kept_in: ClassVar[str] = r"weights\.safetensors"

    def built(self, settings: Any, tasks: int = 1, seed: int = 3) -> Any:
        """Return a network without zero-initialised layers, which could hide a mistake."""
        torch.manual_seed(seed)
        if tasks == 2:
            settings = replace(settings, task=TwoTasks())
        module = settings.build(INPUTS, 5.0)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return module.eval()

    def fit(self, seed: int = 0, epochs: int | None = None) -> Any:
        packed, lists = world(from_history=self.from_history)
        data = RankingData(packed, INPUTS, lists, KEPT, 1.0)
        return self.settings.fit(data, Plan(seed, "ranking", epochs=epochs or self.epochs))

    def test_untrained_it_keeps_retrievals_order(self) -> None:
        for settings in self.each():
            tensors = drawn(4)
            tensors["kept_source"][:] = 1
            scores = call(settings.build(INPUTS, 5.0).eval(), tensors)[..., 0]
            change = scores - 5.0 * tensors["kept_score"]
            torch.testing.assert_close(change, change[:, :1].expand_as(change), rtol=0, atol=1e-5)

    def test_it_learns_the_pattern_and_is_read_back(self, tmp_path: Path) -> None:
        packed, lists = world(from_history=self.from_history)
        fitted, course = self.fit()
        assert len(course.losses) == self.epochs
        assert course.losses[-1] < course.losses[0]
        tensors = packed.user_tensors(lists.contexts, lists.history)
        tensors |= {name: array[lists.rows] for name, array in packed.item.items()}
        tensors |= {"kept_score": lists.scores, "kept_source": lists.sources}
        scores = fitted.scores(tensors)
        first = np.argsort(-scores[..., 0], axis=1)[:, :2]
        found = np.take_along_axis(lists.weights, first, axis=1).mean()
        start = lists.weights[:, :2].mean()
        assert found > 0.9 > start + 0.5, (found, start)
        fitted.save(tmp_path)
        again = self.settings.load(tmp_path, INPUTS)
        assert again.inputs == fitted.inputs
        np.testing.assert_array_equal(again.scores(tensors), scores)
        file = next(tmp_path.iterdir())
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(TrainingError, match=self.kept_in + ".*train again"):
            self.settings.load(tmp_path, INPUTS)

    def test_the_seed_decides(self) -> None:
        first, second, third = (
            torch.cat([value.flatten() for value in self.fit(seed, epochs=1)[0].module.parameters()])
            for seed in (5, 5, 6)
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, third)

    def test_users_and_candidates_do_not_touch_each_other(self) -> None:
        for settings in self.each():
            module, tensors = self.built(settings), drawn(3)
            expected = call(module, tensors)
            assert (expected.shape, expected.dtype) == ((3, KEPT, 1), torch.float32)
            alone = call(module, {name: tensor[1:2] for name, tensor in tensors.items()})
            torch.testing.assert_close(alone[0], expected[1], rtol=1e-5, atol=1e-5)
            # With one candidate, no others follow the best.
            best = {n: t[:, :1] if n in OF_CANDIDATES else t for n, t in tensors.items()}
            torch.testing.assert_close(call(module, best), expected[:, :1], rtol=1e-5, atol=1e-5)
            changed = {**tensors, "item_cat": tensors["item_cat"].clone()}
            changed["item_cat"][:, 2] = (changed["item_cat"][:, 2] + 1) % 5
            others = [place for place in range(KEPT) if place != 2]
            torch.testing.assert_close(
                call(module, changed)[:, others], expected[:, others], rtol=1e-5, atol=1e-5
            )
            assert not torch.allclose(call(module, changed)[:, 2], expected[:, 2])

    def test_what_nobody_knows_gives_numbers(self) -> None:
        """Padding, nulls, unknown ids and empty histories give finite scores; padded history is ignored."""
        for settings in self.each():
            module, tensors = self.built(settings), drawn(4)
            for category in (0, 1, 2):
                odd = {
                    n: torch.full_like(t, category if t.dtype == torch.int64 else 0)
                    for n, t in tensors.items()
                }
                assert torch.isfinite(call(module, odd)).all()
            nulls = {n: torch.full_like(t, torch.nan) if "_num" in n else t for n, t in tensors.items()}
            zeros = {n: torch.zeros_like(t) if "_num" in n else t for n, t in tensors.items()}
            torch.testing.assert_close(call(module, nulls), call(module, zeros))
            behind = torch.arange(LENGTH).view(1, -1, 1) >= tensors["history_length"].view(-1, 1, 1)
            other = {**tensors, "history_cat": torch.where(behind, 4, tensors["history_cat"])}
            torch.testing.assert_close(call(module, other), call(module, tensors), rtol=1e-5, atol=1e-5)

    def test_each_task_has_its_column(self) -> None:
        scores = call(self.built(self.settings, tasks=2), drawn(3))
        assert scores.shape == (3, KEPT, 2)
        assert not torch.allclose(scores[..., 0], scores[..., 1])

    def test_parts_can_be_left_out(self) -> None:
        plain = replace(self.settings, use_retrieval_score=False).build(INPUTS).eval()
        assert not {"kept_score", "kept_source"} & set(plain.input_names)
        assert call(plain, drawn(2)).shape == (2, KEPT, 1)
        if "use_history" in self.settings.__struct_fields__ and not self.from_history:
            blind = replace(self.settings, use_history=False).build(INPUTS)
            assert not {"history_cat", "history_length"} & set(blind.input_names)

    def test_training_computes_what_is_served(self) -> None:
        """Without dropout: training skips padding and groups users by history length, with equal results."""
        for settings in self.each():
            plain = replace(settings, dropout=0.0) if "dropout" in settings.__struct_fields__ else settings
            module, tensors = self.built(plain), drawn(70)
            wanted = call(module, tensors)
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            np.testing.assert_allclose(FittedRanker(module).scores(arrays), wanted, rtol=1e-4, atol=1e-5)
            trained = module.train()(**{name: tensors[name] for name in module.input_names})
            torch.testing.assert_close(trained.detach(), wanted, rtol=1e-4, atol=1e-5)

    def test_the_user_is_computed_once(self) -> None:
        """No operator on the user alone has the axis K, and none multiplies copies of the user."""
        for settings in self.each():
            module = frozen(self.built(settings))
            with RepeatedWork(drawn(2), module) as watched:
                call(module, watched.tensors)
            assert len(watched.repeated) == self.joined, watched.repeated

    @pytest.mark.slow
    def test_onnx_with_a_dynamic_batch_equals_torch(self, tmp_path: Path) -> None:
        for place, settings in enumerate(self.each()):
            module = frozen(self.built(settings, tasks=1 + place % 2))
            folder = tmp_path / str(place)
            folder.mkdir()
            inputs = forward_inputs(module, SPECS, "ranker")
            assert [spec.name for spec in inputs] == list(inspect.signature(module.forward).parameters)
            tensors = {name: drawn(2)[name] for name in module.input_names}
            batch = {name: {0: torch.export.Dim("batch", min=1, max=64)} for name in tensors}
            program = torch.export.export(module, (), tensors, dynamic_shapes=batch, strict=False)
            with RepeatedWork(tensors, module) as watched:
                program.module()(**watched.tensors)
            assert len(watched.repeated) == self.joined, watched.repeated
            make_onnx(module, folder, inputs=inputs, output="out", max_batch=64, build_id="b")
            check_onnx(module, folder / "model.onnx")


def check_onnx(module: Any, file: Path) -> None:
    """Check that the ONNX file uses plain operators and equals torch to 1e-5 for any batch size."""
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert not operators & {"OneHot", "NonZero", "Unique", "Loop", "If", "Scan"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    served = Onnx.open(file, ["out"])
    for size in (1, 3, 7):
        tensors = {name: drawn(size, seed=size)[name] for name in module.input_names}
        arrays, expected = (
            {name: tensor.numpy() for name, tensor in tensors.items()},
            call(module, tensors).numpy(),
        )
        (got,) = session.run(None, arrays)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        # With the native loops, where they support the graph.
        np.testing.assert_allclose(served.run(arrays)["out"], expected, rtol=1e-5, atol=1e-5)


#: Operators that multiply matrices, and operators that only move values.
PRODUCTS = ("linear", "addmm", "bmm", "mm", "matmul", "embedding", "einsum")
MOVES = (
    "expand",
    "cat",
    "stack",
    "view",
    "reshape",
    "flatten",
    "squeeze",
    "clone",
    "permute",
    "transpose",
    "t",
)


class RepeatedWork(TorchDispatchMode):
    """Finds work that depends on the user alone but is done for each candidate.

    ``tensors`` are the inputs. For each tensor derived from them it tracks whether it depends on candidates,
    and whether it is a per-candidate copy of something that does not.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], module: torch.nn.Module) -> None:
        super().__init__()
        self.tensors, self.repeated = tensors, []
        self._kept: list[torch.Tensor] = []
        self._of_candidates = {id(tensors[name]) for name in OF_CANDIDATES if name in tensors}
        self._copied: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        for out in tree_leaves(result):
            if isinstance(out, torch.Tensor):
                self._kept.append(out)  # keeps the object alive, so that its id is not reused
                self._judge(name, given, out)
        return result

    def _judge(self, name: str, given: list[torch.Tensor], out: torch.Tensor) -> None:
        of_candidates = any(id(tensor) in self._of_candidates for tensor in given)
        wide = KEPT in out.shape[1:2]
        moves = name.removeprefix("_unsafe_").removeprefix("un") in MOVES
        if of_candidates:
            self._of_candidates.add(id(out))
        if moves and (any(id(t) in self._copied for t in given) or (wide and not of_candidates)):
            self._copied.add(id(out))
        elif wide and not of_candidates:
            self.repeated.append(f"{name} {list(out.shape)}")
        if name in PRODUCTS and any(id(tensor) in self._copied for tensor in given):
            self.repeated.append(f"{name} of copies {list(out.shape)}")
