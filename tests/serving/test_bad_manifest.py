"""Invalid manifests and unavailable kinds: each error says where, what, and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tiny_release import Tiny

from tiercel_serving.engines.table import ENGINES
from tiercel_serving.errors import KindUnavailable, ManifestInvalid, NewerFormat, OlderFormat, ReleaseError
from tiercel_serving.kinds import Kind
from tiercel_serving.release.manifest import Manifest, encode, read_manifest
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.rules.compare import Compare
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.sources.table import SOURCES
from tiercel_serving.stages.table import build_stage

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def write(plain: Tiny, tmp_path: Path) -> Callable[[Change], Path]:
    """Return a function that writes a changed copy of the release's manifest."""

    def changed(change: Change) -> Path:
        data = json.loads((plain.release.path / "manifest.json").read_text())
        change(data)
        (tmp_path / "manifest.json").write_text(json.dumps(data))
        return tmp_path

    return changed


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.pop("catalogue"), ManifestInvalid, "missing required field `catalogue`; it was changed"),
        (lambda m: m["catalogue"].pop("items"), ManifestInvalid, "field `items` - at `$.catalogue`"),
        (lambda m: m["catalogue"].update(users="7"), ManifestInvalid, "got `str` - at `$.catalogue.users`"),
        (lambda m: m.update(stages=[]), ManifestInvalid, "unknown field `stages`"),
        (lambda m: m["settings"].update(model="dlrm"), ManifestInvalid, "unknown field `model` - at `$.sett"),
        (lambda m: m["settings"].update(kept=13), ManifestInvalid, "settings.kept: 13 is more than are retr"),
        (
            lambda m: m["settings"]["sources"][0].update(kind="nearest"),
            ManifestInvalid,
            "there is no source 'nearest'; use 'index', 'item_weights'",
        ),
        (
            lambda m: m["settings"]["sources"].append("hot"),
            ManifestInvalid,
            "expected an object with the kind",
        ),
        (
            lambda m: m["settings"]["sources"][0].update(quota="many"),
            ManifestInvalid,
            "Expected `int | null`, got `str` - at `index.quota` - at `$.settings.sources[0]`",
        ),
        (
            lambda m: m["settings"]["sources"][0].update(model="x"),
            ManifestInvalid,
            "contains unknown field `model`",
        ),
        (
            lambda m: m["settings"].update(store={"kind": "paper"}),
            ManifestInvalid,
            "there is no store 'paper'; use 'memory_mapped', 'embedded', 'redis' - at `$.settings.store`",
        ),
        (
            lambda m: m["settings"]["rules"].append({"kind": "compare", "name": "r"}),
            ManifestInvalid,
            "missing required field `column` - at `$.settings.rules[0]`",
        ),
        (
            lambda m: m["queries"]["near"].update(engine="tvm"),
            ManifestInvalid,
            "near: there is no engine 'tvm'",
        ),
        (lambda m: m["ranking"].update(engine="tvm"), ManifestInvalid, "ranking: there is no engine 'tvm'"),
        (
            lambda m: m.update(format=4),
            NewerFormat,
            "manifest format 4, but this Tiercel reads format 3; upg",
        ),
        (lambda m: m.update(format=1), OlderFormat, "`tiercel export RUN --replace`"),
        (lambda m: m.update(format="3"), ManifestInvalid, "not a readable manifest"),
        (lambda m: m.clear(), ManifestInvalid, "missing required field `format`"),
    ],
)
def test_a_manifest_that_cannot_be(
    write: Callable[[Change], Path], change: Change, error: type[ReleaseError], message: str
) -> None:
    path = write(change)
    with pytest.raises(error) as caught:
        open_release(path)
    assert type(caught.value) is error
    assert str(path / "manifest.json") in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff"])
def test_a_manifest_that_is_none(text: bytes) -> None:
    with pytest.raises(ManifestInvalid, match=r"m\.json: not a readable manifest .*export again"):
        read_manifest(text, "m.json")


def test_an_old_manifest_says_the_command_before_it_is_read(tmp_path: Path) -> None:
    """A manifest of format 1 gets one message about its age, and none about its fields."""
    (tmp_path / "manifest.json").write_text('{"format": 1, "stages": [], "engines": {}}')
    with pytest.raises(OlderFormat, match=r"`tiercel export RUN --replace` .*`tiercel train` first"):
        open_release(tmp_path)


@pytest.mark.parametrize(
    "variant", ["plain", "quotas", "rules", "reordered", "no scale", "no ranker"], indirect=True
)
def test_the_manifest_survives_the_codec(tiny: Tiny) -> None:
    manifest = tiny.release.manifest
    read = read_manifest(encode(manifest), "m.json")
    assert read == manifest
    assert type(read) is Manifest
    assert encode(read) == encode(manifest)


def test_values_of_a_rule_travel_as_they_are(plain: Tiny) -> None:
    rules = (Compare("a", "label", "in", ("x", "ü")), Compare("b", "year", "!=", 2.5))
    settings = replace(plain.settings, rules=rules)
    read = read_manifest(encode(replace(plain.release.manifest, settings=settings)), "m.json")
    assert [list(read.settings.rules[0].value), read.settings.rules[1].value] == [["x", "ü"], 2.5]


# Unavailable kinds


def test_a_row_whose_module_does_not_import(
    write: Callable[[Change], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES.rows, "nearest", Kind("tiercel_serving.sources.nowhere:Nearest", "serving"))
    path = write(lambda m: m["settings"]["sources"][0].update(kind="nearest"))
    with pytest.raises(
        KindUnavailable,
        match=r"manifest.json: source 'nearest': its row says 'tiercel_serving.sources.nowhere:",
    ):
        open_release(path)


@pytest.mark.parametrize("path", ["tiercel_serving.sources.index:Nowhere", "acme.sources:Index"])
def test_a_row_that_names_nothing(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setitem(SOURCES.rows, "nearest", Kind(path))
    with pytest.raises(KindUnavailable, match=f"its row says '{path}', which can't be imported"):
        SOURCES.find("nearest")


def test_a_kind_that_is_in_no_table() -> None:
    with pytest.raises(KindUnavailable, match=r"Compare of tiercel_serving\.rules\.compare is in no row"):
        SOURCES.name_of(Compare("r", "c", "==", 1))


def test_a_source_whose_library_is_not_installed(plain: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the settings needs no library; only opening the source does."""
    for module in ("faiss", "tiercel_serving.sources.search"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "faiss", None)
    release = open_release(plain.release.path)
    build_stage("filtering", release)
    with pytest.raises(
        KindUnavailable, match=r"source 'index' needs faiss, .*pip install \"tiercel\[serving\]\""
    ):
        build_stage("retrieval", release)


def test_an_engine_whose_library_is_not_installed(plain: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tiercel_serving.engines.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        KindUnavailable, match=r"stage ranking: engine 'onnx' needs onnxruntime, .*\[serving\]"
    ):
        Chain.open(plain.release.path, ["ranking"])


def test_an_engine_whose_row_is_broken(plain: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES.rows, "tvm", Kind("tiercel_serving.engines.tvm:Tvm"))
    manifest = plain.release.manifest
    other = Release(plain.release.path, replace(manifest, ranking=replace(manifest.ranking, engine="tvm")))
    with pytest.raises(KindUnavailable, match="stage ranking: engine 'tvm': its row says"):
        build_stage("ranking", other)


def test_models_of_tensors_that_the_graph_lacks(plain: Tiny) -> None:
    other = Release(plain.release.path, replace(plain.release.manifest, queries={}))
    with pytest.raises(ManifestInvalid, match="stage retrieval: query_near are wanted, but this graph has"):
        Chain.open(other)
