"""Served forms by source: several at once, only lists, no ranker, and combinations that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import own_sources
import pytest
import torch
from small_release import ITEMS, SETTINGS, USERS, Parts, small_release
from torch import nn

from tiercel_export import Given, Vectors
from tiercel_export.errors import ExportInputError
from tiercel_export.forms import ServedForm
from tiercel_serving.errors import KindUnavailable
from tiercel_serving.kinds import Kind
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.reorder.weighted_sum import WeightedSum
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.sources.table import SOURCES
from tiercel_serving.stores.bloom import SeenFilter
from tiercel_serving.verify.checks import verify_release


class HistoryTower(nn.Module):
    """The mean of the history's vectors, with another dimension than the towers'."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__()
        padded = np.concatenate([vectors, np.zeros((1, vectors.shape[1]), np.float32)])
        self.items = nn.Embedding.from_pretrained(torch.from_numpy(padded))

    def forward(self, history_row: torch.Tensor, history_length: torch.Tensor) -> torch.Tensor:
        return self.items(history_row).sum(1) / history_length.clamp(min=1)


VECTORS = np.random.default_rng(3).normal(size=(ITEMS, 5)).astype(np.float32)


def two_forms(parts: Parts) -> dict[str, ServedForm]:
    return {
        "towers": Vectors(parts.user_tower, parts.item_tower),
        "history": Vectors(HistoryTower(VECTORS), VECTORS),
    }


def changed(**changes: Any) -> ServingSettings:
    return msgspec.structs.replace(SETTINGS, **changes)


@pytest.fixture(scope="module")
def two_sources(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    sources = (Index("towers"), Index("history", quota=7, factory="IVF4,Flat"), Popular(quota=4))
    return small_release(
        tmp_path_factory.mktemp("releases") / "two",
        parts,
        retrieval=two_forms(parts),
        settings=changed(sources=sources, rules=()),
    )


def test_two_vector_sources_with_quotas(two_sources: Release, parts: Parts) -> None:
    assert verify_release(two_sources).ok
    assert list(two_sources.stages)[:4] == ["user_features", "query_towers", "query_history", "retrieval"]
    figures = two_sources.manifest.sources
    assert figures["towers"]["exact"]
    assert not figures["history"]["exact"]
    # Each is measured with its own queries; the other's dimension would not even fit.
    assert figures["history"]["recall"] >= 0.99
    assert {name: q.dimension for name, q in two_sources.manifest.queries.items()} == {
        "towers": 8,
        "history": 5,
    }
    out, _ = Chain.open(two_sources).run({"user_id": parts.users["user_id"].to_numpy()[:, None]})
    for codes in out["source"]:
        counts = np.bincount(codes, minlength=4)
        assert counts.tolist() == [0, 13, 7, 4]
    # All are sorted by the scores of the first source.
    query = out["query_towers"]
    vectors = two_sources.artefact("source_towers", "source").array("vectors")
    expected = np.einsum("bnd,bd->bn", vectors[out["retrieved_row"]], query)
    assert np.allclose(out["retrieval_score"], expected, atol=1e-5)
    assert out["query_history"].shape == (USERS, 5)


def test_sources_are_made_for_the_forms_if_none_are_said(parts: Parts, tmp_path: Path) -> None:
    made = small_release(tmp_path / "r", parts, settings=changed(sources=()))
    assert made.settings.sources == (Index("towers"), Popular(quota=0))
    out, _ = Chain.open(made).run({"user_id": np.array([[1000]])})
    assert (out["source"] == 1).all()


def test_without_a_ranker_the_order_of_retrieval_is_the_order(parts: Parts, tmp_path: Path) -> None:
    made = small_release(tmp_path / "r", parts, ranker=None, settings=changed(reorder=()), layout="staged")
    assert verify_release(made).ok
    assert made.manifest.ranking is None
    assert list(made.stages) == [
        *("user_features", "query_towers", "retrieval", "filtering", "ordering", "describe_items")
    ]
    assert not (made.path / "artefacts" / "ranking").exists()
    assert not (made.path / "triton" / "candidate_features").exists()
    out, _ = Chain.open(made).run({"user_id": parts.users["user_id"].to_numpy()[:5, None]})
    ids = parts.items["item_id"].to_numpy()
    assert np.array_equal(out["item_id"], ids[out["kept_row"][:, :5]])
    assert np.array_equal(out["score"], out["kept_score"][:, :5])


def test_lists_alone_need_no_form_at_all(parts: Parts, tmp_path: Path) -> None:
    kept = SeenFilter(beyond=6, false_positives=0.01)
    made = small_release(tmp_path / "r", parts, retrieval={}, settings=changed(sources=(), seen_filter=kept))
    assert verify_release(made).ok
    assert made.settings.sources == (Popular(),)
    out, _ = Chain.open(made).run({"user_id": parts.users["user_id"].to_numpy()[:, None]})
    assert (out["source"] <= 1).all()
    # All but the latest six items are in a Bloom filter; none of them is recommended.
    row_of = {item: row for row, item in enumerate(parts.items["item_id"])}
    had = parts.interactions.groupby("user_id")["item_id"].agg(set)
    assert had.map(len).max() > 12
    for user, rows in zip(parts.users["user_id"], out["retrieved_row"].tolist(), strict=True):
        assert not {row_of[item] for item in had.get(user, ())} & set(rows)


@pytest.fixture
def _own_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in own_sources.ROWS.items():
        monkeypatch.setitem(SOURCES.rows, name, row)


@pytest.mark.usefixtures("_own_sources")
def test_kinds_that_nobody_knew_are_served(parts: Parts, tmp_path: Path) -> None:
    """One reads a raw column and needs no model, the other reads the history and takes item weights."""
    # Few digits, so that a sum does not depend on the order.
    weights = np.random.default_rng(1).integers(0, 64, (ITEMS, ITEMS)) / 8
    sources = (own_sources.Weights("alike", quota=10), own_sources.Best("best", quota=None))
    made = small_release(
        tmp_path / "r",
        parts,
        retrieval={"alike": Given("item weights", {"weights": weights})},
        settings=changed(sources=sources, rules=(), reorder=()),
    )
    assert verify_release(made).ok
    assert made.manifest.queries == {}
    assert made.manifest.sources == {"alike": {}, "best": {"most": 8.0}}
    assert made.manifest.notes == ("best: made",)
    user = int(parts.users["user_id"][3])
    out, _ = Chain.open(made).run({"user_id": np.array([[user], [1]])})
    history = out["history_row"][0, : out["history_length"][0, 0]]
    expected = weights[history].sum(0)
    seen = set(parts.interactions.query("user_id == @user")["item_id"])
    expected[parts.items["item_id"].isin(seen)] = -1
    first = out["retrieved_row"][0, :10]
    assert first.tolist() == np.argsort(-expected, kind="stable")[:10].tolist()
    assert out["source"][0].tolist() == [1] * 10 + [2] * 14
    stock = parts.items["stock"].to_numpy()
    assert stock[out["retrieved_row"][1]].tolist() == sorted(stock.tolist(), reverse=True)[:24]


class Odd:
    """A form that no source takes."""

    form: ClassVar[str] = "oracle"
    query = None

    def make(self, items: Any, what: str) -> Any:
        raise AssertionError("never asked")


class Wide(nn.Module):
    """A query three times as wide as ``user_num``."""

    def forward(self, user_num: torch.Tensor) -> torch.Tensor:
        return user_num.repeat(1, 3)


Changes = Callable[[Parts], dict[str, Any]]

REFUSED: dict[str, tuple[Changes, str]] = {
    "no form": (
        lambda parts: {"retrieval": {}},
        r"retrieval: the source 'towers' \(index\) needs a served form 'vectors' of its name",
    ),
    "form of another name": (
        lambda parts: {"retrieval": {"tower": Vectors(parts.user_tower, parts.item_tower)}},
        r"(?s)the source 'towers' \(index\) needs .*'tower'.*retrieval\['tower'\]: no source .*'towers'",
    ),
    "form of another kind": (
        lambda parts: {"retrieval": {"towers": Given("item weights", {})}},
        r"retrieval\['towers'\]: the source 'towers' \(index\) takes the form 'vectors', got 'item weights'",
    ),
    "form without its module": (
        lambda parts: {"retrieval": {"towers": Given("vectors", {"vectors": VECTORS})}},
        r"retrieval\['towers'\]: .* reads queries, but got 'vectors' without a module",
    ),
    "form of a source that takes none": (
        lambda parts: {"retrieval": {**two_forms(parts), "popular": Given("vectors", {})}},
        r"retrieval\['popular'\]: the source 'popular' \(popular\) takes no served form",
    ),
    "form without a source": (
        lambda parts: {"retrieval": two_forms(parts)},
        r"retrieval\['history'\]: no source of settings\.sources has this name; use 'towers', 'popular'",
    ),
    "no form at all": (
        lambda parts: {"retrieval": {"towers": parts.user_tower}},
        r"retrieval\['towers'\]: expected a served form, got UserTower; give Vectors",
    ),
    "several forms and no quota": (
        lambda parts: {"retrieval": two_forms(parts), "settings": changed(sources=())},
        r"settings\.sources: more than one source has no quota; give all but one a number",
    ),
    "query of another width": (
        lambda parts: {"retrieval": {"towers": Vectors(Wide(), VECTORS)}},
        r"retrieval\['towers'\]\.query: expected float32 \[B, 5\], got float32 \[3, 3\]",
    ),
    "steps of a ranker that is not there": (
        lambda parts: {"ranker": None, "settings": changed(reorder=(WeightedSum((1.0, 0.5)),))},
        r"settings\.reorder\[0\]\.weights: 2 weights, but the ranking model has no tasks",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_together_is_refused(case: str, parts: Parts, tmp_path: Path) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(ExportInputError, match=words):
        small_release(tmp_path / "r", parts, **changes(parts))
    assert list(tmp_path.iterdir()) == []


def test_a_form_that_no_source_takes_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(
        KindUnavailable, match="no source takes the form 'oracle' of the retrieval model 'odd'"
    ):
        small_release(tmp_path / "r", parts, retrieval={"odd": Odd()}, settings=changed(sources=()))


def test_a_source_whose_library_is_missing_says_what_to_install(
    parts: Parts, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("tiercel_export.models.onnx.make_onnx", lambda *args, **kwargs: ())
    words = r"source 'index' needs faiss, which is not installed; run pip install \"tiercel\[serving\]\""
    with pytest.raises(KindUnavailable, match=words):
        small_release(tmp_path / "r", parts)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KindUnavailable, match=words):
        Chain.open(open_release(release.path))


def test_a_row_whose_module_is_not_there_is_named(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"graph": Kind("tiercel_serving.sources.graph:Graph")}
    monkeypatch.setattr(SOURCES, "rows", {**first, **SOURCES.rows})
    with pytest.raises(KindUnavailable, match=r"source 'graph': its row says 'tiercel_serving\.sources\.gra"):
        small_release(tmp_path / "r", parts, settings=changed(sources=()))
