"""An approximate index: the reference starts from the served candidates, and recall is tested separately."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from brief_server import brief_server
from e2e.raw import ANSWER, raw_infer
from e2e.served import Served
from reference import Question, assert_same
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.recipe import Index, replace
from tiercel_serving.release.opened import Release
from tiercel_serving.settings import STATUS_NAMES

#: One recommender suffices here, as each takes another export; both run with ``--slow``.
pytestmark = pytest.mark.parametrize(
    "served", ["synthetic", pytest.param("movielens", marks=pytest.mark.slow)], indirect=True, scope="session"
)

MIN_RECALL = 0.85
INDEX = Index("two_tower", factory="IVF16,Flat", parameters={"nprobe": 12}, min_recall=MIN_RECALL)


@pytest.fixture(scope="module")
def approximate(
    served: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Release, grpcclient.InferenceServerClient]]:
    """Serve the same run with an IVF index that probes three of its four lists."""
    record = served.run.record
    serving = replace(record.recipe.serving, sources=(INDEX, *record.recipe.serving.sources[1:]))
    recipe = replace(record.recipe, serving=serving)
    run = dataclasses.replace(served.run, record=replace(record, recipe=recipe))
    with pytest.MonkeyPatch.context() as patch:
        # So few items would otherwise be searched exactly.
        patch.setattr("tiercel_serving.sources.index.EXACT_ITEMS", 0)
        patch.setattr("tiercel_serving.sources.index_build._cost", lambda *_: 0.1)
        release = export_run(run, tmp_path_factory.mktemp("approximate") / "release")
    with brief_server(release) as server:
        yield release, grpcclient.InferenceServerClient(server.grpc_url)


def test_answers_follow_from_the_served_candidates(
    served: Served, approximate: tuple[Release, grpcclient.InferenceServerClient]
) -> None:
    release, client = approximate
    users = served.run.users[served.dataset.user_id].tolist()[:200]
    questions = [Question(user) for user in users]
    dtype = object if isinstance(users[0], str) else np.int64
    wanted = (*ANSWER, "retrieved_row", "source")
    answers = [
        raw_infer(
            client,
            {"user_id": np.array(users[at : at + 50], dtype=dtype)[:, None]},
            model="recommend_explain",
            outputs=wanted,
        )
        for at in range(0, len(users), 50)
    ]
    got = {name: np.concatenate([answer[name] for answer in answers]) for name in wanted}
    candidates = [
        {int(row): int(code) for row, code in zip(rows, codes, strict=True) if code}
        for rows, codes in zip(got["retrieved_row"], got["source"], strict=True)
    ]
    exact = served.reference.answer(questions)
    identical = []
    for at, expected in enumerate(served.reference.answer(questions, candidates)):
        count = int(got["count"][at, 0])
        ids = [i.decode() if isinstance(i, bytes) else int(i) for i in got["item_id"][at, :count]]
        scores = got["score"][at, :count].tolist()
        identical.append(assert_same(expected, ids, scores, int(got["status"][at, 0])))
    assert np.mean(identical) > 0.9
    assert STATUS_NAMES[int(got["status"][0, 0])] == "known"

    found = [len(set(mine) & set(want.retrieved)) for mine, want in zip(candidates, exact, strict=True)]
    recall = sum(found) / sum(len(want.retrieved) for want in exact)
    assert MIN_RECALL <= recall < 1.0, "an index that skips a quarter of its lists should miss something"
    assert release.manifest.sources["two_tower"]["recall"] >= MIN_RECALL
