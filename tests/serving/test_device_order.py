"""Ordering on a device: counting gives the same order as sorting, ties included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawing import examples
from tiercel_serving.device.masks_torch import TensorMask
from tiercel_serving.device.order_torch import COUNTED, arranged, ascending, first_of, places_of, smallest

#: Few distinct values, so that they tie, and the extremes of the type.
KEYS = st.lists(
    st.lists(st.sampled_from([-(2**63) + 1, -5, 0, 1, 2, 2**40, 2**63 - 1]), min_size=7, max_size=7),
    min_size=1,
    max_size=4,
)


@examples(40)
@given(rows=KEYS, count=st.integers(0, 9))
def test_counting_is_sorting(rows: list[list[int]], count: int) -> None:
    keys = torch.tensor(rows)
    order = keys.argsort(dim=1, stable=True)
    assert torch.equal(places_of(keys).gather(1, order), torch.arange(7).expand_as(keys))
    want = keys.sort(dim=1).values[:, :count]
    assert torch.equal(smallest(keys, count), want)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COUNTED, "cpu", 4 * 7 * 7)
        assert torch.equal(ascending(keys), order)
        assert torch.equal(smallest(keys, count), want)
        assert torch.equal(arranged(keys, count, keys)[0], want)
    assert torch.equal(arranged(keys, count, keys)[0], want)


@examples(40)
@given(
    flags=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3),
    count=st.integers(1, 8),
)
def test_the_first_flags(flags: list[list[bool]], count: int) -> None:
    found = first_of(torch.tensor(flags), count, 9).tolist()
    for one, own in zip(flags, found, strict=True):
        places = [place for place, flag in enumerate(one) if flag][:count]
        assert own == places + [9] * (count - len(places))


@pytest.mark.parametrize("most", [0, 10**6])
def test_a_mask_by_a_table_and_by_order(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiercel_serving.device.masks_torch.MOST_WRITTEN", {"cpu": most})
    mask = TensorMask(2, 5, torch.tensor([1, 3, 5, 6 + 0, 6 + 5]), 2)
    rows = torch.arange(6).expand(2, 6)
    assert mask.allows(rows).tolist() == [[1, 0, 1, 0, 1, 0], [0, 1, 1, 1, 1, 0]]
    mask.add(torch.tensor([[0], [5]]))
    assert mask.allows(rows).tolist() == [[0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 1, 0]]
