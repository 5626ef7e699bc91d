"""The ranker in several sizes: which one runs, what it answers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from small_release import SETTINGS, Parts, Ranker, small_release

from tiercel_export.errors import ExportInputError
from tiercel_export.release.build import plan_release
from tiercel_pipelines.export.explained import placement_of
from tiercel_serving.engines.buckets import BucketedEngine
from tiercel_serving.engines.table import ENGINES
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import ServingSettings
from tiercel_serving.stages.engine import engine_names
from tiercel_serving.verify.checks import verify_release

PAD, K = 99, 16


class Sized:
    """An engine that reports its size, and records the shapes of its inputs."""

    inputs, outputs = ("user", "item"), ("rank_score",)

    def __init__(self, k: int) -> None:
        self.k, self.shapes, self.closed = k, {}, False

    def run(self, arrays: Any) -> dict[str, np.ndarray]:
        self.shapes = {name: arrays[name].shape for name in self.inputs}
        return {"rank_score": np.full((len(arrays["item"]), self.k, 1), self.k, np.float32)}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("real", "runs"), [((0,), 4), ((4, 1), 4), ((5,), 8), ((2, 8), 8), ((9,), K), ((3, K), K)]
)
def test_the_smallest_that_fits_runs(real: tuple[int, ...], runs: int) -> None:
    full, smaller = Sized(K), {8: Sized(8), 4: Sized(4)}
    engine = BucketedEngine(full, smaller, frozenset({"item"}), PAD)
    rows = np.where(np.arange(K) < np.array(real)[:, None], 7, PAD)
    arrays = {"user": np.zeros((len(real), K + 1)), "item": np.zeros((len(real), K, 2)), "kept_row": rows}
    out = engine.run(arrays)["rank_score"]
    assert out.shape == (len(real), K, 1)
    assert out.dtype == np.float32
    assert (out[:, :runs] == runs).all()
    assert not out[:, runs:].any()
    ran = {K: full, **smaller}[runs]
    assert ran.shapes == {"user": (len(real), K + 1), "item": (len(real), runs, 2)}
    assert [one.k for one in (full, *smaller.values()) if one.shapes] == [runs]
    del arrays["kept_row"]
    assert (engine.run(arrays)["rank_score"] == K).all()
    engine.close()
    assert all(one.closed for one in (full, *smaller.values()))


@pytest.mark.parametrize("wrong", [(16,), (4, 4), (8, 4), (0,)])
def test_sizes_that_can_not_be(wrong: Any) -> None:
    (problem,) = msgspec.structs.replace(SETTINGS, kept_buckets=wrong).problems()
    assert problem.field == "kept_buckets"
    assert "smallest first" in problem.problem


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (4, "kept_buckets: expected a tuple of whole numbers, got 4"),
        ((2.5,), "kept_buckets[0]: expected a whole number, got 2.5"),
    ],
)
def test_what_is_no_size(wrong: Any, said: str) -> None:
    (problem,) = msgspec.structs.replace(SETTINGS, kept_buckets=wrong).problems()
    assert str(problem).startswith(said)


def bucketed(parts: Parts, destination: Path, **changes: Any) -> Release:
    settings: ServingSettings = msgspec.structs.replace(SETTINGS, kept_buckets=(4,))
    return small_release(destination, parts, settings=settings, **changes)


def test_answers_are_those_of_the_full_size(parts: Parts, release: Release, tmp_path: Path) -> None:
    made = bucketed(parts, tmp_path / "small")
    assert engine_names(made) == ["query_towers", "ranking", "ranking_k4"]
    rows = {row.artefact for row in verify_release(made).rows}
    assert {"ranking", "ranking_k4"} <= rows
    # Three candidates named by the request fit the small engine.
    items = parts.items["item_id"].to_numpy()[None, :3]
    users = parts.users["user_id"].to_numpy()[:1, None]
    request = {"user_id": users, "candidate_item_ids": items}
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        original = BucketedEngine.bucket
        patch.setattr(BucketedEngine, "bucket", lambda s, rows: ran.append(original(s, rows)) or ran[-1])
        (ours, _), (theirs, _) = (Chain.open(one).run(request) for one in (made, release))
        Chain.open(made).run({"user_id": users})
    assert ran == [4, None]
    np.testing.assert_array_equal(ours["item_id"], theirs["item_id"])
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-4, atol=1e-5)
    assert ours["count"].tolist() == theirs["count"].tolist()


def test_the_python_process_chooses(parts: Parts) -> None:
    """With several sizes the Python process picks the plan, so Triton's backend does not run the ranker."""
    arguments = parts.arguments()
    arguments["settings"] = msgspec.structs.replace(SETTINGS, kept_buckets=(4,))
    placement = placement_of(plan_release(**arguments), "tensorrt", "staged")
    backends = {model.name: model.backend for model in placement.models}
    assert (backends["query_towers"], backends["ranking"]) == ("tensorrt", "python")
    assert "kept_row" in {t.name for hop in placement.hops if hop.to == "ranking" for t in hop.tensors}


class Compared(Ranker):
    """A ranker whose scores are relative to all slots, empty ones too."""

    def forward(
        self,
        user_cat: torch.Tensor,
        item_cat: torch.Tensor,
        item_num: torch.Tensor,
        kept_score: torch.Tensor,
        kept_source: torch.Tensor,
    ) -> torch.Tensor:
        scores = super().forward(user_cat, item_cat, item_num, kept_score, kept_source)
        return scores - scores.mean(1, keepdim=True)


def test_a_ranker_that_looks_at_empty_slots_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(ExportInputError, match=r"kept_buckets: the ranker for 4 .* mask empty slots"):
        bucketed(parts, tmp_path / "small", ranker=Compared())


@pytest.mark.tensorrt
@pytest.mark.slow
def test_each_size_is_a_plan_of_its_own(parts: Parts, tmp_path: Path) -> None:
    made = bucketed(parts, tmp_path / "small", target="tensorrt-rtx")
    kind = ENGINES.find("tensorrt-rtx")
    for name in engine_names(made):
        assert (made.path / "artefacts" / name / kind.file).stat().st_size > 1000
    rows = [row for row in verify_release(made).rows if row.artefact.startswith("ranking")]
    assert {row.artefact for row in rows} == {"ranking", "ranking_k4"}
    assert all(row.warning for row in rows) or torch.cuda.is_available()
