"""The contract of a reorder step, for every row of ``REORDER``, and of all steps together."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kind_contracts import check_rows, check_settings
from own_kinds import EvenYears
from tiny_release import column, list_column

from drawing import examples
from tiercel_serving.columns import Column
from tiercel_serving.reorder.boost_items import BoostItems
from tiercel_serving.reorder.calibration import Calibration
from tiercel_serving.reorder.cap import Cap
from tiercel_serving.reorder.constrained_sum import ConstrainedSum
from tiercel_serving.reorder.dpp import DPP
from tiercel_serving.reorder.epsilon_slot import EpsilonSlot
from tiercel_serving.reorder.fair_shares import FairShares
from tiercel_serving.reorder.freshness import Freshness
from tiercel_serving.reorder.gumbel_top_k import GumbelTopK
from tiercel_serving.reorder.inputs import FitsItems, of_source, sources_read
from tiercel_serving.reorder.mmr import MMR
from tiercel_serving.reorder.per_request import PerRequest, per_request
from tiercel_serving.reorder.pin_items import PinItems
from tiercel_serving.reorder.popularity_correction import PopularityCorrection
from tiercel_serving.reorder.score_floor import ScoreFloor
from tiercel_serving.reorder.spread import Spread
from tiercel_serving.reorder.steps import Steps, reasons_of
from tiercel_serving.reorder.table import REORDER, ReorderKind
from tiercel_serving.reorder.weighted_sum import WeightedSum
from tiercel_serving.settings import KNOWN, UNKNOWN, ServingSettings
from tiercel_serving.verify import reference

#: Raw item columns ``[I + 1]`` that steps may read; the last row is the pad row.
ITEMS = 20
COLUMNS: dict[str, Column] = {
    "year": column([None if row % 5 == 4 else 1990 + row for row in range(ITEMS)] + [None], np.int64),
    "genres": list_column([None, [b"x"], [b"y", b"x"], []] * 5 + [None], np.object_),
    "vector": list_column(
        # Whole lengths and angles, so that ties are exact in any arithmetic; two items have no vector.
        [[[2.0, 0, 0, 0], [0, 0, -1.0, 0], [1.0, 1, 1, 1], [0.0] * 4, None][row % 5] for row in range(ITEMS)]
        + [None],
        np.float32,
    ),
    of_source("popular"): column([row / 4 if row % 3 else None for row in range(ITEMS)] + [None], np.float32),
    "label": column([f"Film {row % 4}".encode() for row in range(ITEMS)] + [None], np.object_),
}
TASKS = 2

#: Kind → examples of its settings, for a ranker of two tasks and the columns above.
EXAMPLES: dict[str, list[Any]] = {
    "freshness": [Freshness("year", 3.0), Freshness("year", 2.5, PerRequest("w", 0.5, 0.0, 2.0), 1997.0)],
    "popularity_correction": [
        PopularityCorrection(source="popular"),
        PopularityCorrection(column="year", strength=PerRequest("w", 0.5, 0.0, 2.0)),
    ],
    "boost_items": [BoostItems("label", ("Film 1",), -0.5), BoostItems("genres", ("x", "y"))],
    "score_floor": [ScoreFloor(0.2), ScoreFloor(PerRequest("w", 0.5, 0.0, 2.0))],
    "mmr": [MMR(column="vector"), MMR(column="genres", strength=PerRequest("s", 0.5))],
    "dpp": [DPP(column="vector"), DPP(column="genres", strength=PerRequest("s", 0.5)), DPP(column="label")],
    "spread": [Spread(column="vector", window=2), Spread(column="genres", strength=PerRequest("s", 0.5))],
    "pin_items": [PinItems("label", ("Film 2", "Film 1"), 2), PinItems("year", (1991, 1993))],
    "calibration": [Calibration("genres"), Calibration("label", PerRequest("s", 0.5))],
    "fair_shares": [
        FairShares("label", (("Film 1", 0.5), ("Film 2", 0.25))),
        FairShares("year", ((1991, 0.1), (1992, 0.9))),
    ],
    "cap": [Cap("label", 1), Cap("genres", PerRequest("n", 1.0, 1.0, 3.0, whole=True)), Cap("year", 1)],
    "gumbel_top_k": [GumbelTopK(), GumbelTopK(PerRequest("t", 0.5, 0.25, 2.0))],
    "epsilon_slot": [EpsilonSlot(1, 1.0), EpsilonSlot(3, PerRequest("s", 0.5))],
    "weighted_sum": [WeightedSum((1.0, -0.5)), WeightedSum((0.0, 1e-3))],
    "constrained_sum": [ConstrainedSum(), ConstrainedSum(1, 0, 0.25, 0.75)],
    "even_years": [EvenYears(), EvenYears(0.25)],
}


def test_every_kind_is_here() -> None:
    check_rows(REORDER, EXAMPLES)


@dataclass(frozen=True)
class Batch:
    """Users with their kept candidates, empty slots last."""

    arrays: dict[str, np.ndarray]

    @property
    def users(self) -> int:
        return len(self.arrays["kept_row"])

    def of(self, user: int) -> dict[str, np.ndarray]:
        return {name: array[[user]] for name, array in self.arrays.items()}

    def kept(self, user: int) -> list[reference.Candidate]:
        rows, scores = self.arrays["kept_row"][user].tolist(), self.arrays["kept_score"][user].tolist()
        return [reference.Candidate(row, s, 1) for row, s in zip(rows, scores, strict=True) if row < ITEMS]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    users, kept = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    rows = np.stack([rng.permutation(ITEMS)[:kept] for _ in range(users)])
    real = np.arange(kept) < rng.integers(0, kept + 1, users)[:, None]
    # Few distinct numbers, so that scores tie, and NaN, as a broken model gives.
    numbers = [-1.5, 0, 0.1, 3, np.nan, *draw(st.sampled_from([[], [np.inf, -np.inf]]))]
    tasks = rng.choice(np.array(numbers, np.float32), (users, kept, TASKS))
    scores = rng.choice(np.array([0.25, 0.5, 1], np.float32), (users, kept))
    return Batch(
        {
            "kept_row": np.where(real, rows, ITEMS),
            "kept_score": np.where(real, scores, np.float32(0)),
            "rank_score": tasks,
            # Per-request numbers of steps; NaN means not sent.
            "w": rng.choice([0, 0.5, 2, np.nan], (users, 1)),
            "s": rng.choice([0, 0.25, 1, np.nan], (users, 1)),
            "n": rng.choice([1, 2, np.nan], (users, 1)),
            "t": rng.choice([0.25, 1, np.nan], (users, 1)),
            "seed": rng.choice([np.nan, 7, 2**40], (users, 1)),
            "now": rng.choice([np.nan, 1995.5], (users, 1)),
            "status": rng.choice(np.array([KNOWN, UNKNOWN], np.int32), (users, 1)),
            "history_row": rng.integers(0, ITEMS + 1, (users, 3)),
            "history_length": rng.integers(0, 4, (users, 1)).astype(np.int32),
        }
    )


item_of = reference.plain_items(COLUMNS)


def user_of(batch: Batch, user: int, served: list[int]) -> dict[str, Any]:
    """Return what a reference is given about a user."""
    told = {name: array[user] for name, array in batch.arrays.items()}
    numbers = {name: float(told[name][0]) for name in ("w", "s", "n", "t", "seed", "now")}
    return {**reference._extremes(item_of), "item_of": item_of, **told, **numbers, "served": served}


@pytest.mark.parametrize("name", EXAMPLES)
class TestReorderKind:
    def test_settings(self, name: str) -> None:
        for kind in EXAMPLES[name]:
            check_settings(REORDER, name, kind, ReorderKind)
            assert {*kind.columns(), *map(of_source, sources_read([kind]))} <= set(COLUMNS)
            assert not isinstance(kind, FitsItems) or kind.unfit(COLUMNS) == []
            assert {one.name for one in per_request([kind])} <= {"w", "s", "n", "t", "seed", "now"}
            assert kind.misfits(TASKS) == []
            assert bool(kind.misfits(0)) == kind.of_ranker

    @examples(10)
    @given(batch=batches())
    def test_it_scores_as_its_reference(self, name: str, batch: Batch) -> None:
        rows, tasks = batch.arrays["kept_row"], batch.arrays["rank_score"]
        empty = rows == ITEMS
        scores = np.where(empty, np.float32(-np.inf), np.fmax(tasks[:, :, 0], np.float32(-np.inf)))
        arrays = {**batch.arrays, "scores": scores}
        before = {key: array.copy() for key, array in arrays.items()}
        for kind in EXAMPLES[name]:
            step = kind.open(COLUMNS)
            changed, why = step.apply(scores, batch.arrays)
            for key, array in arrays.items():
                np.testing.assert_array_equal(array, before[key], err_msg=f"{key} was changed in place")
            assert (changed.shape, changed.dtype) == (rows.shape, np.float32)
            assert (why is None) == (not kind.reasons)
            if why is not None:
                dropped = np.isneginf(changed) & ~np.isneginf(scores)
                assert (why.shape, why.dtype) == (rows.shape, np.int32)
                assert why.min() >= 0
                assert why.max() <= len(kind.reasons)
                assert why[dropped].all(), "a step with reasons says why it drops an item"
                assert not why[empty].any()
            for user in range(batch.users):
                kept = batch.kept(user)
                described = [
                    {**item_of(c.row), "row": c.row, "kept_score": c.score, "rank_score": t}
                    for c, t in zip(kept, tasks[user].tolist(), strict=False)
                ]
                # The empty slots come last in the served order.
                rows_served = rows[user][np.lexsort((rows[user], -changed[user]))].tolist()
                told = user_of(batch, user, rows_served)
                expected = kind.reference(scores[user, : len(kept)].tolist(), described, told)
                np.testing.assert_array_equal(changed[user, : len(kept)], np.array(expected, np.float32))
                alone, _ = step.apply(scores[[user]], batch.of(user))
                np.testing.assert_array_equal(alone[0], changed[user])


CHAINS = st.lists(st.sampled_from([kind for kinds in EXAMPLES.values() for kind in kinds]), max_size=3)


@examples(35)
@given(batch=batches(), chain=CHAINS, ranked=st.booleans(), unknown=st.sampled_from(["fallback", "rank"]))
def test_all_steps_together(batch: Batch, chain: list[Any], ranked: bool, unknown: str) -> None:
    chain = [kind for kind in chain if ranked or not kind.of_ranker]
    settings = ServingSettings(reorder=tuple(chain), unknown_users=unknown)
    arrays = {name: array for name, array in batch.arrays.items() if ranked or name != "rank_score"}
    scores, rows, reasons, chances = Steps(settings, COLUMNS, ITEMS).apply(arrays)
    if chances is not None:
        assert ((chances > 0) & (chances <= 1) | np.isneginf(scores)).all()
    finals = [
        Steps(msgspec.structs.replace(settings, reorder=tuple(chain[: n + 1])), COLUMNS, ITEMS).apply(arrays)
        for n in range(len(chain))
    ]
    assert (reasons is None) == (not reasons_of(chain))
    assert np.isneginf(scores[rows == ITEMS]).all()
    for user in range(batch.users):
        kept = batch.kept(user)
        tasks = arrays["rank_score"][user, : len(kept)].tolist() if ranked else None
        nobody = bool(arrays["status"][user, 0] == UNKNOWN)
        told = user_of(batch, user, [])
        told["served_by_step"] = [
            final.rows[user][np.lexsort((final.rows[user], -final.scores[user]))].tolist() for final in finals
        ]
        ordered = reference.order(settings, item_of, kept, tasks, unknown=nobody, user=told)
        left = {int(row): float(score) for row, score in zip(rows[user], scores[user], strict=True)}
        left.pop(ITEMS, None)
        assert left == dict(ordered)
        if reasons is not None:
            assert not reasons[user, len(kept) :].any()
        if reasons is not None and all(isinstance(kind, EvenYears | WeightedSum) for kind in chain):
            own = 2 * sum(isinstance(kind, EvenYears) for kind in chain)
            for candidate, code in zip(kept, reasons[user], strict=False):
                if candidate.row not in left:
                    assert code == 2, "the first step that drops an item has the last word"
                elif np.isfinite(left[candidate.row]):
                    assert code == (own - 1 if item_of(candidate.row)["year"] % 2 == 0 else 0)


# ``weighted_sum``


@pytest.mark.parametrize("weights", [(), (float("nan"),), (1.0, float("inf"))])
def test_weights_that_are_none(weights: tuple[float, ...]) -> None:
    [problem] = WeightedSum(weights).problems()
    assert "expected a number a task" in str(problem)


def test_weights_that_do_not_fit() -> None:
    assert "2 weights, but the ranking model has 3 tasks" in str(WeightedSum((1.0, 2.0)).misfits(3)[0])
    assert "has no tasks" in str(WeightedSum((1.0,)).misfits(0)[0])


# exploration


def draw(kind: Any, seeds: int, scores: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return ordered rows and their propensities, one user per seed; items 0, 1 … have the given scores."""
    given = np.tile(np.array(scores, np.float32), (seeds, 1))
    rows = np.tile(np.arange(len(scores)), (seeds, 1))
    arrays = {"kept_row": rows, "seed": np.arange(float(seeds))[:, None]}
    step = kind.open({})
    changed, _ = step.apply(given, arrays)
    order = np.argsort(-changed, axis=1, kind="stable")
    return order, np.take_along_axis(step.propensity(given, changed, arrays), order, axis=1)


def test_gumbel_draws_whole_rankings_of_plackett_and_luce() -> None:
    order, chances = draw(GumbelTopK(temperature=0.5), 40_000, [1.0, 0.5, 0.0])
    weights = np.exp(np.array([1.0, 0.5, 0.0]) / 0.5)
    for ranking in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        first = weights[ranking[0]] / weights.sum()
        second = weights[ranking[1]] / (weights[ranking[1]] + weights[ranking[2]])
        drawn = (order == ranking).all(axis=1)
        assert drawn.mean() == pytest.approx(first * second, abs=0.01)
        np.testing.assert_allclose(chances[drawn], [[first, second, 1]] * int(drawn.sum()), rtol=1e-5)


def test_an_epsilon_slot_is_drawn_as_often_as_it_says() -> None:
    order, chances = draw(EpsilonSlot(place=2, share=0.4), 40_000, [4.0, 3.0, 2.0, 1.0])
    assert (order[:, 0] == 0).all()
    for item, chance in ((1, 0.6 + 0.4 / 3), (2, 0.4 / 3), (3, 0.4 / 3)):
        there = order[:, 1] == item
        assert there.mean() == pytest.approx(chance, abs=0.01)
        np.testing.assert_allclose(chances[there, 1], chance, rtol=1e-5)
    assert (chances[:, [0, 2, 3]] == 1).all()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GumbelTopK(0.0), "temperature: expected a number above 0, got 0.0"),
        (GumbelTopK(-1.0), "temperature: expected a number above 0, got -1.0"),
        (GumbelTopK(PerRequest("t", 0.1)), "temperature.low: expected a number above 0, got 0.0"),
        (GumbelTopK(PerRequest("t", 0.1, -1.0)), "temperature.low: expected a number above 0, got -1.0"),
        (Cap("label", 0), "most: expected a whole number of at least 1, got 0"),
        (
            Cap("label", PerRequest("n", 1, 0, 3, whole=True)),
            "most.low: expected a whole number of at least 1",
        ),
        (FairShares("label", (("a", 0.75), ("b", 0.5))), "shares: they add up to 1.25"),
        (FairShares("label", (("a", 0.5), ("a", 0.5))), "shares: expected values, each once"),
        (Calibration("genres", 2.0), "strength: expected a number of at least 0 and at most 1"),
        (EpsilonSlot(0), "place: expected a whole number of at least 1"),
        (EpsilonSlot(1, 1.5), "share: expected a number of at least 0 and at most 1"),
        (PinItems("label", ()), "values: expected values, each once, got ()"),
        (Spread(column="vector", window=1), "window: expected a whole number of at least 2"),
        (Freshness("year", 0.0), "half_life: expected a number above 0"),
    ],
)
def test_settings_that_make_no_sense(kind: Any, said: str) -> None:
    [problem] = kind.problems()
    assert str(problem).startswith(said)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (PinItems("label", ("Film 9",)), "values: no item has 'Film 9' in 'label'"),
        (PinItems("genres", ("x",)), "column: 'genres' holds lists"),
        (BoostItems("label", (3,)), "values: 'label' does not hold what"),
        (Freshness("label", 1.0), "column: 'label' holds text"),
        (PopularityCorrection(column="genres"), "column: 'genres' holds lists"),
        (MMR(column=of_source("popular")), "column: "),
        (Cap("vector", 2), "column: 'vector' holds floating-point numbers"),
    ],
)
def test_columns_that_do_not_fit(kind: Any, said: str) -> None:
    [problem] = kind.unfit(COLUMNS)
    assert str(problem).startswith(said)


def test_a_small_dpp_is_as_good_as_greed_promises() -> None:
    """Compare with every subset of three: the greedy choice reaches 1/(3!)² of the best determinant."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(8, 4)).astype(np.float32)
    there = {"v": list_column([*vectors.tolist(), None], np.float32)}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    arrays = {"kept_row": np.arange(8)[None], "k": np.array([[3]], np.int32)}
    changed, _ = DPP(column="v", strength=1.0).open(there).apply(np.zeros((1, 8), np.float32), arrays)
    chosen = np.argsort(-changed[0], kind="stable")[:3]
    volume = {s: np.linalg.det(unit[list(s)] @ unit[list(s)].T) for s in itertools.combinations(range(8), 3)}
    assert volume[tuple(sorted(chosen.tolist()))] >= max(volume.values()) / 6**2
    pairs = {at: np.linalg.det(unit[[chosen[0], at]] @ unit[[chosen[0], at]].T) for at in range(8)}
    assert chosen[1] == max(pairs, key=lambda at: pairs[at]), "the second is the best that follows the first"


def test_calibration_gives_a_user_the_genres_of_the_history() -> None:
    """The history is three quarters x, and so are the first items, however well the y score."""
    genres = list_column([[b"x"]] * 6 + [[b"y"]] * 6 + [None], np.object_)
    arrays = {
        "kept_row": np.arange(12)[None],
        "history_row": np.array([[0, 1, 2, 6]]),
        "history_length": np.array([[4]], np.int32),
    }
    scores = np.linspace(0, 1, 12, dtype=np.float32)[None]
    changed, _ = Calibration("genres", 0.99).open({"genres": genres}).apply(scores, arrays)
    first = np.argsort(-changed[0])[:8]
    assert [int((first[:n] < 6).sum()) for n in (4, 8)] == [3, 6]
    arrays["history_length"][:] = 0
    np.testing.assert_array_equal(
        Calibration("genres", 0.99).open({"genres": genres}).apply(scores, arrays)[0], scores
    )


def test_fair_shares_hold_at_every_place() -> None:
    kinds = column([b"a"] * 10 + [b"b"] * 10 + [None], np.object_)
    step = FairShares("kind", (("a", 0.75), ("b", 0.25))).open({"kind": kinds})
    changed, _ = step.apply(np.linspace(0, 1, 20, dtype=np.float32)[None], {"kept_row": np.arange(20)[None]})
    first = np.argsort(-changed[0])
    for place in range(1, 13):
        least, most = np.floor(0.75 * place), np.ceil(0.75 * place)
        assert least <= int((first[:place] < 10).sum()) <= most
