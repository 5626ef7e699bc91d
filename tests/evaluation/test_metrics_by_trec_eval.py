"""The ranking metrics equal those of trec_eval, the standard tool of information retrieval."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from drawing import examples
from tiercel_pipelines.offline.metrics import Relevance, ranking_metrics


@examples(20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 40), st.integers(1, 12))
def test_on_random_rankings(seed: int, users: int, catalogue: int, k: int) -> None:
    """Answers of any length, including empty ones, and users with one relevant item, many, or none."""
    rng = np.random.default_rng(seed)
    wanted = rng.random((users, catalogue)) < rng.choice([0.0, 0.05, 0.3, 0.9], size=(users, 1))
    wanted[0, rng.integers(catalogue)] = True
    ranked = rng.permuted(np.tile(np.arange(catalogue), (users, 1)), axis=1)[:, : rng.integers(1, 20)]
    lengths = rng.integers(ranked.shape[1] + 1, size=users)
    ranked[np.arange(ranked.shape[1]) >= lengths[:, None]] = catalogue
    ours = ranking_metrics(ranked, Relevance.from_pairs(*np.nonzero(wanted), users), k, catalogue)

    judged = {str(u): {str(i): 1 for i in np.flatnonzero(wanted[u])} for u in range(users) if wanted[u].any()}
    # trec_eval itself cuts all figures at k, except for the reciprocal rank.
    run = {
        u: {str(i): float(-place) for place, i in enumerate(ranked[int(u), :k]) if i != catalogue}
        for u in judged
    }
    names = {"ndcg": "ndcg_cut", "precision": "P", "recall": "recall", "hit_rate": "success"}
    asked = {f"{name}.{k}" for name in names.values()} | {"recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(judged, asked).evaluate(run)
    theirs = {
        name: np.mean([found.get(u, {}).get(key, 0.0) for u in judged])
        for name, key in {**{n: f"{m}_{k}" for n, m in names.items()}, "mrr": "recip_rank"}.items()
    }
    assert ours.users == len(judged)
    assert {name: getattr(ours, name) for name in theirs} == pytest.approx(theirs, rel=1e-9, abs=1e-12)
