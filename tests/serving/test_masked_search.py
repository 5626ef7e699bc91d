"""Masked search returns the best allowed items, and as many as exist, for every mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tiny_release import Tiny, make_tiny

from drawing import examples
from tiercel_serving.errors import InvalidSettings
from tiercel_serving.ranked.masks import AllowedMask, Mask, make_mask
from tiercel_serving.release.artefacts import Artefact, open_artefact, write_artefact
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.sources import index as index_kind
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.index_build import build_index
from tiercel_serving.sources.scan import ExactSearch, Search, Space
from tiercel_serving.sources.search import IndexSearch
from tiercel_serving.sources.table import Material, Source, open_source

ITEMS, DIMENSION, COUNT = 3000, 16, 50
RANDOM = np.random.default_rng(0)
CENTRES = RANDOM.normal(size=(40, DIMENSION))
VECTORS = (CENTRES[RANDOM.integers(0, 40, ITEMS)] + RANDOM.normal(size=(ITEMS, DIMENSION)) / 2).astype(
    np.float32
)
QUERIES = RANDOM.normal(size=(64, DIMENSION)).astype(np.float32)
ORDER = np.argsort(-(QUERIES @ VECTORS.T), axis=1)
SPACE = Space(VECTORS, None, ITEMS)

FACTORIES = ["Flat", "IVF32,Flat", "HNSW32", "SQ8", "IVF32,SQ8"]

#: The rows masked for one user.
MASKS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "nothing": lambda rng, user: np.zeros(0, np.int64),
    "seen": lambda rng, user: rng.choice(ITEMS, 200, replace=False),
    "500 best hidden": lambda rng, user: ORDER[user, :500],
    "much seen": lambda rng, user: rng.choice(ITEMS, 2000, replace=False),
    "all but a few": lambda rng, user: rng.choice(ITEMS, ITEMS - 7, replace=False),
    "all but the best": lambda rng, user: ORDER[user, COUNT:],
    "everything": lambda rng, user: np.arange(ITEMS),
}


@pytest.fixture(autouse=True)
def _no_catalogue_is_small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiercel_serving.sources.scan.SCAN_ITEMS", 0)
        patch.setattr("tiercel_serving.sources.scan.BLOCK_NUMBERS", 0)
        # A lower limit on scores per scan, so that batches are split.
        patch.setattr("tiercel_serving.sources.scan.SCAN_SCORES", 7 * ITEMS)
        yield


@pytest.fixture(scope="module", params=FACTORIES)
def search(request: pytest.FixtureRequest) -> Search:
    return made(request.param)


MADE: dict[str, Search] = {}


def made(factory: str) -> Search:
    """Return a search over an index with its costs set low, so that it asks the index and does not scan."""
    if factory not in MADE:
        built = build_index(
            VECTORS, QUERIES, factory=factory, parameters=None, candidates=COUNT, min_recall=0.99
        )
        MADE[factory] = built.search(SPACE)
        if built.profile is not None:
            cheap = tuple(replace(rung, cost=0.01) for rung in built.profile.ladder)
            MADE[factory] = IndexSearch(SPACE, built.index, replace(built.profile, ladder=cheap))
    return MADE[factory]


def mask_of(masked: list[np.ndarray], items: int = ITEMS) -> Mask:
    rows = [np.sort(one) for one in masked]
    flat = np.concatenate([np.zeros(0, np.int64), *rows])
    return make_mask(len(rows), items, flat, np.array([len(one) for one in rows]))


def allowed_of(masked: list[np.ndarray]) -> Mask:
    """Return the same mask as an allowed set that lacks half of the masked rows; the rest are seen."""
    allowed = np.ones((len(masked), ITEMS + 1), np.bool_)
    for user, rows in enumerate(masked):
        allowed[user, rows[::2]] = False
    had = [np.sort(rows[1::2]) for rows in masked]
    flat = np.concatenate([np.zeros(0, np.int64), *had])
    return AllowedMask(allowed, flat, np.array([len(one) for one in had]))


def check(
    search: Search,
    users: list[int],
    masked: list[np.ndarray],
    make: Callable[[list[np.ndarray]], Mask] = mask_of,
    asked: int = COUNT,
) -> float:
    """Compare with exact search; return the mean share of the best allowed items found."""
    query = QUERIES[users]
    scores, rows = search.nearest(query, make(masked), asked)
    best, want = ExactSearch(SPACE).nearest(query, mask_of(masked), asked)
    shares = []
    for user, hidden in enumerate(masked):
        real = rows[user] < ITEMS
        count = min(asked, ITEMS - len(hidden))
        assert real.tolist() == [place < count for place in range(asked)]
        assert np.isneginf(scores[user, count:]).all()
        assert len(set(rows[user, :count].tolist())) == count
        assert not set(rows[user, :count].tolist()) & set(hidden.tolist())
        assert (np.diff(scores[user, :count]) <= 0).all()
        if isinstance(search, ExactSearch):
            np.testing.assert_array_equal(rows[user], want[user])
            np.testing.assert_array_equal(scores[user], best[user])
        if count:
            shares.append(np.isin(want[user, :count], rows[user]).mean())
    return float(np.mean(shares)) if shares else 1.0


@pytest.mark.parametrize("case", MASKS)
def test_each_case_alone_and_in_company(search: Search, case: str) -> None:
    rng = np.random.default_rng(1)
    masked = [MASKS[case](rng, user) for user in range(64)]
    assert check(search, list(range(64)), masked) >= 0.99
    assert np.mean([check(search, [user], [masked[user]]) for user in range(0, 64, 4)]) >= 0.99


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05, 0.01, 0.0005, 0.0])
def test_a_set_of_what_may_come_leaves_its_items_and_no_fewer(search: Search, share: float) -> None:
    rng = np.random.default_rng(3)
    masked = [rng.choice(ITEMS, ITEMS - round(share * ITEMS), replace=False) for _ in range(16)]
    # One user of the batch has no such restriction.
    masked[5] = MASKS["seen"](rng, 5)
    assert check(search, list(range(16)), masked, allowed_of) >= 0.99
    alone = search.nearest(QUERIES[:1], allowed_of(masked[:1]), COUNT)
    together = search.nearest(QUERIES[:16], allowed_of(masked), COUNT)
    if isinstance(search, ExactSearch) or share < 0.05:
        for one, every in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], every[0])


@pytest.mark.parametrize("heavy", ["500 best hidden", "much seen", "all but a few", "everything"])
def test_one_heavy_user_among_many(search: Search, heavy: str) -> None:
    rng = np.random.default_rng(2)
    masked = [MASKS["seen"](rng, user) for user in range(64)]
    light = search.nearest(QUERIES, mask_of(masked), COUNT)
    masked[17] = MASKS[heavy](rng, 17)
    assert check(search, list(range(64)), masked) >= 0.99
    together = search.nearest(QUERIES, mask_of(masked), COUNT)
    alone = search.nearest(QUERIES[17:18], mask_of([masked[17]]), COUNT)
    others = np.arange(64) != 17
    for one, before, mine in zip(together, light, alone, strict=True):
        np.testing.assert_array_equal(one[17], mine[0])
        np.testing.assert_array_equal(one[others], before[others])


@examples(5)
@given(
    factory=st.sampled_from([*FACTORIES, "IVF32,PQ8x4"]),
    make=st.sampled_from([mask_of, allowed_of]),
    asked=st.sampled_from([1, 7, COUNT, 120]),
    drawn=st.lists(st.tuples(st.integers(0, 63), st.sampled_from(list(MASKS))), min_size=1, max_size=9),
    seed=st.integers(0, 99),
)
def test_any_company(
    factory: str,
    make: Callable[[list[np.ndarray]], Mask],
    asked: int,
    drawn: list[tuple[int, str]],
    seed: int,
) -> None:
    """Compare over index types, kinds of masks, k, and batches that mix all kinds of users."""
    rng = np.random.default_rng(seed)
    users = [user for user, _ in drawn]
    check(made(factory), users, [MASKS[case](rng, user) for user, case in drawn], make, asked)


def test_ties_are_cut_by_row() -> None:
    space = Space(VECTORS[np.arange(ITEMS) % 3], None, ITEMS)
    masked = [np.arange(0, ITEMS, 2)]
    scores, rows = ExactSearch(space).nearest(QUERIES[:1], mask_of(masked), COUNT)
    products = np.einsum("id,d->i", space.vectors, QUERIES[0])
    free = np.arange(1, ITEMS, 2)
    want = free[np.lexsort((free, -products[free]))][:COUNT]
    assert rows[0].tolist() == want.tolist()
    assert scores[0].tolist() == products[want].tolist()


@pytest.mark.parametrize("items", [1, 3, 40, 170])
@pytest.mark.parametrize("factory", ["IVF8,Flat", "HNSW8", "SQ8"])
def test_a_catalogue_smaller_than_what_is_asked_for(factory: str, items: int) -> None:
    """An index that probes few of its lists returns too few items; the search must find the rest."""
    factory = factory if items >= 8 else factory.replace("IVF8", "IVF1")
    vectors = VECTORS[:items]
    space = Space(vectors, None, items)
    built = build_index(vectors, QUERIES, factory=factory, parameters=None, candidates=5, min_recall=0.99)
    masked = [np.argsort(-(vectors @ query))[: items // 2] for query in QUERIES]
    _, rows = built.search(space).nearest(QUERIES, mask_of(masked, items), COUNT)
    assert (np.count_nonzero(rows < items, axis=1) == min(COUNT, items - items // 2)).all()


# ----------------------------------------------------------------------------------------------- as a source


def source(place: Path, factory: str, allowed: np.ndarray | None, **form: Any) -> tuple[Index, Source]:
    kind = Index("near", factory=factory)
    material = Material(
        ITEMS,
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        form={"vectors": VECTORS, **form},
        queries=QUERIES,
        allowed=allowed,
        candidates=COUNT,
    )
    made = kind.make(material)
    place.mkdir()
    for name, write in made.files.items():
        write(str(place / name))
    write_artefact(place, "source", "build-1", made.arrays, made.meta)
    assert made.figures["recall"] >= 0.99
    return kind, open_source(kind, open_artefact(place, "source", "build-1"), ITEMS, 1)


@pytest.mark.parametrize(
    ("share", "by_index"), [(0.5, False), (0.5, True), (0.01, False), (0.0005, False), (0, False)]
)
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_rule_leaves_its_items_and_no_fewer(
    factory: str, share: float, by_index: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few allowed items are scanned, as is the allowed part of a small catalogue.
    monkeypatch.setattr(index_kind, "EXACT_ITEMS", 0 if by_index else 32_768)
    allowed = np.zeros(ITEMS, np.bool_)
    allowed[np.random.default_rng(5).permutation(ITEMS)[: int(share * ITEMS + 0.5)]] = True
    _, opened = source(tmp_path / "source", factory, allowed)
    rng = np.random.default_rng(6)
    masked = [MASKS["seen"](rng, user) for user in range(64)]
    _, rows = opened.candidates({"query_near": QUERIES}, mask_of(masked), COUNT)
    shares = []
    for user, hidden in enumerate(masked):
        free = allowed.copy()
        free[hidden] = False
        want = [row for row in ORDER[user].tolist() if free[row]][:COUNT]
        found = [row for row in rows[user].tolist() if row < ITEMS]
        assert len(found) == len(want)
        assert free[found].all()
        shares.append(np.isin(want, found).mean() if want else 1.0)
    assert np.mean(shares) >= 0.99


def test_scores_of_items_that_a_rule_excludes() -> None:
    kind = Index("near")
    none = np.zeros(0, np.int64)
    allowed = np.arange(ITEMS) % 2 == 0
    made = kind.make(Material(ITEMS, none, none, form={"vectors": VECTORS}, allowed=allowed))
    opened: Any = open_source(kind, Artefact.in_memory("source", made.arrays, made.meta), ITEMS, 1)
    scores = opened.score({"query_near": QUERIES[:1]}, np.array([[0, 1, 2, ITEMS]]))
    assert np.isneginf(scores[0]).tolist() == [False, True, False, True]


def test_an_impossible_factory_is_refused_even_where_none_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="could not parse index string Magic"):
        source(tmp_path / "source", "Magic", np.arange(ITEMS) < 5)


def test_parameters_are_checked_and_left_aside_where_a_rule_leaves_few_items() -> None:
    none = np.zeros(0, np.int64)
    few = Material(
        ITEMS, none, none, form={"vectors": VECTORS}, queries=QUERIES, allowed=np.arange(ITEMS) < 9
    )
    made = Index("near", factory="IVF32,Flat", parameters={"nprobe": 8}).make(few)
    assert made.figures["factory"] == "Flat"
    for name, value in (("nprobe", 33), ("efSearch", 8)):
        with pytest.raises(InvalidSettings, match=name):
            Index("near", factory="IVF32,Flat", parameters={name: value}).make(few)


# ----------------------------------------------------------------------------------------- as served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Chain]:
    changes = {
        **{"candidates": 200, "kept": 100, "k_default": 100, "k_max": 100},
        **{"max_excluded": 1000, "max_batch_size": 64},
    }
    path = tmp_path_factory.mktemp("masked") / "release"
    tiny = make_tiny(
        path, users=70, items=2500, most_seen=2480, factory="IVF16,Flat", settings=changes, seed=3
    )
    return tiny, Chain.open(tiny.release)


def best(tiny: Tiny, query: np.ndarray, hidden: set[int]) -> list[int]:
    products = np.einsum("id,d->i", tiny.vectors["near"], query)
    return [row for row in np.argsort(-products, kind="stable").tolist() if row not in hidden]


def test_paging_by_excluding_what_was_shown(served: tuple[Tiny, Chain]) -> None:
    tiny, chain = served
    # Among the users who have seen little, one has seen nothing.
    users = sorted(range(70), key=lambda user: len(tiny.seen[user]))[:8]
    shown = np.zeros((8, 0), np.int64)
    for page in range(5):
        asked = {"user_id": np.array([[tiny.user_ids[user]] for user in users])}
        if page:
            asked["exclude_item_ids"] = shown
        out, _ = chain.run(asked)
        assert out["count"].tolist() == [[100]] * 8
        for at, user in enumerate(users):
            rows = [tiny.item_ids.index(item) for item in out["item_id"][at].tolist()]
            excluded = {tiny.item_ids.index(item) for item in shown[at].tolist()}
            want = best(tiny, out["query_near"][at], tiny.seen[user] | excluded)[:100]
            assert set(rows) == set(want)
            assert out["source"][at].tolist() == [1] * 200
        shown = np.concatenate([shown, out["item_id"]], axis=1)


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16,PQ2x4", "HNSW16", "SQ8"])
def test_paging_to_the_end_of_the_catalogue(factory: str, tmp_path: Path) -> None:
    """Every page is full until no items are left, for users of every kind in one batch."""
    items, page, changes = 260, 40, {"candidates": 60, "kept": 40, "k_default": 40, "k_max": 40}
    tiny = make_tiny(
        tmp_path / "release",
        items=items,
        most_seen=250,
        factory=factory,
        settings={**changes, "max_excluded": items},
    )
    chain = Chain.open(tiny.release)
    # Of the known users, one has seen nothing and one everything; two users are unknown.
    users = np.array([*tiny.user_ids[:6], 5, 8])[:, None]
    seen = [*tiny.seen[:6], set[int](), set[int]()]
    shown: list[list[int]] = [[] for _ in seen]
    for _ in range(items // page + 2):
        lengths = np.array([[len(mine)] for mine in shown], np.int32)
        excluded = np.zeros((len(seen), max(int(lengths.max()), 1)), np.int64)
        for at, mine in enumerate(shown):
            excluded[at, : len(mine)] = mine
        asked = {"exclude_item_ids": excluded, "exclude_item_ids__length": lengths}
        out, _ = chain.run({"user_id": users, **asked})
        for at, had in enumerate(seen):
            count = int(out["count"][at, 0])
            assert count == min(page, items - len(had) - len(shown[at]))
            shown[at] += out["item_id"][at, :count].tolist()
    for had, mine in zip(seen, shown, strict=True):
        assert {tiny.item_ids.index(item) for item in mine} == set(range(items)) - had
        assert len(set(mine)) == len(mine)


def test_sixty_four_heavy_users_in_one_batch(served: tuple[Tiny, Chain]) -> None:
    tiny, chain = served
    # The user with the longest history has seen the whole catalogue; some have fewer than k items left.
    users = sorted(range(70), key=lambda user: -len(tiny.seen[user]))[:64]
    assert len(tiny.seen[users[0]]) == 2500
    out, _ = chain.run({"user_id": np.array([[tiny.user_ids[user]] for user in users])})
    for at, user in enumerate(users):
        left = 2500 - len(tiny.seen[user])
        count = int(out["count"][at, 0])
        assert count == min(100, left)
        want = best(tiny, out["query_near"][at], tiny.seen[user])[:100]
        assert {tiny.item_ids.index(item) for item in out["item_id"][at, :count].tolist()} == set(want)
    alone, _ = chain.run({"user_id": np.array([[tiny.user_ids[users[5]]]])})
    assert alone["item_id"][0].tolist() == out["item_id"][5].tolist()


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize("period", [1, 2, 129])
def test_a_sample_is_of_what_is_masked(users: int, period: int) -> None:
    rows = np.arange(1, ITEMS, period)
    for mask in (
        make_mask(users, ITEMS, np.tile(rows, users), np.full(users, len(rows))),
        AllowedMask(np.ones((users, ITEMS + 1), np.bool_), np.tile(rows, users), np.full(users, len(rows))),
    ):
        for most in (8, 128, 10_000):
            sample = mask.sample(users - 1, len(rows), most)
            assert set(sample.tolist()) <= set(rows.tolist())
            assert min(most, len(rows)) / 2 <= len(sample) <= 2 * most + 1
