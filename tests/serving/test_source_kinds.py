"""The contract of a source, for every row of ``SOURCES``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kind_contracts import check_rows, check_settings
from own_kinds import Beside

from drawing import examples
from tiercel_serving.columns import Column
from tiercel_serving.errors import InvalidSettings
from tiercel_serving.ranked.masks import BitmapMask, KeyMask, Mask
from tiercel_serving.release.artefacts import Artefact, open_artefact, write_artefact
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.item_weights import ItemWeights, WeightedItems
from tiercel_serving.sources.lists import Lists
from tiercel_serving.sources.popular import Popular
from tiercel_serving.sources.scan import ExactSearch, Space
from tiercel_serving.sources.search import IndexSearch, Profile, Rung
from tiercel_serving.sources.table import SOURCES, Made, Material, Scorer, Source, SourceKind, open_source
from tiercel_serving.sources.user_neighbours import UserNeighbours

Draw = Callable[[np.random.Generator, int], dict[str, np.ndarray]]


def nothing(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    return {}


@dataclass(frozen=True)
class Example:
    """A kind, the arrays it is made of (for so many items), and the tensors it reads (for so many users)."""

    kind: Any
    form: Draw = nothing
    tensors: Draw = nothing
    columns: Callable[[np.random.Generator, int], Mapping[str, Column]] = nothing  # type: ignore[assignment]


def vectors(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return vectors, some of them equal, so that scores tie."""
    some = rng.normal(size=(n, 33)).astype(np.float32)
    return some[rng.integers(0, n, n)]


def item_weights(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Return weights with few digits and both signs, so that sums tie and cancel."""
    dense = rng.integers(-2, 4, (n, n)) * (rng.random((n, n)) < 0.4) / 4
    rows, columns = np.nonzero(dense)
    offsets = np.append(0, np.cumsum(np.bincount(rows, minlength=n)))
    return {"offsets": offsets, "columns": columns, "weights": dense[rows, columns]}


def lists(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Return five lists, some empty, with scores that tie."""
    listed = [rng.permutation(n)[: rng.integers(0, n + 1)] for _ in range(5)]
    rows = np.concatenate(listed)
    return {
        "keys": vectors(rng, 5)[:, :33],
        "offsets": np.append(0, np.cumsum([len(some) for some in listed])),
        "rows": rows,
        "scores": rng.integers(0, 3, len(rows)) / 2,
    }


def neighbours(jaccard: int) -> Draw:
    """Return weights with few digits, some items without users and users without items."""

    def draw(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        had = (rng.random((7, n)) < 0.4) & (rng.random(n) < 0.8) & (rng.random((7, 1)) < 0.9)
        of_item, of_user = np.nonzero(had.T), np.nonzero(had)
        return {
            "offsets": np.append(0, np.cumsum(had.sum(0))),
            "users": of_item[1],
            "likeness": rng.integers(0, 3, had.sum()) / 2,
            "weights": rng.integers(0, 3, n) / 2,
            "lengths": had.sum(1),
            "vote_offsets": np.append(0, np.cumsum(had.sum(1))),
            "voted": of_user[1],
            "votes": rng.integers(-1, 3, had.sum()),
            "neighbours": np.array([rng.integers(1, 9)]),
            "shrinkage": np.array([rng.integers(0, 3)]),
            "jaccard": np.array([jaccard]),
        }

    return draw


#: Kind → examples of its settings. ``history_row`` and ``history_length`` are always there.
EXAMPLES: dict[str, list[Example]] = {
    "index": [
        Example(
            kind, lambda rng, n: {"vectors": vectors(rng, n)}, lambda rng, n: {"query_near": vectors(rng, n)}
        )
        for kind in (
            Index("near"),
            Index("near", 3, factory="IVF2,Flat", parameters={"nprobe": 2}),
            Index("near", factory="HNSW8", parameters={"efSearch": 64}),
        )
    ],
    "item_weights": [
        Example(ItemWeights("near"), item_weights),
        Example(ItemWeights("near", 2), item_weights),
    ],
    "user_neighbours": [
        Example(UserNeighbours("near"), neighbours(0)),
        Example(UserNeighbours("near", 2), neighbours(1)),
    ],
    "lists": [
        Example(kind, lists, lambda rng, n: {"query_near": vectors(rng, n)})
        for kind in (Lists("near"), Lists("near", 2))
    ],
    "popular": [
        Example(Popular()),
        Example(Popular("hot", 2)),
        Example(Popular("late", half_life_days=0.5)),
    ],
    "beside": [Example(Beside("next"))],
}
EACH = [pytest.param(e, id=f"{name}-{n}") for name, kinds in EXAMPLES.items() for n, e in enumerate(kinds)]


def test_every_kind_is_here() -> None:
    check_rows(SOURCES, EXAMPLES)


class Case:
    """One drawn catalogue with its users: a source's artefact and its requests."""

    def __init__(self, example: Example, seed: int, items: int, users: int, masked: list[Any]) -> None:
        rng = np.random.default_rng(seed)
        self.kind: SourceKind = example.kind
        self.items, self.users = items, users
        self.kind_of_mask = (BitmapMask, KeyMask)[seed % 2]
        lengths = rng.integers(0, 4, users)
        history = np.full((users, 4), items)
        for user, length in enumerate(lengths):
            history[user, :length] = rng.integers(0, items, length)
        drawn = {
            "history_row": history,
            "history_length": lengths.astype(np.int32)[:, None],
            **example.tensors(rng, users),
        }
        self.tensors = {name: drawn[name] for name in self.kind.reads()}
        n = int(rng.integers(0, 40))
        self.material = Material(
            items,
            rng.integers(-1, users, n),
            rng.integers(0, items, n),
            columns=example.columns(rng, items),
            form=example.form(rng, items),
            candidates=items,
            times=np.sort(rng.integers(0, 3, n)) * 43_200.0,
        )
        self.masked = [
            set(range(items)) if rows is None else {row % items for row in rows} for rows in masked
        ]

    def mask(self, *users: int) -> Mask:
        chosen = [sorted(self.masked[user]) for user in users]
        flat = np.array([row for rows in chosen for row in rows], np.int64)
        return self.kind_of_mask(len(users), self.items, flat, np.array([len(rows) for rows in chosen]))

    def made(self, *, measured: bool = False) -> Made:
        queries = self.tensors.get(f"query_{self.kind.name}") if measured else None
        return self.kind.make(replace(self.material, queries=queries))

    def opened(self, made: Made) -> Source:
        return open_source(self.kind, Artefact.in_memory("source", made.arrays, made.meta), self.items, 1)

    def ask(self, source: Source, count: int, *users: int) -> tuple[np.ndarray, np.ndarray]:
        tensors = {name: array[list(users)] for name, array in self.tensors.items()}
        mask = self.mask(*users)
        before = mask.table().copy()
        scores, rows = source.candidates(tensors, mask, count)
        np.testing.assert_array_equal(mask.table(), before)
        return scores, rows


@st.composite
def cases(draw: st.DrawFn, example: Example) -> Case:
    users = draw(st.integers(1, 5))
    masks = st.none() | st.just([]) | st.lists(st.integers(0, 99), max_size=9)
    return Case(
        example,
        draw(st.integers(0, 999)),
        draw(st.integers(4, 12)),
        users,
        draw(st.lists(masks, min_size=users, max_size=users)),
    )


quick = examples(9)


@pytest.mark.parametrize("example", EACH)
class TestSourceKind:
    def test_settings(self, example: Example) -> None:
        name = next(name for name, kinds in EXAMPLES.items() if example in kinds)
        check_settings(SOURCES, name, example.kind, SourceKind)
        assert set(example.kind.columns()) <= set(example.columns(np.random.default_rng(0), 3))

    @quick
    @given(data=st.data())
    def test_it_gives_what_its_reference_gives(self, example: Example, data: st.DataObject) -> None:
        case = data.draw(cases(example))
        count = data.draw(st.integers(1, case.items + 3))
        made = case.made()
        scores, rows = case.ask(case.opened(made), count, *range(case.users))
        assert scores.shape == rows.shape == (case.users, count)
        assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
        for user in range(case.users):
            allowed = np.array([row not in case.masked[user] for row in range(case.items)])
            tensors = {name: array[user] for name, array in case.tensors.items()}
            best = case.kind.reference(made.arrays, tensors, allowed, count)
            empty = [(case.items, -np.inf)] * (count - len(best))
            assert list(zip(rows[user].tolist(), scores[user].tolist(), strict=True)) == best + empty

    @quick
    @given(data=st.data())
    def test_written_or_in_memory_alone_or_in_company(self, example: Example, data: st.DataObject) -> None:
        case = data.draw(cases(example))
        count = data.draw(st.integers(1, case.items + 3))
        scores, rows = case.ask(case.opened(case.made()), count, *range(case.users))
        with TemporaryDirectory() as place:
            written = self.written(case, Path(place) / "source")
            for user in range(case.users):
                alone = case.ask(written, count, user)
                np.testing.assert_array_equal(alone[0], scores[[user]])
                np.testing.assert_array_equal(alone[1], rows[[user]])

    def written(self, case: Case, path: Path) -> Source:
        made = case.made(measured=True)
        path.mkdir()
        for name, write in made.files.items():
            write(str(path / name))
        write_artefact(path, "source", "build-1", made.arrays, made.meta)
        return open_source(case.kind, open_artefact(path, "source", "build-1"), case.items, 1)

    @quick
    @given(data=st.data())
    def test_a_scorer_scores_any_item(self, example: Example, data: st.DataObject) -> None:
        case = data.draw(cases(example))
        made = case.made()
        source = case.opened(made)
        assert isinstance(source, Scorer) == hasattr(case.kind, "reference_score")
        if not isinstance(source, Scorer):
            return
        rows = np.tile(np.arange(case.items + 1), (case.users, 1))
        scores = source.score(case.tensors, rows)
        assert (scores.shape, scores.dtype) == (rows.shape, np.float32)
        assert np.isneginf(scores[:, -1]).all()
        for user in range(case.users):
            tensors = {name: array[user] for name, array in case.tensors.items()}
            expected = [case.kind.reference_score(made.arrays, tensors, row) for row in range(case.items)]  # type: ignore[attr-defined]
            assert scores[user, :-1].tolist() == expected
        given_, found = case.ask(source, case.items, *range(case.users))
        np.testing.assert_array_equal(given_, source.score(case.tensors, found))


# ``index``


@pytest.mark.parametrize("copies", [30, 300])
@pytest.mark.parametrize("masked", [0, 20, 60])
def test_all_that_tie_are_seen_whatever_the_neighbours_must_not_get(masked: int, copies: int) -> None:
    """The search asks an index for a few extra results; even if more than those tie, it finds all ties."""
    vectors = np.tile(np.eye(2, dtype=np.float32)[::-1], (copies, 1))
    index = faiss.IndexFlatIP(2)
    index.add(vectors)
    space = Space(vectors, None, 2 * copies)
    searches = (
        ExactSearch(space),
        IndexSearch(space, index, Profile(None, 0.0, (Rung(5, 0, 0.1, 1.0), Rung(10, 0, 0.1, 1.0)))),
    )
    seen = np.arange(masked)
    wanted = 2 * np.arange(copies * 2)
    for kind in (BitmapMask, KeyMask):
        mask = kind(2, 2 * copies, seen, np.array([0, masked]))
        for search in searches:
            scores, rows = search.nearest(np.eye(2, dtype=np.float32), mask, 5)
            assert rows[0].tolist() == [1, 3, 5, 7, 9]
            assert rows[1].tolist() == np.append(wanted[masked // 2 : copies], [2 * copies] * 5)[:5].tolist()
            assert scores[0].tolist() == [1.0] * 5


# ``popular``


def test_of_late_a_half_life_before_the_latest_counts_half() -> None:
    times = np.array([0.0, 0, 0, 10, 20]) * 86_400
    material = Material(3, np.arange(5), np.array([0, 0, 0, 1, 2]), times=times)
    made = Popular(half_life_days=10).make(material)
    assert made.arrays["rows"].tolist() == [2, 0, 1]
    assert made.arrays["scores"].tolist() == [1.0, 0.75, 0.5]
    assert Popular().make(material).arrays["rows"].tolist() == [0, 1, 2]
    nothing = Material(3, np.zeros(0, np.int64), np.zeros(0, np.int64), times=np.zeros(0))
    assert Popular(half_life_days=10).make(nothing).arrays["scores"].tolist() == [0.0, 0, 0]
    with pytest.raises(InvalidSettings, match=r"half_life_days=10 needs the time .* there is none"):
        Popular(half_life_days=10).make(replace(material, times=None))
    assert "expected a number above 0" in str(Popular(half_life_days=0.0).problems()[0])


# ``item_weights``


def test_sums_of_many_users_are_those_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large users × items are summed by sorting and not in a dense array: the sums are equal to the bit."""
    rng = np.random.default_rng(0)
    offsets = np.append(0, np.cumsum(rng.integers(0, 9, 50)))
    columns = rng.integers(0, 50, offsets[-1]).astype(np.int32)
    source = WeightedItems(offsets, columns, rng.normal(size=len(columns)).astype(np.float32), 50)
    arrays = {"history_row": rng.integers(0, 51, (8, 20))}
    mask = BitmapMask(8, 50, np.arange(8), np.ones(8, np.int64))
    rows = np.tile(np.arange(51), (8, 1))
    found = (*source.candidates(arrays, mask, 10), source.score(arrays, rows))
    monkeypatch.setattr("tiercel_serving.sources.sparse_sums.BITMAP_CELLS", 0)
    again = (*source.candidates(arrays, mask, 10), source.score(arrays, rows))
    for first, second in zip(found, again, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": None}, "got no weights"),
        ({"offsets": [0, 1]}, "expected 4 offsets .* got 2"),
        ({"columns": [0, 3]}, "columns lie below 3"),
        ({"offsets": [0, 2, 1, 2]}, "offsets must rise"),
        ({"weights": [1.0, np.nan]}, "a weight of row 2 is nan"),
    ],
)
def test_what_is_no_matrix_of_the_catalogue_is_refused(changes: dict[str, Any], words: str) -> None:
    form = {"offsets": [0, 1, 1, 2], "columns": [0, 1], "weights": [1.0, 2.0], **changes}
    form = {name: np.array(array) for name, array in form.items() if array is not None}
    nobody = np.zeros(0, np.int64)
    with pytest.raises(InvalidSettings, match=f"item weights 'near': .*{words}"):
        ItemWeights("near").make(Material(3, nobody, nobody, form=form))
