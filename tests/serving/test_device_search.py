"""Exact search on a device against the scan on the host: blocks, masks, ties, rules, rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from on_device import DEVICES

from tiercel_serving.device.masks_torch import TensorMask
from tiercel_serving.device.order_torch import read_keys, repeated, sort_keys
from tiercel_serving.device.place_torch import Place
from tiercel_serving.device.search_torch import MARGIN, DeviceSearch, most_alike
from tiercel_serving.errors import InvalidSettings
from tiercel_serving.ranked.masks import AllowedMask, Mask, make_mask
from tiercel_serving.ranked.order import read_keys as read_numpy
from tiercel_serving.ranked.order import repeated as repeated_numpy
from tiercel_serving.ranked.order import sort_keys as sort_numpy
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.scan import ExactSearch, Space
from tiercel_serving.sources.table import Material

USERS, ITEMS, DIMENSION = 5, 700, 8


def masks(place: Place, rng: np.random.Generator, kind: str, items: int = ITEMS) -> tuple[Mask, TensorMask]:
    """Return the same mask for host and device: seen items, or seen items and a set of allowed ones."""
    counts = np.array([0, 3, 40, 40, items // 2])
    flat = np.concatenate([rng.permutation(items)[:count] for count in counts])
    allowed = None if kind == "seen" else rng.random((USERS, items + 1)) < (0.5 if kind == "half" else 0.01)
    base = np.arange(USERS) * (items + 1)
    cells = np.concatenate([flat + np.repeat(base, counts), base + items])
    there = None if allowed is None else place.put(allowed)
    ours = TensorMask(USERS, items, place.put(cells), int(counts.max()), there)
    if allowed is None:
        return make_mask(USERS, items, flat, counts), ours
    return AllowedMask(allowed, flat, counts), ours


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kind", "cut", "vectors"),
    [
        *(("seen", False, "random"), ("seen", True, "ties"), ("seen", False, "grid")),
        *(("half", True, "random"), ("half", False, "ties"), ("half", True, "grid")),
        *(("few", False, "random"), ("few", True, "ties")),
    ],
)
def test_it_finds_what_a_scan_finds(device: str, kind: str, cut: bool, vectors: str) -> None:
    rng, place = np.random.default_rng(3), Place(device)
    made = rng.normal(size=(ITEMS, DIMENSION)).astype(np.float32)
    if vectors == "ties":
        made = made[rng.integers(0, 9, ITEMS)]
    if vectors == "grid":  # few bits, so that all sums are exact and many scores tie
        made = rng.integers(-2, 3, made.shape).astype(np.float32)
    query = rng.normal(size=(USERS, DIMENSION)).astype(np.float32)
    query[0] = 0
    if vectors == "grid":
        query = np.round(query)
    rows = np.sort(rng.permutation(ITEMS)[:500]).astype(np.int32) if cut else None
    space = Space(made if rows is None else made[rows], rows, ITEMS)
    there = None if rows is None else place.table(rows.astype(np.int64))
    for block in (256 * USERS, 1 << 20):
        search = DeviceSearch(place.table(space.vectors), there, ITEMS, block)
        for count in (20, 600):
            mask, ours = masks(place, rng, kind)
            want, found = (
                ExactSearch(space).nearest(query, mask, count),
                search.nearest(place.put(query), ours, count),
            )
            np.testing.assert_array_equal(place.take(found[1]), want[1])
            np.testing.assert_allclose(place.take(found[0]), want[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_vectors_are_searched_as_they_are(device: str, dtype: torch.dtype) -> None:
    """Items selected in half precision are scored in full, exactly as by a scan of the rounded vectors."""
    rng, place = np.random.default_rng(5), Place(device)
    rounded = torch.from_numpy(rng.normal(size=(ITEMS, DIMENSION)).astype(np.float32)).to(dtype)
    query = rng.normal(size=(USERS, DIMENSION)).astype(np.float32)
    scan = ExactSearch(Space(rounded.float().numpy(), None, ITEMS))
    for block in (256 * USERS, 1 << 20):
        search = DeviceSearch(rounded.to(place.device), None, ITEMS, block)
        for kind, count in (("seen", 20), ("half", 20), ("few", 600)):
            mask, ours = masks(place, rng, kind)
            want, found = scan.nearest(query, mask, count), search.nearest(place.put(query), ours, count)
            np.testing.assert_array_equal(place.take(found[1]), want[1])
            np.testing.assert_allclose(place.take(found[0]), want[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_score_depends_on_nothing_else(device: str) -> None:
    """A score is the same to the bit, whatever the block, batch or position."""
    rng, place = np.random.default_rng(0), Place(device)
    vectors = rng.normal(size=(ITEMS, DIMENSION)).astype(np.float32)
    query = place.put(rng.normal(size=(USERS, DIMENSION)).astype(np.float32))
    free = lambda users: TensorMask(users, ITEMS, place.put(np.arange(users) * (ITEMS + 1) + ITEMS), 0)  # noqa: E731
    search = DeviceSearch(place.table(vectors), None, ITEMS)
    scores, rows = search.nearest(query, free(USERS), 30)
    for user in range(USERS):
        alone = DeviceSearch(place.table(vectors), None, ITEMS, 96).nearest(
            query[user : user + 1], free(1), 30
        )
        assert torch.equal(alone[0][0], scores[user])
        assert torch.equal(alone[1][0], rows[user])


def test_keys_are_the_hosts() -> None:
    scores = np.array([[1.5, -0.0, 0.0, -np.inf, np.inf, -3e-42, 7.0]], np.float32)
    rows = np.array([[5, 4, 3, 2**31 - 1, 0, 1, 2]])
    keys = sort_keys(torch.from_numpy(scores), torch.from_numpy(rows))
    np.testing.assert_array_equal(keys.numpy(), sort_numpy(scores, rows))
    for ours, theirs in zip(read_keys(keys), read_numpy(keys.numpy()), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
    again = np.array([[3, 1, 3, 3, 1], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(repeated(torch.from_numpy(again)).numpy(), repeated_numpy(again))


def test_items_that_are_alike_are_all_looked_at() -> None:
    vectors = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    vectors[10:75] = vectors[3]
    vectors[75:80] = [0.0, -0.0, 0.0, 0.0]
    vectors[80:85] = 0.0
    assert most_alike(torch.from_numpy(vectors)) == 66 > MARGIN
    assert most_alike(torch.empty((0, 4))) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_to_search_and_a_broken_query(device: str) -> None:
    place = Place(device)
    mask = TensorMask(1, 3, place.put(np.array([3])), 0)
    query = torch.full((1, 2), torch.nan, device=place.device)
    for size in (0, 3):
        rows = torch.arange(size, device=place.device)
        scores, found = DeviceSearch(torch.ones((size, 2), device=place.device), rows, 3).nearest(
            query, mask, 2
        )
        assert scores.tolist() == [[float("-inf")] * 2]
        assert found.tolist() == [[3, 3]]


def material(seed: int = 0, **options: Any) -> Material:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(400, 16)).astype(np.float32)
    queries = rng.normal(size=(30, 16)).astype(np.float32)
    none = np.empty(0, np.int64)
    seen = [rng.permutation(400)[:9] for _ in queries]
    form = {"vectors": vectors}
    return Material(400, none, none, form=form, queries=queries, seen=seen, candidates=50, **options)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_the_recall_of_rounded_vectors_is_measured(precision: str) -> None:
    made = Index("near", precision=precision, min_recall=0.9).make(material())
    assert made.figures["precision"] == precision
    assert made.arrays["vectors"].dtype == np.float32
    assert 0.97 < made.figures["recall_rounded"] <= 1.0
    coarse = material()
    coarse.form["vectors"][:] = 100 + coarse.form["vectors"] / 1000
    words = f"rounded to {precision}, .*below min_recall 1.0; leave precision"
    with pytest.raises(InvalidSettings, match=words):
        Index("near", precision=precision, min_recall=1.0).make(coarse)


def test_a_precision_that_is_none() -> None:
    assert [problem.field for problem in Index("near", precision="int4").problems()] == ["precision"]
