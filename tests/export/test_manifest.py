"""The manifest: what is written can be read, and errors name the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bare_manifest import bare_manifest

from tiercel_serving.errors import ManifestInvalid, NewerFormat, OlderFormat, ReleaseError
from tiercel_serving.release.manifest import encode, read_manifest
from tiercel_serving.release.opened import Release, check_files, open_release
from tiercel_serving.release.writing import new_build_id, write_manifest


def test_what_is_written_is_read(release: Release) -> None:
    text = encode(release.manifest)
    assert read_manifest(text, "manifest.json") == release.manifest
    assert (release.path / "manifest.json").read_bytes() == text


def test_manifest_lists_every_file(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.bin").write_bytes(b"123")
    write_manifest(tmp_path, bare_manifest("x"))
    opened = open_release(tmp_path)
    assert opened.build_id == "x"
    assert {name: file.bytes for name, file in opened.manifest.files.items()} == {"a/b/c.bin": 3}
    check_files(opened)


def test_build_ids_are_unlike_each_other() -> None:
    assert len({new_build_id() for _ in range(100)}) == 100


Edit = Callable[[dict[str, Any]], Any]


def put(*path: Any) -> Edit:
    """Return an edit that sets a value: ``path`` is keys down to the field, then the value."""

    def edit(document: dict[str, Any]) -> None:
        *way, last, value = path
        place: Any = document
        for step in way:
            place = place[step]
        place[last] = value

    return edit


BAD: dict[str, tuple[Edit, type[ReleaseError], str]] = {
    "unknown source": (
        put("settings", "sources", 0, "kind", "graph"),
        ManifestInvalid,
        r"there is no source 'graph'; use 'index', 'item_weights', .*'popular'.*\$\.settings\.sources\[0\]",
    ),
    "unknown rule": (put("settings", "rules", 0, "kind", "regex"), ManifestInvalid, "no rule 'regex'"),
    "unknown step": (
        put("settings", "reorder", 0, "kind", "magic"),
        ManifestInvalid,
        "no reorder step 'magic'",
    ),
    "unknown store": (put("settings", "store", {"kind": "sql"}), ManifestInvalid, "no store 'sql'"),
    "unknown engine": (
        put("ranking", "engine", "abacus"),
        ManifestInvalid,
        r"ranking: there is no engine 'abacus' \(there are onnx",
    ),
    "source of no kind": (put("settings", "sources", 0, 3), ManifestInvalid, "with the kind of a source"),
    "missing field": (
        lambda document: document["catalogue"].pop("items"),
        ManifestInvalid,
        r"missing required field `items` - at `\$\.catalogue`",
    ),
    "missing field of a kind": (
        lambda document: document["settings"]["sources"][0].pop("name"),
        ManifestInvalid,
        "missing required field `name`",
    ),
    "mistyped field": (
        put("catalogue", "users", "many"),
        ManifestInvalid,
        r"Expected `int`, got `str` - at `\$\.catalogue\.users`",
    ),
    "mistyped dtype": (
        put("request_columns", 0, "dtype", "float16"),
        ManifestInvalid,
        r"Invalid enum value 'float16' - at `\$\.request_columns\[0\]\.dtype`",
    ),
    "unknown field": (put("colour", "red"), ManifestInvalid, "unknown field `colour`"),
    "unknown field of a kind": (
        put("settings", "sources", 0, "fanout", 3),
        ManifestInvalid,
        "unknown field `fanout`",
    ),
    "settings that contradict themselves": (
        put("settings", "kept", 25),
        ManifestInvalid,
        r"settings\.kept: 25 is more than are retrieved",
    ),
    "newer format": (put("format", 99), NewerFormat, "format 99, but this Tiercel reads format 3; upgrade"),
    "older format": (
        put("format", 1),
        OlderFormat,
        "format 1, but this Tiercel reads format 3; make the release anew with `tiercel export RUN",
    ),
    "no format": (
        lambda document: document.pop("format"),
        ManifestInvalid,
        "missing required field `format`",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_manifest_is_refused_by_the_field(case: str, release: Release, tmp_path: Path) -> None:
    edit, error, words = BAD[case]
    document = json.loads(encode(release.manifest))
    edit(document)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(document))
    with pytest.raises(error, match=words) as raised:
        open_release(tmp_path)
    assert str(raised.value).startswith(f"{file}: ")


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 2, ')
    with pytest.raises(ManifestInvalid, match="not a readable manifest"):
        open_release(tmp_path)


def test_a_release_of_format_1_is_refused_with_the_command(tmp_path: Path) -> None:
    """An older release has a dict with other keys; nothing is read beyond its format."""
    old = {"format": 1, "build_id": "b", "created": "2025", "engines": {}, "stages": [], "index": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    with pytest.raises(OlderFormat, match="`tiercel export RUN --replace`"):
        open_release(tmp_path)
