"""From parts to a release that answers, and every way in which a build is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch
from small_release import ITEMS, SETTINGS, USERS, Parts, array_file, small_parts, small_release
from torch import nn

from tiercel_export import FeatureOptions, TableColumns, Vectors, build_release
from tiercel_export.errors import ExportInputError
from tiercel_export.release.build import STEPS
from tiercel_pipelines.commands.export import describe, engine_of, release_table
from tiercel_serving.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    BuildMismatch,
    DestinationTaken,
    InvalidSettings,
    KindUnavailable,
    NewerFormat,
    ReleaseMissing,
    TiercelError,
    VerificationFailed,
)
from tiercel_serving.release.manifest import Catalogue, PackedList, encode, read_manifest
from tiercel_serving.release.opened import Release, check_files, open_release
from tiercel_serving.release.writing import write_manifest
from tiercel_serving.reorder.weighted_sum import WeightedSum
from tiercel_serving.rules.compare import Compare
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.verify.checks import verify_release


def answer(release: Release, ids: list[Any], **more: Any) -> dict[str, np.ndarray]:
    dtype = object if isinstance(ids[0], bytes) else np.int64
    users = np.empty((len(ids), 1), dtype)
    users[:, 0] = ids
    chain = Chain.open(release)
    arrays = {"user_id": users, **more}
    chain.check(arrays)
    return chain.run(arrays)[0]


def changed(**changes: Any) -> Any:
    return msgspec.structs.replace(SETTINGS, **changes)


def test_a_release_answers_in_process(release: Release, parts: Parts) -> None:
    out = answer(release, parts.users["user_id"].tolist())
    assert out["count"].tolist() == [[SETTINGS.k_default]] * USERS
    assert (out["status"] == 0).all()
    assert (np.diff(out["score"], axis=1) <= 0).all()
    seen = parts.interactions.groupby("user_id")["item_id"].apply(set)
    stock = parts.items.set_index("item_id")
    for user, row in zip(parts.users["user_id"], out["item_id"], strict=True):
        assert not set(row.tolist()) & seen.get(user, set())
        assert (stock.loc[row, "stock"] > 0).all()
        assert (stock.loc[row, "kind"] != "gift").all()


def test_unknown_users_get_what_is_popular(release: Release, parts: Parts) -> None:
    out = answer(release, [1])
    counts = parts.interactions["item_id"].value_counts()
    assert out["status"].tolist() == [[2]]
    expected = counts.loc[out["item_id"][0]].to_numpy() / counts.max()
    assert np.allclose(out["score"][0], expected)


def test_text_ids(tmp_path: Path, release: Release) -> None:
    parts = small_parts(tmp_path / "workflow", text_ids=True)
    made = small_release(tmp_path / "release", parts)
    assert made.manifest.catalogue.item_id_dtype == "bytes"
    out = answer(made, ["ü 3".encode(), b"nobody"])
    assert out["status"].tolist() == [[0], [2]]
    assert set(out["item_id"][0].tolist()) <= {item.encode() for item in parts.items["item_id"]}
    assert verify_release(made).ok


def test_manifest_says_what_there_is(release: Release) -> None:
    manifest = release.manifest
    assert manifest.catalogue == Catalogue(ITEMS, USERS, 700, "int64", "int64", "item_id", "user_id")
    assert manifest.packed.user_cat == ("user_id", "country", "age", "device")
    assert manifest.packed.item_lists == (PackedList("tags", 3),)
    assert manifest.queries["towers"].dimension == 8
    assert manifest.ranking is not None
    assert manifest.ranking.tasks == 2
    assert manifest.sources["towers"]["recall"] == 1.0
    assert manifest.made.libraries["onnxruntime"]
    assert encode(manifest.settings) == encode(SETTINGS)
    assert set(manifest.raw_item_columns) == {"item_id", "kind", "tags", "price", "stock", "title"}
    check_files(release)
    assert not [name for name in manifest.files if name.endswith((".pkl", ".pickle"))]


#: What is said of the query tower, whose history's length is a whole number.
WHOLE = "not as loops: arithmetic with whole numbers"


def test_progress_reports_every_step(parts: Parts, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    small_release(tmp_path / "r", parts, progress=lambda *call: heard.append(call), layout="staged")
    names = ("exporting query_towers", f"model query_towers: onnx; {WHOLE}", "exporting ranking")
    stages = [(name, 3, len(STEPS)) for name in names]
    assert heard[3:7] == [("exporting the models", 3, len(STEPS)), *stages]
    assert [done for what, done, _ in heard if (what, done, len(STEPS)) not in stages] == [
        *range(len(STEPS) + 1)
    ]
    assert (tmp_path / "r" / "triton" / "retrieval").is_dir()


class Soft(nn.Module):
    """A ranker with an operator that the loops lack."""

    def forward(self, item_num: torch.Tensor, kept_score: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(torch.cat([item_num, kept_score[..., None]], 2))


def test_a_model_that_is_not_as_loops_says_why(parts: Parts, tmp_path: Path) -> None:
    heard: list[str] = []
    made = small_release(
        tmp_path / "r", parts, ranker=Soft().eval(), progress=lambda what, *_: heard.append(what)
    )
    why = {"query_towers": WHOLE, "ranking": "not as loops: the operator Softplus"}
    said = [(f"model {stage}", f"onnx; {reason}") for stage, reason in why.items()]
    assert [what for what in heard if "loops" in what] == [": ".join(line) for line in said]
    document = describe(made, 1.0)
    assert (document["forms"], document["unlowered"]) == ({}, why)
    shown = zip(*(map(str, column.cells) for column in release_table(document).columns), strict=True)
    assert set(said) <= set(shown)


def test_a_model_that_is_as_loops_says_so(release: Release) -> None:
    document = describe(release, 1.0)
    assert document["forms"] == {"ranking": "loops"}
    assert list(document["unlowered"]) == ["query_towers"]
    assert engine_of(document, "ranking") == "onnx, as loops"


def test_an_approximate_index_is_verified_by_its_share_of_the_exact_answer(
    parts: Parts, tmp_path: Path
) -> None:
    sources = (Index("towers", factory="IVF4,Flat"), Popular(quota=4))
    made = small_release(tmp_path / "r", parts, settings=changed(sources=sources, rules=()))
    figures = made.manifest.sources["towers"]
    assert not figures["exact"]
    assert figures["recall"] == min(figures["cases"].values()) >= 0.99
    assert set(figures["cases"]) == {"plain", "seen", "best hidden"}
    report = verify_release(made)
    assert report.ok
    compared = [row.detail for row in report.rows if row.artefact == "answers"]
    assert compared
    assert all("1.0000 of the candidates of exact search" in detail for detail in compared)


def test_vectors_instead_of_a_tower_and_no_users(parts: Parts, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32)
    retrieval = {"towers": Vectors(parts.user_tower, vectors)}
    settings = changed(rules=())
    made = small_release(
        tmp_path / "r", parts, retrieval=retrieval, users=None, interactions=None, settings=settings
    )
    assert made.manifest.catalogue.users == 0
    stored = made.artefact("source_towers", "source").arrays["vectors"]
    assert np.array_equal(stored, vectors)
    out = answer(made, [5, 6], age=np.array([[30], [0]]), age__valid=np.array([[True], [False]]))
    assert out["status"].tolist() == [[1], [2]]
    assert out["count"].tolist() == [[5], [5]]


def test_a_history_sent_overrides_the_store(release: Release, parts: Parts) -> None:
    items = parts.items["item_id"].to_numpy()[:3]
    out = answer(release, [parts.users["user_id"][0]], history_item_ids=items[None, :])
    assert out["history_length"].tolist() == [[3]]
    assert not set(out["item_id"][0]) & set(items)


def test_unknown_ids_in_interactions_are_said_and_left_out(parts: Parts, tmp_path: Path) -> None:
    stray = pd.DataFrame(
        {"user_id": [1000, -5, -6], "item_id": [1, 500, 500], "timestamp": [0, 0, 0], "device": ["web"] * 3}
    )
    made = small_release(tmp_path / "r", parts, interactions=pd.concat([parts.interactions, stray]))
    notes = "\n".join(made.manifest.notes)
    assert "1 of 703 name 1 items that `items` does not hold (1); they were dropped" in notes
    assert "2 of 703 belong to 2 users that `users` does not hold (-5, -6)" in notes


def test_more_candidates_than_items_is_noted(parts: Parts, tmp_path: Path) -> None:
    settings = changed(candidates=100)
    made = small_release(tmp_path / "r", parts, settings=settings)
    assert any("40 slots stay empty" in note for note in made.manifest.notes)
    out = answer(made, [parts.users["user_id"][0]])
    assert (out["retrieved_row"][0] < ITEMS).sum() < 100


def test_a_rule_that_nothing_passes_is_said_and_leaves_empty_answers(parts: Parts, tmp_path: Path) -> None:
    sources = (Index("towers", factory="IVF4,Flat"), Popular(quota=4))
    settings = changed(sources=sources, rules=(Compare("in heaps", column="stock", operator=">", value=100),))
    made = small_release(tmp_path / "r", parts, settings=settings)
    said = f"rules: 0 of {ITEMS} items pass the rule 'in heaps'; nobody will be recommended anything"
    assert said in made.manifest.notes
    assert verify_release(made).ok
    out = answer(made, [*parts.users["user_id"].tolist()[:3], -1])
    assert out["count"].tolist() == [[0]] * 4


# --------------------------------------------------------------------------------------------- refused


class OneColumn(nn.Module):
    def forward(self, item_num):
        return item_num[:, :, 0]


class Narrow(nn.Module):
    def forward(self, user_num):
        return user_num[:, :1]


def frame(name: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Parts], dict[str, Any]]:
    return lambda parts: {name: edit(getattr(parts, name).copy())}


def setting(**changes: Any) -> Callable[[Parts], dict[str, Any]]:
    return lambda parts: {"settings": changed(**changes)}


def vectors(array: Any) -> Callable[[Parts], dict[str, Any]]:
    return lambda parts: {"retrieval": {"towers": Vectors(parts.user_tower, array)}}


GOOD = np.ones((ITEMS, 8), np.float32)
HOLE = GOOD.copy()
HOLE[7, 2] = np.nan

REFUSED = {
    "item id missing": (frame("items", lambda f: f.drop(columns="item_id")), "items: no column 'item_id'"),
    "item column missing": (frame("items", lambda f: f.drop(columns="price")), "price"),
    "user column missing": (frame("users", lambda f: f.drop(columns="age")), "age"),
    "no items": (frame("items", lambda f: f.iloc[:0]), "no rows"),
    "item twice": (frame("items", lambda f: pd.concat([f, f.iloc[3:5]])), "2 of 62 rows repeat an id"),
    "user twice": (frame("users", lambda f: pd.concat([f, f.iloc[:1]])), "users: 1 of 41 rows repeat"),
    "null id": (frame("users", lambda f: f.assign(user_id=f.user_id.where(f.user_id > 1000))), "are null"),
    "nobody's id": (
        frame("users", lambda f: f.assign(user_id=f.user_id.replace(1000, -(2**63)))),
        "users: an id in 'user_id' is -9223372036854775808, which stands for whoever has no id",
    ),
    "float ids": (frame("items", lambda f: f.assign(item_id=f.item_id + 0.5)), "integers or all strings"),
    "mixed ids": (
        frame("items", lambda f: f.assign(item_id=["a", *f.item_id.tolist()[1:]])),
        "integers or all strings",
    ),
    "other kind of id": (
        frame("interactions", lambda f: f.assign(item_id=f.item_id.astype(str))),
        "bytes ids, but items has int64",
    ),
    "workflow of other ids": (
        lambda parts: {
            "users": parts.users.assign(user_id=parts.users.user_id.astype(str)),
            "interactions": parts.interactions.assign(user_id=parts.interactions.user_id.astype(str)),
        },
        "user_id",
    ),
    "no time": (frame("interactions", lambda f: f.drop(columns="timestamp")), "timestamp=None"),
    "what is of late, without time": (
        lambda parts: {
            "columns": TableColumns(timestamp=None),
            "settings": changed(sources=(*SETTINGS.sources, Popular("late", 2, 7.0))),
        },
        "they have no timestamp; name the column of their time",
    ),
    "null time": (
        frame("interactions", lambda f: f.assign(timestamp=f.timestamp.where(f.timestamp > 50))),
        "have no 'timestamp'",
    ),
    "vectors of other items": (
        vectors(GOOD[:-1]),
        r"retrieval\['towers'\]\.items: expected \[60, D\].*got \[59, 8\]",
    ),
    "flat vectors": (vectors(GOOD[:, 0]), r"expected \[60, D\]"),
    "integer vectors": (vectors(GOOD.astype(np.int64)), "expected float32, got int64"),
    "a hole in a vector": (vectors(HOLE), "the first in row 7"),
    "tower of another dimension": (
        lambda parts: {"retrieval": {"towers": Vectors(Narrow(), parts.item_tower)}},
        r"retrieval\['towers'\]\.query: expected float32 \[B, 8\], got float32 \[3, 1\]",
    ),
    "ranker without tasks": (
        lambda parts: {"ranker": OneColumn()},
        r"ranker: expected float32 \[B, 16, any\], got float32 \[3, 16\]",
    ),
    "weights of other tasks": (
        setting(reorder=(WeightedSum((1.0,)),)),
        r"settings\.reorder\[0\]\.weights: 1 weights, but the ranking model has 2 tasks",
    ),
    "weights without a ranker": (lambda parts: {"ranker": None}, "has no tasks"),
    "k above kept": (setting(k_max=17), r"settings\.k_max: 17 is more than the candidates that are ranked"),
    "kept above candidates": (setting(kept=25), r"settings\.kept: 25 is more than are retrieved"),
    "several at once": (
        setting(kept=25, history_length=-1, k_default=0),
        r"(?s)settings\.k_default: .*\nsettings\.history_length: .*\nsettings\.kept: ",
    ),
    "default above max": (setting(k_default=13), r"settings\.k_default: 13 is more than a request may ask"),
    "no candidates": (setting(candidates=0), r"settings\.candidates: expected a whole number of at least 1"),
    "negative history": (setting(history_length=-1), r"settings\.history_length: expected"),
    "history columns alone": (setting(history_length=0), r"settings\.history_columns: need a history_length"),
    "unknown users' fate": (setting(unknown_users="ignore"), "no way 'ignore'"),
    "no fallback": (setting(sources=(Index("towers"),)), r"settings\.sources: no source serves users"),
    "twice the name": (
        setting(sources=(Index("towers"), Popular("towers", quota=0))),
        "2 sources are called 'towers'",
    ),
    "a source of no kind": (setting(sources=("index", Popular())), r"settings\.sources\[0\]: expected"),
    "quotas too large": (
        setting(sources=(Index("towers", quota=20), Popular(quota=9))),
        r"quotas add up to 29, more than candidates \(24\)",
    ),
    "a quota of nothing": (
        setting(sources=(Index("towers", quota=0), Popular())),
        r"settings\.sources\[0\]\.quota: the source 'towers' has a quota of 0",
    ),
    "two open quotas": (
        setting(sources=(Index("towers"), Popular())),
        "more than one source has no quota",
    ),
    "rule on nothing": (
        setting(rules=(Compare("r", "colour", "==", 1),)),
        r"settings\.rules\[0\]: 'colour' is not a column of `items`",
    ),
    "odd operator": (setting(rules=(Compare("r", "stock", "~", 1),)), "no known operator: '~'"),
    "in needs a list": (setting(rules=(Compare("r", "kind", "in", "toy"),)), "give a tuple of values"),
    "text against number": (
        setting(rules=(Compare("r", "stock", ">", "many"),)),
        r"settings\.rules\[0\]\.value: .*holds numbers, with 'many'",
    ),
    "number against text": (setting(rules=(Compare("r", "kind", "==", 3),)), "holds strings, with 3"),
    "list needs in": (setting(rules=(Compare("r", "tags", "==", "a"),)), "holds lists of strings"),
    "title of nothing": (setting(title_column="name"), r"settings\.title_column: 'name' is not a column"),
    "history of a list": (setting(history_columns=("tags",)), r"settings\.history_columns: 'tags' is no"),
    "order of training": (
        lambda parts: {"features": FeatureOptions(expected_packed={"item_cat": ["kind", "item_id"]})},
        r"trained on the columns \['kind', 'item_id'\]",
    ),
}

#: Errors in the choice of a target, an engine, a layout or an index, not in the parts.
UNKNOWN: dict[str, tuple[Callable[[Parts], dict[str, Any]], type[TiercelError], str]] = {
    "target": (lambda parts: {"target": "abacus"}, InvalidSettings, "no target 'abacus'; use 'cpu'"),
    "engine": (lambda parts: {"engine": "abacus"}, KindUnavailable, "no engine 'abacus'; use 'onnx'"),
    "layout": (lambda parts: {"layout": "flat"}, InvalidSettings, "no layout 'flat'; use 'fused', 'staged'"),
    "index": (
        setting(sources=(Index("towers", factory="Magic"), Popular(quota=4))),
        InvalidSettings,
        r"settings\.sources\[0\] \(towers\): .*no index of 'Magic' .*index string Magic",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_do_not_fit_are_refused(
    case: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, words = REFUSED[case]
    # Compiling models takes most of the time, and they are not tested here.
    monkeypatch.setattr("tiercel_export.models.onnx.make_onnx", lambda *args, **kwargs: ())
    with pytest.raises(ExportInputError, match=words):
        small_release(tmp_path / "r", parts, **changes(parts))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_there_is_to_choose_from_is_said(
    case: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, error, words = UNKNOWN[case]
    monkeypatch.setattr("tiercel_export.models.onnx.make_onnx", lambda *args, **kwargs: ())
    with pytest.raises(error, match=words):
        small_release(tmp_path / "r", parts, **changes(parts))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_release_stays_unless_it_may_go(release: Release, parts: Parts, copied: Path) -> None:
    before = (copied / "manifest.json").read_text()
    with pytest.raises(DestinationTaken, match="replace"):
        small_release(copied, parts)
    assert (copied / "manifest.json").read_text() == before
    made = small_release(copied, parts, replace=True)
    assert made.build_id != release.build_id
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


# -------------------------------------------------------------------------------- interrupts, verification


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_at_any_step_leaves_nothing(
    step: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if name == step:
            raise KeyboardInterrupt

    if step != STEPS[-1]:
        monkeypatch.setattr("tiercel_export.models.onnx.make_onnx", fake_export)
    with pytest.raises(KeyboardInterrupt):
        small_release(tmp_path / "deep" / "r", parts, progress=interrupt, verify=False)
    assert not (tmp_path / "deep").exists() or list((tmp_path / "deep").iterdir()) == []


def fake_export(module: nn.Module, folder: Path, **kwargs: Any) -> tuple[str, ...]:
    (folder / "model.onnx").write_bytes(b"")
    return ()


def test_a_model_that_differs_from_its_source_is_never_released(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiercel_export.models import onnx

    make = onnx.make_onnx

    def wrong(module: nn.Module, folder: Path, **kwargs: Any) -> Any:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.01)
        notes = make(module, folder, **kwargs)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.sub_(0.01)
        return notes

    monkeypatch.setattr(onnx, "make_onnx", wrong)
    with pytest.raises(VerificationFailed, match="query_towers, torch") as error:
        small_release(tmp_path / "r", parts)
    assert "ranking, torch" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_verify_prints_a_row_for_every_artefact(release: Release) -> None:
    report = verify_release(release)
    assert report.ok
    assert {row.artefact for row in report.rows} == {
        *("files", "triton", "user_features", "item_features", "items", "rules", "users"),
        *("query_towers", "ranking", "towers", "popular", "answers"),
    }
    assert all(row.compared > 0 for row in report.rows)
    document = json.loads(json.dumps(report.to_json()))
    assert document["ok"] is True
    assert document["build_id"] == release.build_id


def test_verify_needs_neither_nvtabular_nor_torch(release: Release) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "for name in ('torch', 'nvtabular', 'merlin', 'onnx'): sys.modules[name] = None\n"
        "from tiercel_serving.verify.checks import verify_release\n"
        f"assert verify_release({str(release.path)!r}).ok\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def rewrite(path: Path, name: str, edit: Callable[[np.ndarray], None]) -> None:
    """Change an array on disk and update the checksums, as a bug in a compiler would."""
    file = array_file(path, name)
    array = np.load(file)
    edit(array)
    np.save(file, array)
    write_manifest(path, read_manifest((path / "manifest.json").read_bytes(), "manifest.json"))


@pytest.mark.parametrize(
    ("name", "artefact"),
    [
        ("items/item_num", "items"),
        ("items/item_cat", "items"),
        ("users/user_cat", "users"),
        ("source_towers/vectors", "towers"),
        ("source_popular/scores", "popular"),
        ("source_popular/scores", "answers"),
        ("source_popular/rows", "answers"),
    ],
)
def test_verify_finds_a_wrong_artefact(copied: Path, name: str, artefact: str) -> None:
    def damage(array: np.ndarray) -> None:
        array[:20] += 3

    rewrite(copied, name, damage)
    report = verify_release(copied)
    assert not report.ok
    failed = {row.artefact for row in report.rows if not row.ok}
    assert artefact in failed
    assert all(row.detail for row in report.rows if not row.ok)
    with pytest.raises(VerificationFailed, match=artefact):
        report.raise_if_failed()


def test_verify_finds_a_config_that_triton_would_refuse(copied: Path) -> None:
    (copied / "triton" / "stray").mkdir()
    report = verify_release(copied)
    assert [row.artefact for row in report.rows if not row.ok] == ["triton"]


def test_one_changed_byte_is_found(copied: Path) -> None:
    for file in (
        copied / "artefacts/ranking/model.onnx",
        array_file(copied, "source_towers/vectors"),
        copied / "triton/chain/config.pbtxt",
    ):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
        with pytest.raises(ArtefactCorrupt, match=file.name):
            verify_release(copied)
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
    verify_release(copied)


def test_a_missing_file_and_a_truncated_one_are_found(copied: Path) -> None:
    file = array_file(copied, "items/item_cat")
    (copied / "artefacts" / "golden" / "header.json").unlink()
    with pytest.raises(ArtefactMissing, match=r"header\.json"):
        verify_release(copied)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtefactCorrupt, match="item_cat"):
        Chain.open(copied)


def test_files_of_two_builds_do_not_mix(copied: Path, parts: Parts, tmp_path: Path) -> None:
    other = small_release(tmp_path / "other", parts)
    shutil.rmtree(copied / "artefacts" / "items")
    shutil.copytree(other.path / "artefacts" / "items", copied / "artefacts" / "items")
    with pytest.raises(BuildMismatch, match="items"):
        Chain.open(copied)


def test_newer_and_missing_releases(copied: Path, tmp_path: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(NewerFormat, match="99"):
        verify_release(copied)
    with pytest.raises(ReleaseMissing, match="no release here"):
        verify_release(tmp_path / "nowhere")


def test_modules_are_exported_in_evaluation_mode_and_left_alone(parts: Parts, tmp_path: Path) -> None:
    tower, ranker = copy.deepcopy(parts.user_tower).train(), copy.deepcopy(parts.ranker).train()
    retrieval = {"towers": Vectors(tower, parts.item_tower)}
    build_release(tmp_path / "r", **{**parts.arguments(), "retrieval": retrieval, "ranker": ranker})
    assert tower.training
    assert ranker.training
    assert open_release(tmp_path / "r").manifest.ranking.parameters > 0
