"""The accuracy benchmark: its tiny form from end to end, going on, and what it says of misses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.accuracy.__main__ import app
from benchmarks.accuracy.contenders import COMPARISONS
from benchmarks.accuracy.report import misses, spread
from benchmarks.accuracy.run import cells_of


def test_every_recipe_has_nothing_wrong_with_it() -> None:
    for name, comparison in COMPARISONS.items():
        assert set(comparison.wanted) <= set(comparison.contenders)
        for cell in cells_of([name], None, 1):
            assert cell.recipe.problems() == [], (name, cell.family)


def fake(ndcg: float = 0.5) -> dict[str, Any]:
    """What a measured cell holds."""
    figures = {"ndcg": ndcg, "recall": 0.2, "coverage": 0.5, "users": 60}
    beyond = {"novelty": 2.0}
    return {
        "figures": dict.fromkeys(("popularity", "ranking"), figures),
        "beyond": dict.fromkeys(("popularity", "ranking"), beyond),
        "recall": [0.1, 0.2],
        "curves": {"als": [0.0, 0.1]},
        **{"train_s": 1.0, "export_s": 1.0, "p50_us": 500.0, "bytes": 10**6, "answered": "in process"},
    }


@pytest.mark.slow
def test_tiny_is_trained_exported_and_judged(tmp_path: Path) -> None:
    saved = tmp_path / "accuracy.json"
    told = ["--data", "tiny", "--json", "--save", str(saved), "--seeds", "1"]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 0, done.stderr
    cells = json.loads(saved.read_text(encoding="utf-8"))["cells"]
    assert [(cell["family"], cell["seed"]) for cell in cells] == [("als", 42), ("ease", 42)]
    for cell in cells:
        assert set(fake()) <= set(cell)
        assert len(cell["recall"]) == 50
        assert 0 < cell["figures"]["ranking"]["ndcg"] < 1
    assert saved.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, docs, asked = tmp_path / "accuracy.json", tmp_path / "accuracy.md", []

    def measured(recipe: Any, dataset: Any, **how: Any) -> dict[str, Any]:
        asked.append((recipe.models[0].name, recipe.seed))
        return fake()

    monkeypatch.setattr("benchmarks.accuracy.run.measure", measured)
    monkeypatch.setattr("benchmarks.accuracy.plot.draw", lambda document, file: None)
    told = ["--data", "tiny", "--json", "--save", str(saved)]
    done = CliRunner().invoke(app, [*told, "--family", "ease", "--seeds", "1"])
    assert done.exit_code == 0, done.stderr
    assert asked == [("ease", 42)]
    done = CliRunner().invoke(app, [*told, "--seeds", "2", "--docs", str(docs)])
    assert done.exit_code == 0, done.stderr
    assert asked[1:] == [("ease", 43), ("als", 42), ("als", 43)]
    assert json.loads(done.stdout)["cells"] == json.loads(saved.read_text(encoding="utf-8"))["cells"]
    assert "| ease | 2 | 0.5000 ± 0.0000 | 0.2000 ± 0.0000 |" in docs.read_text(encoding="utf-8")
    # Other settings are another cell.
    kept = json.loads(saved.read_text(encoding="utf-8"))
    kept["cells"][0]["recipe"]["recipe"]["split"]["train"] = 0.5
    saved.write_text(json.dumps(kept), encoding="utf-8")
    assert CliRunner().invoke(app, [*told, "--seeds", "2"]).exit_code == 0
    assert asked[4:] == [("als", 42)]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"cells": [{"a": 1}]}', encoding="utf-8")
    done = CliRunner().invoke(app, ["--data", "tiny", "--save", str(other)])
    assert done.exit_code == 2
    assert "expected what this command saved before" in done.stderr
    assert CliRunner().invoke(app, ["--family", "eaze"]).exit_code == 2


def test_means_spreads_and_misses() -> None:
    def cell(seed: int, ndcg: float) -> dict[str, Any]:
        return {"data": "ml-100k", "family": "ease", "seed": seed, "figures": {"ranking": {"ndcg": ndcg}}}

    assert spread([0.5]) == "0.5000"
    assert spread([0.5, 0.7]) == "0.6000 ± 0.1414"
    assert misses({"cells": [cell(42, 0.49), cell(43, 0.48)]}, ["ml-100k"]) == []
    [told] = misses({"cells": [cell(42, 0.47), cell(43, 0.48)]}, ["ml-100k"])
    assert told == "ml-100k, ease: nDCG@10 0.4750, wanted at least 0.48"
