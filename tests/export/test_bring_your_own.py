"""The example of docs/bring-your-own.md runs, and its recommendations match its data."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tiercel_serving.release.manifest import Manifest
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.verify.checks import verify_release

DOCS = Path(__file__).parents[2] / "docs"


def test_example_runs_and_recommends_the_readers_genre(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("bring_your_own", DOCS / "examples" / "bring_your_own.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bring_your_own", example)
    spec.loader.exec_module(example)
    release = example.main(tmp_path / "books")
    said = capsys.readouterr().out
    assert "checks passed" in said
    assert "reader 7: 978-" in said
    assert verify_release(release).ok

    readers, books, loans = example.make_tables()
    ids = readers["reader"].to_numpy()[:, None]
    out, _ = Chain.open(release).run({"user_id": ids})
    genre = books.set_index("isbn")["genre"]
    mine = np.array(["crime", "poetry", "travel", "history"])[(ids[:, 0] - 1) % 4]
    got = np.array([[genre[isbn.decode()] for isbn in row] for row in out["item_id"]])
    assert (got == mine[:, None]).mean() > 0.8
    seen = loans.groupby("reader")["isbn"].apply(set)
    for reader, row in zip(ids[:, 0], out["item_id"], strict=True):
        assert not {isbn.decode() for isbn in row} & seen[reader]
    assert (
        books.set_index("isbn").loc[[isbn.decode() for isbn in out["item_id"].reshape(-1)], "in_print"].all()
    )


def test_the_pages_name_what_exists() -> None:
    """Every argument that the page explains exists in ``build_release``."""
    import inspect

    from tiercel_export import build_release

    page = (DOCS / "bring-your-own.md").read_text()
    arguments = set(inspect.signature(build_release).parameters)
    explained = set(re.findall(r"^\| `(\w+)`", page, re.M))
    assert explained
    assert explained <= arguments
    assert arguments <= explained


def test_release_page_lists_the_manifest_keys() -> None:
    page = (DOCS / "release.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)`", page.split("## The manifest")[1].split("\n## ")[0], re.M))
    assert listed == set(Manifest.__struct_fields__)
