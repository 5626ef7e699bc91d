"""Every stage against the plain reference, on requests drawn by Hypothesis for every variant."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import stage_oracles as oracle
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from stage_oracles import Ask, tensors
from tiny_release import DAY_S, OCCUPATIONS, Tiny, ranker_oracle, tower_oracle, transform

from drawing import examples
from tiercel_serving.errors import StageFailed
from tiercel_serving.reorder.steps import reasons_of
from tiercel_serving.runtime import batching
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import FALLBACK, KEPT, UNKNOWN
from tiercel_serving.spec import DTYPES
from tiercel_serving.verify import reference

quick = examples(5, suppress_health_check=[HealthCheck.function_scoped_fixture])


#: What requests send about time where it matters: exactly at the boundary of a day, and between.
SEEN_AGAIN: dict[str, Any] = {
    "now": st.none() | st.integers(0, 40).map(lambda halves: halves * DAY_S / 2),
    "again_days": st.none() | st.sampled_from([0.0, 0.5, 1.0, 3.0, 30.0]),
}

#: Release path → strategy made by `ask_of`.
ASK_OF: dict[Any, st.SearchStrategy[Ask]] = {}


def ask_of(tiny: Tiny) -> st.SearchStrategy[Ask]:
    """Return the strategy for one user's request; cached, as building it costs more than drawing."""
    if tiny.release.path not in ASK_OF:
        ASK_OF[tiny.release.path] = _ask_of(tiny)
    return ASK_OF[tiny.release.path]


def _ask_of(tiny: Tiny) -> st.SearchStrategy[Ask]:
    string = tiny.release.manifest.catalogue.user_id_dtype == "bytes"
    strangers = st.text(max_size=4).map(str.encode) if string else st.integers(-5, 10**6)
    users = st.sampled_from(tiny.user_ids) | strangers if tiny.user_ids else strangers
    items = st.sampled_from(tiny.item_ids) | strangers
    lists = st.lists(items, max_size=12) | st.just(tiny.item_ids) | st.just(tiny.item_ids[:3] * 4)
    ask = st.builds(
        Ask,
        user_id=users,
        k=st.none() | st.integers(1, tiny.settings.k_max),
        exclude=st.just(()) | lists,
        history=st.none() | lists,
        age=st.none() | st.floats(-1e30, 1e30) | st.just(float("nan")),
        occupation=st.none() | st.sampled_from(OCCUPATIONS) | st.text(max_size=3).map(str.encode),
        tags=st.none() | st.lists(st.integers(0, 99), max_size=5),
        tags__length=st.none() | st.floats(-9, 9, width=32),
        hour=st.none() | st.integers(0, 23),
        include=st.none() | lists,
        candidates=st.none() | lists,
        **({} if tiny.settings.seen_again_days is None else SEEN_AGAIN),
    )
    return ask | st.builds(Ask, user_id=users)


@st.composite
def asks_of(draw: st.DrawFn, tiny: Tiny, most: int = 8) -> list[Ask]:
    """Draw requests for between one user and the largest batch."""
    asks = draw(st.lists(ask_of(tiny), min_size=1, max_size=most))
    if draw(st.booleans()):
        asks = [replace(one, allow_seen=draw(st.booleans())) for one in asks]
    return asks


def check_user_features(tiny: Tiny, asks: list[Ask], out: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    expected = [oracle.user_features(tiny, ask) for ask in asks]
    assert out["status"][:, 0].tolist() == [e["status"] for e in expected]
    columns = [[e[name] for e in expected] for name in ("age", "occupation", "tags", "tags__length", "hour")]
    for name, packed in transform(*columns).items():
        np.testing.assert_array_equal(out[name], packed, err_msg=name)
    for place, e in enumerate(expected):
        masked = set(out["excluded_row"][place].tolist()) - {len(tiny.item_ids)}
        assert masked == e["excluded"]
    if tiny.settings.history_length:
        assert out["history_row"].tolist() == [e["history_row"] for e in expected]
        assert out["history_length"][:, 0].tolist() == [e["history_length"] for e in expected]
        np.testing.assert_array_equal(out["history_cat"], tiny.item_cat[out["history_row"]][:, :, 1:])
    return expected


def check_candidates(tiny: Tiny, expected: list[dict[str, Any]], out: dict[str, np.ndarray]) -> None:
    settings, pad = tiny.settings, len(tiny.item_ids)
    sources = [tiny.release.artefact(f"source_{kind.name}", "source").arrays for kind in settings.sources]
    for place, e in enumerate(expected):
        allowed = np.array([row not in e["masked"] for row in range(pad)], np.bool_)
        user = {name: array[place] for name, array in out.items()}
        unknown = e["status"] == UNKNOWN
        if e["listed"] is None or (unknown and settings.unknown_users == FALLBACK):
            best = reference.retrieve(settings, sources, user, allowed, unknown=unknown).candidates
        else:
            best = reference.listed(settings, sources, user, e["listed"], allowed)
        blanks = [(pad, 0.0, 0)] * (settings.candidates - len(best))
        columns = (user[name].tolist() for name in ("retrieved_row", "retrieval_score", "source"))
        assert list(zip(*columns, strict=True)) == [(c.row, c.score, c.source) for c in best] + blanks
        kept = reference.keep(settings, tiny.item, best)
        assert user["filter_reason"].tolist() == kept.reasons
        assert kept.reasons.count(KEPT) == len(kept.candidates)
        missing = settings.kept - len(kept.candidates)
        assert user["kept_index"].tolist() == kept.places + [0] * missing
        assert user["kept_row"].tolist() == [c.row for c in kept.candidates] + [pad] * missing
        assert user["kept_score"].tolist() == [c.score for c in kept.candidates] + [0.0] * missing
        assert user["kept_source"].tolist() == [c.source for c in kept.candidates] + [0] * missing


def check_answers(tiny: Tiny, asks: list[Ask], out: dict[str, np.ndarray]) -> None:
    settings = tiny.settings
    default = 4 if any(ask.k is not None for ask in asks) else settings.k_default
    ks = [default if ask.k is None else ask.k for ask in asks]
    assert out["item_id"].shape == out["score"].shape == (len(asks), max(ks))
    empty: Any = b"" if isinstance(tiny.item_ids[0], bytes) else 0
    for place, k in enumerate(ks):
        user = {name: array[place] for name, array in out.items()}
        columns = (user[name].tolist() for name in ("kept_row", "kept_score", "kept_source"))
        kept = [
            reference.Candidate(*one) for one in zip(*columns, strict=True) if one[0] < len(tiny.item_ids)
        ]
        tasks = user["rank_score"][: len(kept)].tolist() if "rank_score" in out else None
        unknown = user["status"][0] == UNKNOWN
        ordered = reference.order(settings, tiny.item, kept, tasks, unknown=unknown)
        answer = [(tiny.item_ids[row], score) for row, score in ordered[:k]]
        blanks = [(empty, 0.0)] * (max(ks) - len(answer))
        assert list(zip(user["item_id"].tolist(), user["score"].tolist(), strict=True)) == answer + blanks
        assert user["count"] == len(answer)
        if "reorder_reason" in out:
            reasons = user["reorder_reason"]
            assert not reasons[len(kept) :].any()
            texts = ["", *reasons_of(settings.reorder)]
            said = {c.row: texts[code] for c, code in zip(kept, reasons, strict=False)}
            left = {row for row, _ in ordered}
            assert {row for row, text in said.items() if "nobody knows" in text} == set(said) - left


@quick
@given(data=st.data())
def test_whole_graph_agrees_with_the_reference(tiny: Tiny, chain: Chain, data: st.DataObject) -> None:
    asks = data.draw(asks_of(tiny))
    arrays = tensors(asks, lengths=data.draw(st.booleans()))
    chain.check(arrays)
    out, times = chain.run(arrays)
    for stage in chain.stages:
        assert times[stage.spec.name] >= 0
        assert set(out) >= {spec.name for spec in stage.spec.outputs}
        for spec in stage.spec.outputs:
            array = out[spec.name]
            assert array.dtype == DTYPES[spec.dtype], spec.name
            assert len(array) == len(asks)
            assert all(d in (-1, s) for d, s in zip(spec.dims, array.shape[1:], strict=True)), spec.name
            assert array.size > 0
    expected = check_user_features(tiny, asks, out)
    for source in tiny.vectors:
        query = tower_oracle(tiny, source, out["user_num"], out["user_cat"])
        np.testing.assert_allclose(out[f"query_{source}"], query, rtol=1e-5, atol=1e-5)
    check_candidates(tiny, expected, out)
    if tiny.release.manifest.ranking is not None:
        for name, table in (("item_cat", tiny.item_cat), ("item_num", tiny.item_num)):
            np.testing.assert_array_equal(out[name], table[out["kept_row"]])
        np.testing.assert_array_equal(out["item_list_genres"], tiny.item_genres[out["kept_row"]])
        ranked = ranker_oracle(tiny, out["user_num"], out["item_num"], out["kept_score"])
        np.testing.assert_allclose(out["rank_score"], ranked, rtol=1e-4, atol=1e-4)
    check_answers(tiny, asks, out)


@quick
@given(data=st.data())
def test_a_user_is_answered_alike_alone_and_in_company(tiny: Tiny, chain: Chain, data: st.DataObject) -> None:
    asks = data.draw(asks_of(tiny))
    together, _ = chain.run(tensors(asks))
    for place, ask in enumerate(asks):
        alone, _ = chain.run(tensors([ask]))
        for name in ("status", "user_cat", "user_num", "user_list_tags"):
            np.testing.assert_array_equal(alone[name][0], together[name][place])
        queries = [f"query_{source}" for source in tiny.vectors]
        if all(np.array_equal(alone[name][0], together[name][place]) for name in queries):
            # The tower itself may round differently in a batch. Where it does not, nothing else may differ.
            for name in ("retrieved_row", "retrieval_score", "source", "kept_row", "filter_reason"):
                np.testing.assert_array_equal(alone[name][0], together[name][place])


@quick
@given(data=st.data())
def test_requests_in_one_batch_get_what_they_get_alone(tiny: Tiny, chain: Chain, data: st.DataObject) -> None:
    """Concatenate and split as the adapter does, without Triton."""
    groups = data.draw(st.lists(asks_of(tiny, most=3), min_size=1, max_size=4))
    requests = [tensors(group, lengths=data.draw(st.booleans())) for group in groups]
    users = [batching.count_users(chain.external_inputs, request) for request in requests]
    assert users == [len(group) for group in groups]
    out, _ = chain.run(batching.concatenate(chain.external_inputs, requests))
    names = ["item_id", "score", "count", "status", "retrieved_row"]
    widths = [chain.widths(request) for request in requests]
    answers = batching.split(out, users, [names] * len(requests), widths)
    for request, answer in zip(requests, answers, strict=True):
        alone, _ = chain.run(request)
        for name in names:
            assert answer[name].shape == alone[name].shape, name
            assert answer[name].flags.c_contiguous
            if name == "score":
                np.testing.assert_allclose(answer[name], alone[name], rtol=1e-4, atol=1e-4)
            elif name in ("count", "status"):
                np.testing.assert_array_equal(answer[name], alone[name])


def test_everything_excluded_and_everything_seen_are_answers(plain: Tiny, plain_chain: Chain) -> None:
    asks = [Ask(plain.user_ids[1], k=8), Ask(plain.user_ids[0], exclude=plain.item_ids), Ask(-7, k=3)]
    out, _ = plain_chain.run(tensors(asks))
    assert out["count"][:, 0].tolist() == [0, 0, 3]
    assert out["status"][:, 0].tolist() == [0, 0, 2]
    assert (out["item_id"][:2] == 0).all()
    assert (out["retrieved_row"][:2] == len(plain.item_ids)).all()


def test_the_largest_batch(plain: Tiny, plain_chain: Chain) -> None:
    asks = [Ask(plain.user_ids[n % len(plain.user_ids)], k=1 + n % 8) for n in range(64)]
    out, _ = plain_chain.run(tensors(asks))
    check_answers(plain, asks, out)


@pytest.mark.parametrize("variant", ["plain", "plain, by a scan"])
def test_a_query_of_nan_still_gives_an_answer(tiny: Tiny, chain: Chain) -> None:
    retrieval = next(stage for stage in chain.stages if stage.spec.name == "retrieval")
    inputs = {
        "query_near": np.array([[np.nan] * 4, [1, 0, 0, 0]], np.float32),
        "user_id": np.array([[tiny.user_ids[2]], [tiny.user_ids[3]]]),
        "status": np.zeros((2, 1), np.int32),
        "excluded_row": np.full((2, 1), len(tiny.item_ids)),
        "allow_seen": np.zeros((2, 1), np.bool_),
    }
    out = retrieval.run({**batching.absent(retrieval.spec.inputs, 2), **inputs})
    allowed = np.array([row not in tiny.seen[3] for row in range(len(tiny.item_ids))])
    user = {"query_near": inputs["query_near"][1]}
    best = tiny.settings.sources[0].reference({"vectors": tiny.vectors["near"]}, user, allowed, 12)
    assert out["retrieved_row"][1].tolist() == [row for row, _ in best]
    assert not set(out["retrieved_row"][0].tolist()) & tiny.seen[2]


def test_a_stage_that_breaks_is_named(plain: Tiny) -> None:
    broken = Chain.open(plain.release, ["candidate_features"])
    with pytest.raises(StageFailed, match="stage candidate_features: IndexError") as caught:
        broken.run({"kept_row": np.full((1, 8), 10**6)})
    assert caught.value.stage == "candidate_features"


def test_only_who_searches_an_index_loads_faiss(plain: Tiny) -> None:
    """In the layout ``staged`` each stage is a process, and importing FAISS costs 0.2 s."""
    code = """
import sys
from pathlib import Path
from tiercel_serving.release.opened import open_release
from tiercel_serving.stages.table import build_stage
release = open_release(Path(sys.argv[1]))
for name in sorted(release.stages, key=lambda name: name == "retrieval"):
    before = "faiss" in sys.modules
    build_stage(name, release)
    print(name, before, "faiss" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(plain.release.path)], capture_output=True, text=True, check=True
    )
    *others, last = done.stdout.splitlines()
    assert len(others) >= 5
    assert all(line.endswith(" False False") for line in others), others
    assert last == "retrieval False True"
