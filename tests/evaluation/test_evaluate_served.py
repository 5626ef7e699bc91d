"""Evaluation against a fake server with known lists, whose figures are computed by hand."""

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from drawing import examples
from tiercel_client import ServerUnavailable
from tiercel_pipelines.commands.evaluate import figures_table, human
from tiercel_pipelines.data import Dataset, split_dataset
from tiercel_pipelines.errors import EvaluationError
from tiercel_pipelines.offline.evaluate import check_protocol, check_same, evaluate_served
from tiercel_pipelines.offline.evaluation_data import EvaluationData
from tiercel_pipelines.offline.published import PUBLISHED
from tiercel_pipelines.offline.scored import draw_negatives, one_plus_n
from tiercel_pipelines.offline.served_ensemble import ServedEnsemble
from tiercel_pipelines.recipe import Compare, ServingSettings, SplitSettings

ITEMS = [f"i{row}" for row in range(6)]
KNOWN = [("anna", "i0"), ("anna", "i1"), ("bo", "i0"), ("bo", "i2"), ("cy", "i0")]
TEST = [("anna", "i2"), ("anna", "i3"), ("bo", "i5"), ("anna", "i3")]


@dataclass
class FakeServed:
    """Returns the lists that the test sets for each user."""

    ranked: dict
    retrieved: dict
    batch: int = 1
    k_max: int = 5
    asked: list = field(default_factory=list)

    @property
    def info(self):
        return SimpleNamespace(name="toy", build_id="b1", max_batch_size=self.batch, k_max=self.k_max)

    def recommend(self, user_ids, k, now_s=None):
        self.asked.append(list(user_ids))
        return [[ITEMS[row] for row in self.ranked[user][:k]] for user in user_ids]

    def retrieve(self, user_ids, now_s=None):
        width = max(map(len, self.retrieved.values()))
        rows = np.full((len(user_ids), width), len(ITEMS))
        for place, user in enumerate(user_ids):
            rows[place, : len(self.retrieved[user])] = self.retrieved[user]
        return rows


def frame(pairs):
    return pd.DataFrame(pairs, columns=["user_id", "item_id"])


@pytest.fixture
def data():
    return EvaluationData.from_frames("toy", pd.DataFrame({"item_id": ITEMS}), frame(KNOWN), frame(TEST))


def served(**changes):
    lists = {
        "ranked": {"anna": [3, 4], "bo": [5, 1]},
        "retrieved": {"anna": [4, 5, 3], "bo": [1, 3, 5]},
    }
    return FakeServed(**{**lists, **changes})


def test_data_keeps_users_with_test_items_and_counts_a_repeated_pair_once(data):
    assert data.user_ids == ["anna", "bo"]
    assert data.relevance.counts.tolist() == [2, 1]
    assert data.masked.counts.tolist() == [2, 2]
    assert data.popularity_lists(6).tolist() == [[2, 3, 4, 5, 6, 6], [1, 3, 4, 5, 6, 6]]


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_figures_are_those_computed_by_hand(data, batch):
    fake = served(batch=batch)
    report = evaluate_served(fake, data, k=2)
    # anna: i3 at place 1 of two relevant; bo: i5 at place 1 of one relevant.
    ideal_two = 1 + 1 / math.log2(3)
    ranking = report.figures["ranking"]
    assert ranking.ndcg == pytest.approx((1 / ideal_two + 1) / 2)
    assert ranking.precision == pytest.approx(0.5)
    assert ranking.recall == pytest.approx((0.5 + 1) / 2)
    assert ranking.hit_rate == 1
    assert ranking.coverage == pytest.approx(4 / 6)
    # Retrieval alone: neither [i4, i5] for anna nor [i1, i3] for bo has a relevant item in two places.
    assert report.figures["retrieval"].hit_rate == 0
    assert report.figures["retrieval"].coverage == pytest.approx(4 / 6)
    assert [user for users in fake.asked for user in users] == ["anna", "bo"]
    assert max(map(len, fake.asked)) <= batch


def test_popularity_skips_what_the_user_knows(data):
    # anna knows i0 and i1, bo knows i0 and i2.
    assert data.popularity_lists(3).tolist() == [[2, 3, 4], [1, 3, 4]]
    report = evaluate_served(served(), data, k=2)
    # Popularity finds both of anna's, none of bo's.
    assert report.figures["popularity"].recall == pytest.approx(0.5)


def test_popularity_leaves_out_what_fails_a_rule():
    items = pd.DataFrame({"item_id": ITEMS, "stock": [1, 1, 0, 1, 1, 1]})
    rule = Compare("in stock", column="stock", operator=">", value=0)
    data = EvaluationData.from_frames("toy", items, frame(KNOWN), frame(TEST), rules=(rule,))
    assert data.popularity_lists(3).tolist() == [[3, 4, 5], [1, 3, 4]]


def test_popularity_is_padded_where_nothing_is_left():
    items = pd.DataFrame({"item_id": [1, 2]})
    data = EvaluationData.from_frames("toy", items, frame([(7, 1)]), frame([(7, 2)]))
    assert data.popularity_lists(4).tolist() == [[1, 2, 2, 2]]


def test_popularity_equals_a_naive_list_of_unknown_items(monkeypatch):
    monkeypatch.setattr("tiercel_pipelines.offline.evaluation_data.BLOCK", 3)
    rng = np.random.default_rng(3)
    pairs = np.unique(rng.integers(0, (20, 40), (300, 2)), axis=0)
    pairs = rng.permutation(pairs).tolist()
    known, test = frame(pairs[:200]), frame(pairs[200:])
    data = EvaluationData.from_frames("toy", pd.DataFrame({"item_id": range(40)}), known, test)
    counts = known["item_id"].value_counts()
    order = sorted(range(40), key=lambda item: (-counts.get(item, 0), item))
    for user, row in zip(data.user_ids, data.popularity_lists(10), strict=True):
        seen = set(known[known["user_id"] == user]["item_id"])
        assert row.tolist() == [item for item in order if item not in seen][:10]


def test_a_short_answer_is_an_answer(data):
    report = evaluate_served(served(ranked={"anna": [], "bo": [5]}), data, k=2)
    assert report.figures["ranking"].users == 2
    assert report.figures["ranking"].recall == pytest.approx(0.5)


def test_an_item_that_the_run_does_not_have_is_refused(data):
    fake = served()
    fake.recommend = lambda users, k, now_s: [["elsewhere"] for _ in users]
    with pytest.raises(EvaluationError, match="'elsewhere', which the run does not have"):
        evaluate_served(fake, data, k=2)


def test_another_catalogue_behind_the_same_ids_is_refused(data):
    with pytest.raises(EvaluationError, match="another order"):
        evaluate_served(served(ranked={"anna": [2], "bo": [5]}), data, k=2)


def test_an_answer_that_repeats_an_item_is_refused(data):
    with pytest.raises(EvaluationError, match=r"toy, ranking: .* names an item twice"):
        evaluate_served(served(ranked={"anna": [3, 3], "bo": [5]}), data, k=2)


def test_a_server_that_fails_is_told_alike_by_both_requests(monkeypatch):
    class Failing:
        def __init__(self, url):
            pass

        def server_info(self):
            return SimpleNamespace(user_id_dtype="bytes")

        def recommend_many(self, *args, **how):
            raise ServerUnavailable("no server answered")

        def close(self):
            pass

    monkeypatch.setattr("tiercel_client.Recommender", Failing)
    # No server listens on port 1.
    with ServedEnsemble("127.0.0.1:1") as served:
        with pytest.raises(EvaluationError, match=r"^recommend_explain failed for 2 users: .*UNAVAILABLE"):
            served.retrieve(["anna", "bo"])
        with pytest.raises(EvaluationError, match=r"^recommend failed for 2 users: no server answered$"):
            served.recommend(["anna", "bo"], 5)


def test_more_places_than_the_server_answers_are_refused(data):
    with pytest.raises(EvaluationError, match="at most 5 items"):
        evaluate_served(served(), data, k=6)


def test_an_empty_test_part_and_items_out_of_the_catalogue_are_refused():
    items = pd.DataFrame({"item_id": ITEMS})
    with pytest.raises(EvaluationError, match="nobody to ask about"):
        EvaluationData.from_frames("toy", items, frame(KNOWN), frame([]))
    with pytest.raises(EvaluationError, match="'i9' of the interactions is not in the catalogue"):
        EvaluationData.from_frames("toy", items, frame(KNOWN), frame([("anna", "i9")]))


def test_a_server_of_another_recommender_or_build_is_refused():
    run = SimpleNamespace(record=SimpleNamespace(recipe=SimpleNamespace(name="toy")), path="runs/toy")
    info = SimpleNamespace(name="toy", build_id="b1")
    check_same(info, run)
    check_same(info, run, "b1")
    with pytest.raises(EvaluationError, match="serves 'movielens', but runs/toy is a run of 'toy'"):
        check_same(SimpleNamespace(name="movielens", build_id="b1"), run)
    with pytest.raises(EvaluationError, match="serves build b1, but the release is build b2"):
        check_same(info, run, "b2")


def run_of(dataset, seed=42, again=False):
    return SimpleNamespace(
        record=SimpleNamespace(
            data=SimpleNamespace(name=dataset, user_id="user_id", item_id="item_id", timestamp=None),
            recipe=SimpleNamespace(split=SplitSettings(seed=seed), serving=ServingSettings(allow_seen=again)),
        ),
        items=pd.DataFrame({"item_id": ITEMS}),
        interactions=frame(KNOWN),
        test=frame(TEST),
    )


@pytest.mark.parametrize(
    ("dataset", "seed", "k", "shown"),
    [
        ("ml-100k", 42, 10, True),
        ("ml-100k", 7, 10, False),
        ("ml-100k", 42, 20, False),
        ("toy", 42, 10, False),
    ],
)
def test_published_figures_stand_only_beside_their_own_protocol(dataset, seed, k, shown):
    data = EvaluationData.from_run(run_of(dataset, seed), k)
    assert data.published == (PUBLISHED["ml-100k"] if shown else ())
    again = EvaluationData.from_run(run_of(dataset, seed, again=True), k)
    assert again.allow_seen
    assert again.published == ()


class PerfectServed:
    """Returns each user's test items first and then all others, as far as these may be recommended."""

    def __init__(self, known, test, items, allow_seen, may_not_come=None):
        self.info = SimpleNamespace(name="toy", build_id="b1", max_batch_size=7, k_max=20)
        self.lists = {}
        self.items, self.width = items, len(items)
        for user in set(test["user_id"]):
            had = set() if allow_seen else set(known["item_id"][known["user_id"] == user])
            had = had if may_not_come is None else may_not_come(user)
            wanted = set(test["item_id"][test["user_id"] == user])
            may = [row for row, item in enumerate(items) if item not in had]
            self.lists[user] = sorted(may, key=lambda row: (items[row] not in wanted, row))

    def recommend(self, user_ids, k, now_s):
        return [[self.items[row] for row in self.lists[user][:k]] for user in user_ids]

    def retrieve(self, user_ids, now_s):
        rows = [self.lists[user] for user in user_ids]
        return np.array([row + [self.width] * (self.width - len(row)) for row in rows])


interactions = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11)), min_size=1, max_size=80)


@examples(20)
@given(
    rows=interactions,
    times=st.lists(st.integers(0, 99), min_size=80, max_size=80),
    by=st.sampled_from(["random", "leave_one_out", "time"]),
    text=st.booleans(),
    allow_seen=st.booleans(),
    train=st.floats(0.2, 0.9),
    validation=st.sampled_from([0.0, 0.1, 0.5]),
    k=st.integers(1, 14),
)
def test_a_perfect_server_scores_one_in_every_protocol(
    rows, times, by, text, allow_seen, train, validation, k
):
    catalogue = [f"item {row}" if text else row for row in range(12)]
    table = frame([(f"ü{user}" if text else user, catalogue[item]) for user, item in rows])
    table["timestamp"] = times[: len(rows)]
    dataset = Dataset("toy", frame([]), frame([]), table)
    split = split_dataset(dataset, train=train, validation=validation, by=by, given_again=allow_seen)
    assume(len(split.test))
    items = pd.DataFrame({"item_id": catalogue})
    data = EvaluationData.from_frames("toy", items, split.fit, split.test, allow_seen=allow_seen)
    assert data.left_out == 0
    assert len(data.user_ids) == split.test.user_id.nunique()
    figures = evaluate_served(PerfectServed(split.fit, split.test, catalogue, allow_seen), data, k=k).figures
    for name in ("ranking", "retrieval"):
        assert figures[name].ndcg == figures[name].hit_rate == figures[name].mrr == pytest.approx(1)
    wanted = {(user, item) for user, item in zip(split.test.user_id, split.test.item_id, strict=True)}
    free = 12 - max(a + b for a, b in zip(data.relevance.counts, data.masked.counts, strict=True))
    if free:
        users, candidates = draw_negatives(data.relevance, data.masked, 12, free, np.random.default_rng(0))
        scores = [
            [(data.user_ids[user], catalogue[row]) in wanted for row in rows]
            for user, rows in zip(users, candidates, strict=True)
        ]
        sampled = one_plus_n(scores, k)
        assert sampled.ndcg == sampled.hit_rate == sampled.mrr == sampled.auc == 1


@examples(25)
@given(known=interactions, test=interactions)
def test_what_was_seen_and_is_never_served_is_left_out_and_counted(known, test):
    items, had = pd.DataFrame({"item_id": range(12)}), set(known)
    new = [pair for pair in test if pair not in had]
    if not new:
        with pytest.raises(EvaluationError, match=r"already had all of the \d+ items .*allow_seen"):
            EvaluationData.from_frames("toy", items, frame(known), frame(test))
        return
    data = EvaluationData.from_frames("toy", items, frame(known), frame(test))
    assert data.left_out == len(set(test) & had)
    assert data.user_ids == [one for one in dict.fromkeys(user for user, _ in test) if one in dict(new)]
    assert data.relevance.counts.tolist() == [
        len({item for one, item in new if one == user}) for user in data.user_ids
    ]
    served = PerfectServed(frame(known), frame(test), range(12), False)
    report = evaluate_served(served, data, k=5)
    assert report.figures["ranking"].ndcg == pytest.approx(1)
    said = " ".join(map(str, human(report.to_json())))
    assert ("left out of the test" in said) == (data.left_out > 0)


times = st.integers(0, 9)


@examples(25)
@given(
    known=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), times), min_size=1, max_size=40),
    test=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), times), min_size=1, max_size=20),
    days=st.integers(0, 8),
)
def test_what_comes_again_after_days_counts_at_the_time_of_the_users_latest_test(known, test, days):
    """Compare with a plain loop over users: left-out pairs, popularity lists, and the perfect server."""
    items, timed = pd.DataFrame({"item_id": range(8)}), ["user_id", "item_id", "timestamp"]
    tables = [pd.DataFrame(rows, columns=timed) for rows in (known, test)]
    for table in tables:
        table["timestamp"] *= 86_400

    def may_not_come(user):
        now = max(time for one, _, time in test if one == user)
        had = {}
        for one, item, time in known:
            if one == user:
                had[item] = max(time, had.get(item, 0))
        return {item for item, time in had.items() if days and now - time < days}

    new = {(user, item) for user, item, _ in test if item not in may_not_come(user)}
    if not new:
        with pytest.raises(EvaluationError, match=r"already had all of the \d+ items .*seen_again_days"):
            EvaluationData.from_frames("toy", items, *tables, seen_again_days=days)
        return
    data = EvaluationData.from_frames("toy", items, *tables, seen_again_days=days)
    assert data.left_out == len({(user, item) for user, item, _ in test} - new)
    assert set(data.user_ids) == {user for user, _ in new}
    for place, user in enumerate(data.user_ids):
        assert data.now_s[place] == 86_400 * max(time for one, _, time in test if one == user)
        assert set(range(8)) - set(data.popularity_lists(8)[place].tolist()) == may_not_come(user)
    perfect = PerfectServed(*tables, range(8), False, may_not_come)
    report = evaluate_served(perfect, data, k=5)
    assert report.figures["ranking"].ndcg == pytest.approx(1)
    said = " ".join(map(str, human(report.to_json())))
    assert f"seen {days} or more days before" in said
    assert (f"seen_again_days is {days}" in said) == (data.left_out > 0)


def test_a_server_of_another_protocol_is_refused(data):
    check_protocol(SimpleNamespace(name="toy", allow_seen=False, request_columns=()), data)
    again = replace(data, now_s=np.zeros(2))
    check_protocol(
        SimpleNamespace(name="toy", allow_seen=False, request_columns=(SimpleNamespace(name="now"),)), again
    )
    with pytest.raises(EvaluationError, match="serves 'toy' without seen_again_days"):
        check_protocol(SimpleNamespace(name="toy", allow_seen=False, request_columns=()), again)
    with pytest.raises(EvaluationError, match="serves 'toy' with allow_seen=True, but the test part is made"):
        check_protocol(SimpleNamespace(name="toy", allow_seen=True), data)


def test_popularity_of_a_recommender_that_gives_things_again():
    items = pd.DataFrame({"item_id": ITEMS})
    data = EvaluationData.from_frames("toy", items, frame(KNOWN), frame(TEST), allow_seen=True)
    # The three most popular items for everybody, known or not.
    assert data.popularity_lists(3).tolist() == [[0, 1, 2], [0, 1, 2]]


def test_the_report_is_json_and_a_table(data):
    document = evaluate_served(served(), data, k=2).to_json()
    assert document["users"] == 2
    assert set(document["figures"]) == {"popularity", "retrieval", "ranking"}
    table = figures_table(document)
    assert table.row_count == 3
    assert [str(column.header) for column in table.columns][1] == "nDCG@2"
    document["published"] = [{"name": "SAR", "ndcg": 0.38, "precision": 0.33, "recall": 0.17, "source": "x"}]
    assert figures_table(document).row_count == 4
    assert "published figures: x" in human(document)[-1]
