"""Verification of whole answers where the catalogue is large and scores lie close together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from small_release import SETTINGS, Parts, array_file, small_release

from tiercel_export import Vectors
from tiercel_export.release.golden_answers import rank
from tiercel_serving.release.manifest import encode, read_manifest
from tiercel_serving.release.opened import Release
from tiercel_serving.release.writing import write_manifest
from tiercel_serving.rules.compare import Compare
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.stages.seen_again import SeenAgain
from tiercel_serving.stores.memory_mapped import UserTables
from tiercel_serving.verify.checks import verify_release
from tiercel_serving.verify.golden import ANSWER_USERS, StoredGolden
from tiercel_serving.verify.reference import Candidate
from tiercel_serving.verify.report import VerifyRow

MANY = 20_000


def many_items(items: pd.DataFrame) -> pd.DataFrame:
    """Return the items, and synthetic ones without interactions."""
    random = np.random.default_rng(0)
    more = MANY - len(items)
    others = pd.DataFrame(
        {
            "item_id": 100_000 + np.arange(more),
            "kind": random.choice(["tool", "toy", "gift", "book"], more),
            "tags": [list("ab")[: n % 3] for n in range(more)],
            "price": random.gamma(2, 20, more),
            "stock": random.integers(0, 9, more),
            "title": [f"Other {n}" for n in range(more)],
        }
    )
    return pd.concat([items, others], ignore_index=True)


def large(parts: Parts, path: Path, factory: str) -> Release:
    """Build a release with vectors so similar that several scores nearly tie at each cut-off."""
    random = np.random.default_rng(1)
    vectors = random.normal(size=8) + 0.005 * random.normal(size=(MANY, 8))
    settings = msgspec.structs.replace(
        SETTINGS,
        candidates=200,
        kept=100,
        k_max=50,
        sources=(Index("towers", factory=factory), Popular(quota=20)),
        rules=SETTINGS.rules[:1],
    )
    changed = replace(parts, items=many_items(parts.items))
    retrieval = {"towers": Vectors(parts.user_tower, vectors.astype(np.float32))}
    return small_release(path, changed, settings=settings, retrieval=retrieval)


@pytest.fixture(scope="module", params=["Flat", "IVF64,Flat"])
def many(request: pytest.FixtureRequest, parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    # So that an index is built over the items that pass the rule.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiercel_serving.sources.index.EXACT_ITEMS", 0)
        return large(parts, tmp_path_factory.mktemp("many") / "release", request.param)


def answers(release: Release | Path) -> list[VerifyRow]:
    return [row for row in verify_release(release).rows if row.artefact == "answers"]


def test_nobody_is_left_out_because_scores_lie_close(many: Release) -> None:
    _, want = StoredGolden(many).tensors("answers")
    assert len(want["status"]) == want["wanted"][0] == ANSWER_USERS + 1
    real = want["candidate_row"] < MANY
    # All users but the unknown one have items near a cut-off, and far more that are certain.
    near = (real & ~want["candidate_certain"]).sum(axis=1)
    assert np.count_nonzero(near == 0) <= 3
    assert (want["candidate_certain"].sum(axis=1) > 60).all()
    for row in answers(many):
        assert row.ok
        assert not row.warning
        assert f"{ANSWER_USERS + 1} users compared" in row.detail


def certain_of(release: Release) -> np.ndarray:
    """Return the rows of items that the ranker certainly sees for the first known user, best first."""
    _, want = StoredGolden(release).tensors("answers")
    user = int(np.flatnonzero(want["status"][:, 0] == 0)[0])
    rows: np.ndarray = want["candidate_row"][user][want["candidate_certain"][user]]
    return rows


def edit(path: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    file = array_file(path, name)
    array = np.load(file)
    change(array)
    np.save(file, array)


def turn_vectors(path: Path, rows: np.ndarray) -> None:
    at = np.isin(np.load(array_file(path, "source_towers/rows")), rows)

    def change(vectors: np.ndarray) -> None:
        vectors[at] *= -1

    edit(path, "source_towers/vectors", change)


def swap_two_rows(path: Path, rows: np.ndarray) -> None:
    numbers = np.load(array_file(path, "items/item_num"))
    other = rows[np.argmax(np.abs(numbers[rows, 0] - numbers[rows[0], 0]))]

    def change(table: np.ndarray) -> None:
        table[[rows[0], other]] = table[[other, rows[0]]]

    for name in ("item_num", "item_cat"):
        edit(path, f"items/{name}", change)


def tighten_the_rule(path: Path, rows: np.ndarray) -> None:
    manifest = read_manifest((path / "manifest.json").read_bytes(), "manifest.json")
    rules = (Compare("in stock", column="stock", operator=">", value=3),)
    settings = msgspec.structs.replace(manifest.settings, rules=rules)
    (path / "manifest.json").write_bytes(encode(msgspec.structs.replace(manifest, settings=settings)))


@pytest.mark.parametrize("breaks", [turn_vectors, swap_two_rows, tighten_the_rule])
def test_a_broken_release_is_caught(
    many: Release, tmp_path: Path, breaks: Callable[[Path, np.ndarray], None]
) -> None:
    path = Path(shutil.copytree(many.path, tmp_path / "copy"))
    rows = certain_of(many)
    if breaks is turn_vectors and many.manifest.sources["towers"]["exact"]:
        # One row is enough here; an approximate index is instead held to a number of misses.
        rows = rows[:1]
    breaks(path, rows)
    write_manifest(path, read_manifest((path / "manifest.json").read_bytes(), "manifest.json"))
    caught = answers(path)
    assert caught
    assert not any(row.ok for row in caught)
    assert all(row.detail for row in caught)


def test_one_vector_for_all_items_is_a_warning(parts: Parts, tmp_path: Path) -> None:
    items = many_items(parts.items).iloc[:1500]
    settings = msgspec.structs.replace(SETTINGS, sources=(Index("towers"), Popular(quota=0)))
    retrieval = {"towers": Vectors(parts.user_tower, np.ones((1500, 8), np.float32))}
    made = small_release(tmp_path / "r", replace(parts, items=items), settings=settings, retrieval=retrieval)
    rows = answers(made)
    assert rows
    assert all(row.ok and row.warning for row in rows)
    assert all(f"only 1 of {ANSWER_USERS + 1} users compared" in row.detail for row in rows)


@pytest.mark.parametrize("kept", [1, 2, 3, 20])
def test_more_candidates_than_a_ranker_takes_are_scored_behind_the_same_best(kept: int) -> None:
    """At near ties the reference has more candidates than are kept; rankers see the first of them."""

    def run(known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        score = known["kept_score"]
        return {"rank_score": np.stack([score, score - score[:, :1]], axis=-1)}

    model = SimpleNamespace(run=run, output=SimpleNamespace(name="rank_score"))
    uncompiled: Any = SimpleNamespace(
        models=SimpleNamespace(ranker=model),
        settings=SimpleNamespace(kept=kept),
        items=9,
        candidates=lambda rows, scores, sources: {"kept_score": scores},
    )
    for count in range(6):
        found = rank(uncompiled, {}, [Candidate(row, 4.0 - row, 1) for row in range(count)])
        behind = [0.0 if kept == 1 else -float(row) for row in range(count)]
        assert found == [[4.0 - row, far] for row, far in zip(range(count), behind, strict=True)]


def test_what_users_already_had_is_verified_both_ways(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, want = StoredGolden(release).tensors("answers")
    users = UserTables(release.artefact("users", "users"))
    again = []
    for number, (user, count) in enumerate(zip(asked["user_id"], want["count"][:, 0], strict=True)):
        rows = release.items.lookup.find(want["item_id"][number, :count])
        had = users.at(users.rows(user)).seen()[0]
        again.append(np.isin(rows, had).any())
    allowed = asked["allow_seen"][:, 0]
    assert not np.any(again & ~allowed)
    assert np.any(again & allowed)
    assert all(row.ok for row in answers(release))
    monkeypatch.setattr(SeenAgain, "masked", lambda self, users, arrays: users.seen())
    assert not any(row.ok for row in answers(release))
