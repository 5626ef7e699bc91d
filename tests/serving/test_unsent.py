"""Batches without optional inputs: recognised by their arrays, and answered as if they had been looked at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from tiny_release import Tiny, ids_array

from tiercel_serving.runtime.chain import Chain
from tiercel_serving.spec import Array
from tiercel_serving.stages.specs import ALLOW_SEEN, EXCLUDED, EXPLAINED, INCLUDED, LENGTHS
from tiercel_serving.stages.unsent import Unsent


def frozen(*values: int) -> Array:
    array = np.array(values)
    array.setflags(write=False)
    return array


def test_only_the_same_arrays_are_recognised() -> None:
    unsent = Unsent(("a", "b"))
    arrays = {"a": frozen(0), "b": frozen(1), "user_id": np.array([5])}
    assert not unsent.holds(arrays, 1)
    unsent.learn(arrays, 1)
    assert unsent.holds({**arrays, "user_id": np.array([6])}, 1)
    assert not unsent.holds(arrays, 2)
    assert not unsent.holds({**arrays, "b": frozen(1)}, 1)
    assert not unsent.holds({"a": arrays["a"]}, 1)


def test_arrays_that_can_change_are_not_remembered() -> None:
    unsent = Unsent(("a", "b"))
    arrays = {"a": frozen(0), "b": np.array([1])}
    unsent.learn(arrays, 1)
    assert not unsent.holds(arrays, 1)


def looked_at(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return copies, which nothing recognises."""
    return {name: array.copy() for name, array in arrays.items()}


@pytest.mark.parametrize("users", [1, 3])
def test_answers_are_those_of_requests_that_are_looked_at(tiny: Tiny, users: int) -> None:
    chain, looking = Chain.open(tiny.release), Chain.open(tiny.release)
    text = tiny.release.manifest.catalogue.user_id_dtype == "bytes"
    ids = ids_array([*tiny.user_ids[1:2], b"nobody" if text else 10**9, *tiny.user_ids[2:3]])
    ids = np.resize(ids, users)[:, None]
    plain = {"user_id": ids, "k": np.full((users, 1), 2, np.int32)}
    items = ids_array([tiny.item_ids[3]] * users)[:, None]
    lists = (EXCLUDED, INCLUDED, EXPLAINED)
    ones, seen = np.ones((users, 1), np.int32), np.ones((users, 1), np.bool_)
    asking = [{**plain, name: items, LENGTHS[name]: ones} for name in lists]
    # The first time nothing is known, the second time it is; the last request is of other users.
    for request in [
        plain,
        plain,
        *asking,
        {**plain, ALLOW_SEEN: seen},
        plain,
        {**plain, "user_id": ids[::-1].copy()},
    ]:
        lacking = chain.lacking(request)
        outputs, _ = chain.run(request, lacking=lacking)
        wanted, _ = looking.run(looked_at({**lacking, **request}))
        assert outputs.keys() == wanted.keys()
        for name, array in wanted.items():
            assert array.dtype == outputs[name].dtype
            assert np.array_equal(array, outputs[name], equal_nan=array.dtype.kind == "f"), name
    given = {**chain.lacking(plain), **plain}
    assert all(stage._unsent.holds(given, users) for stage in chain.stages[:1])  # type: ignore[attr-defined]
