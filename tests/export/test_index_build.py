"""The index: recall is measured, parameters are searched, and what cannot work is refused."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest

from tiercel_serving.errors import InvalidSettings
from tiercel_serving.sources.index_build import build_index
from tiercel_serving.verify.recall import exact_search, recall

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(2000, 16)).astype(np.float32)
QUERIES = RANDOM.normal(size=(60, 16)).astype(np.float32)


def build(**changes: Any):
    arguments = {"factory": "Flat", "parameters": None, "candidates": 50, "min_recall": 0.99}
    return build_index(VECTORS, QUERIES, **{**arguments, **changes})


@pytest.mark.parametrize("n", [1, 7, 600, 2000])
def test_exact_search_is_a_full_sort(n: int) -> None:
    rows, scores = exact_search(VECTORS, QUERIES, n)
    products = QUERIES @ VECTORS.T
    want = np.argsort(-products, axis=1, kind="stable")[:, :n]
    assert np.array_equal(rows, want)
    assert np.array_equal(scores, np.take_along_axis(products, want, axis=1))


def test_flat_is_exact() -> None:
    built = build()
    assert built.recall == 1.0
    assert built.parameters == {}
    assert built.figures()["queries"] == len(QUERIES)
    assert built.figures()["exact"]


@pytest.mark.parametrize(("factory", "knob"), [("IVF32,Flat", "nprobe"), ("HNSW16", "efSearch")])
def test_parameters_are_searched_until_the_recall_is_reached(factory: str, knob: str) -> None:
    built = build(factory=factory)
    assert built.recall >= 0.99
    assert not built.exact
    assert built.parameters[knob] >= 1
    # They lie in the index itself: whoever reads the file searches with them.
    copy = faiss.deserialize_index(faiss.serialize_index(built.index))
    assert recall(copy, VECTORS, QUERIES, 50) == pytest.approx(built.recall)


def test_same_seed_same_index() -> None:
    first, second = (build(factory="IVF32,Flat", seed=5) for _ in range(2))
    assert np.array_equal(faiss.serialize_index(first.index), faiss.serialize_index(second.index))


def test_given_parameters_are_used_and_a_poor_recall_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="nprobe or efSearch") as error:
        build(factory="IVF32,Flat", parameters={"nprobe": 1})
    assert "recall at 50 candidates" in str(error.value)
    built = build(factory="IVF32,Flat", parameters={"nprobe": 1}, min_recall=0.05)
    assert built.parameters == {"nprobe": 1}
    assert 0.05 <= built.recall < 0.9


def test_items_that_tie_at_the_cut_count_as_found() -> None:
    vectors = np.repeat(VECTORS[:10], 20, axis=0)
    index = faiss.IndexFlatIP(16)
    index.add(vectors)
    assert recall(index, vectors, QUERIES, 30) == 1.0


def test_more_candidates_than_items() -> None:
    assert (
        build_index(
            VECTORS[:5], QUERIES, factory="Flat", parameters=None, candidates=50, min_recall=1.0
        ).recall
        == 1.0
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factory": "Flatt"}, "does not know the factory string 'Flatt'"),
        ({"factory": "IVF4000,Flat"}, "4000 lists for 2000 items"),
        ({"parameters": {"nprobe": 3}}, "no parameter 'nprobe'"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        build(**changes)


def ready(metric: int = faiss.METRIC_INNER_PRODUCT, vectors: np.ndarray = VECTORS):
    index = faiss.index_factory(vectors.shape[1], "Flat", metric)
    index.add(vectors)
    return index


def test_a_ready_index_is_taken_if_it_holds_these_vectors() -> None:
    assert build(ready=ready()).factory == "ready"
    with pytest.raises(InvalidSettings, match="INNER_PRODUCT"):
        build(ready=ready(faiss.METRIC_L2))
    with pytest.raises(InvalidSettings, match="came 100 of 16"):
        build(ready=ready(vectors=VECTORS[:100]))
    with pytest.raises(InvalidSettings, match="recall"):
        build(ready=ready(vectors=VECTORS[::-1].copy()))
