"""Stages on a device give what the stages on the host give, and device copies are counted."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from on_device import CAPTURED, DEVICES, ON_CUDA, Kernels, capture_double, on_device
from stage_oracles import Ask, tensors
from test_graph_stages import asks_of
from tiny_release import DAY_S, Tiny
from torch.overrides import TorchFunctionMode, resolve_name

from drawing import examples
from tiercel_serving.device.crossing import Crossing
from tiercel_serving.device.order_torch import COUNTED
from tiercel_serving.device.place_torch import CAPTURES
from tiercel_serving.runtime.chain import Chain

Chains = Callable[[str, str], Chain]


@pytest.fixture(scope="module")
def torch_chain(tiny_of: Callable[[str], Tiny]) -> Chains:
    made: dict[tuple[str, str], Chain] = {}

    def get(variant: str, device: str) -> Chain:
        key = variant, device
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                if device == CAPTURED:
                    patch.setitem(CAPTURES, "cpu", lambda: capture_double)
                made[key] = Chain.open(on_device(tiny_of(variant).release, device))
        return made[key]

    return get


def check_same(want: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> None:
    """Compare rows, ids, reasons and counts to the bit, and scores to 1e-5."""
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype, name
        if array.dtype == np.float32:
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(got[name], array, err_msg=name)


#: Requests of a few users; together they cover every branch of retrieval.
def asks_for(tiny: Tiny) -> list[Ask]:
    users, items = tiny.user_ids, tiny.item_ids
    nobody: Any = b"nobody" if isinstance(items[0], bytes) else 10**6
    known = [Ask(user) for user in users[:3]]
    return [
        *known,
        Ask(nobody),
        Ask(nobody, age=41.0, exclude=items[:5]),
        Ask(users[0] if users else nobody, k=3, exclude=[*items[3:9], *items[3:5]], allow_seen=True),
        Ask(users[1] if users else nobody, allow_seen=True),
        Ask(users[-1] if users else nobody, include=items[::2], hour=3),
        Ask(nobody, candidates=items[:7] * 2, age=20.0),
    ]


@pytest.mark.parametrize("device", [*DEVICES, CAPTURED])
def test_every_kind_of_recommender(
    device: str, variant: str, tiny: Tiny, chain: Chain, torch_chain: Chains, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == CAPTURED:  # count instead of sorting, as on a GPU
        monkeypatch.setitem(COUNTED, "cpu", COUNTED["cuda"])
    asks = asks_for(tiny)
    if tiny.settings.seen_again_days is not None:
        asks = [replace(ask, now=4.5 * DAY_S * at, again_days=at % 4) for at, ask in enumerate(asks)]
    # Some batches repeat with others between them: a captured graph must read its current inputs.
    for batch in (asks, asks[:3], asks[:1], asks[1:2], asks[:2], asks[:1], asks[3:4], asks[3:5], asks[-1:]):
        arrays = tensors(batch)
        check_same(chain.run(arrays)[0], torch_chain(variant, device).run(arrays)[0])


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@examples(5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_asked(
    device: str, variant: str, tiny: Tiny, chain: Chain, torch_chain: Chains, data: st.DataObject
) -> None:
    arrays = tensors(data.draw(asks_of(tiny)))
    check_same(chain.run(arrays)[0], torch_chain(variant, device).run(arrays)[0])


def test_one_answer_takes_few_kernels(
    tiny_of: Callable[[str], Tiny], torch_chain: Chains, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one user, launches dominate; there were 201 before keys and masks took fewer operations."""
    monkeypatch.setitem(COUNTED, "cpu", COUNTED["cuda"])
    arrays = tensors([Ask(tiny_of("plain").user_ids[0])])
    chain = torch_chain("plain", "cpu")
    chain.run(arrays)  # makes what later runs reuse
    with Kernels() as kernels:
        chain.run(arrays)
    assert 50 < kernels.count <= 120


# ------------------------------------------------------------------------------------- device copies

#: Calls that copy a tensor to the host or to a device, or wait for the device to read its value.
CROSSING = (
    {"to", "cpu", "cuda", "numpy", "item", "tolist", "nonzero", "masked_select", "pin_memory"}
    | {"tensor", "as_tensor", "new_tensor"}
    | {f"__{name}__" for name in ("bool", "int", "float", "index", "array", "len")} - {"__len__"}
)


class Double(TorchFunctionMode):
    """Counts calls that would copy or synchronise if the device were a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or "").rpartition(".")[2]
        picked = name in ("__getitem__", "__setitem__") and _by_bools(args[1])
        if name in CROSSING or picked:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def _by_bools(key: Any) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


def test_the_double_sees_every_way_across() -> None:
    with Double() as double:
        one = torch.arange(3)
        one.cpu().numpy(), one.to("cpu"), one[one > 1], bool(one[0]), int(one[1]), one.tolist()
        one.sum().item(), torch.nonzero(one), one.masked_select(one > 1)
    assert set(double.calls) >= {"cpu", "numpy", "to", "__getitem__", "item", "tolist", "nonzero"}
    assert double.calls["__bool__"] + double.calls["__int__"] == 2


@pytest.mark.parametrize("variant", ["plain", "quotas", "rules"])
def test_only_the_request_and_the_answer_cross(
    variant: str, tiny_of: Callable[[str], Tiny], torch_chain: Chains, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, chain = tiny_of(variant), torch_chain(variant, "cpu")
    place, copies = chain.place, Counter[str]()

    def counted(name: str, call: Callable[[Any], Any], array: Any) -> Any:
        copies[name] += 1
        return call(array)

    for name in ("put", "take"):
        monkeypatch.setattr(place, name, partial(counted, name, getattr(place, name)))
    arrays = tensors([Ask(user) for user in tiny.user_ids[:3]])
    with Double() as double:
        outputs, _ = chain.run(arrays, ("item_id", "score", "count", "status"))
    assert outputs["item_id"].shape[0] == 3
    # The answer is one copy; nothing else waits for the device.
    assert copies["take"] == 1
    assert double.calls == {"cpu": 1, "numpy": 1}
    # Of the request only what the models read of the user is copied, and the rows to exclude.
    models = [stage for stage in chain.stages if hasattr(stage, "tensors")]
    read = {one.name for stage in models for one in stage.spec.inputs if one.name in stage.tensors}
    made = {one.name for stage in models for one in stage.spec.outputs}
    assert copies["put"] == len(read - made) + 1


# ------------------------------------------------------------------------------------ where tensors live


@pytest.mark.parametrize("device", DEVICES)
def test_what_stages_make_stays_on_the_device(
    device: str, tiny_of: Callable[[str], Tiny], torch_chain: Chains, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    def noted(crossing: Crossing, tensors: dict[str, Any], add: Any = Crossing.add) -> None:
        made.update(tensors)
        add(crossing, tensors)

    monkeypatch.setattr(Crossing, "add", noted)
    chain = torch_chain("quotas", device)
    chain.run(tensors([Ask(tiny_of("quotas").user_ids[2])]), ("item_id",))
    models = {"query_near", "rank_score"}
    for name in ("retrieved_row", "source", "kept_row", "item_num", *sorted(models)):
        if name in models and device == "cuda" and ON_CUDA == "onnx":
            assert isinstance(made[name], np.ndarray), "models run on the host here"
            continue
        assert made[name].device == chain.place.device, name
        assert not made[name].requires_grad


def in_use(device: str) -> int:
    """Return the bytes used by tensors: all of a GPU's, or those of every tensor that Python tracks."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    # By exact type: isinstance() makes some lazy modules import what they stand for.
    return sum(one.nbytes for one in gc.get_objects() if type(one) is torch.Tensor)


@pytest.mark.parametrize("device", DEVICES)
def test_memory_is_steady(device: str, tiny_of: Callable[[str], Tiny], torch_chain: Chains) -> None:
    tiny, chain = tiny_of("quotas"), torch_chain("quotas", device)
    requests = [tensors([Ask(user) for user in tiny.user_ids[:users]]) for users in (1, 3, 6)]
    rounds = 10_000 if device == "cuda" else 10
    for one in requests:
        chain.run(one, ("item_id", "score", "count", "status"))
    before = in_use(device)
    for number in range(rounds):
        chain.run(requests[number % 3], ("item_id", "score", "count", "status"))
    assert in_use(device) <= before
