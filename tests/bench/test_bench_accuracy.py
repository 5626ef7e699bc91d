"""The accuracy benchmark: its tiny form end to end, continuing, and its report of missed limits."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.accuracy.__main__ import app
from benchmarks.accuracy.cell import seconds
from benchmarks.accuracy.contenders import COMPARISONS
from benchmarks.accuracy.plot import draw, pictures
from benchmarks.accuracy.report import misses, spread
from benchmarks.accuracy.run import cells_of
from benchmarks.accuracy.sampled import Bench, whole_lists
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.families.table import Course
from tiercel_pipelines.offline.scored import SampledMetrics
from tiercel_pipelines.recipe import FM


def test_every_recipe_has_nothing_wrong_with_it() -> None:
    for name, comparison in COMPARISONS.items():
        assert set(comparison.wanted) <= set(comparison.contenders)
        for cell in cells_of([name], None, 1):
            assert cell.recipe.problems() == [], (name, cell.family)


def fake(ndcg: float = 0.5) -> dict[str, Any]:
    """Return the contents of a measured cell."""
    figures = {"ndcg": ndcg, "recall": 0.2, "coverage": 0.5, "users": 60}
    beyond = {"novelty": 2.0}
    return {
        "figures": dict.fromkeys(("popularity", "ranking"), figures),
        "beyond": dict.fromkeys(("popularity", "ranking"), beyond),
        "recall": [0.1, 0.2],
        "curves": {"als": [0.0, 0.1]},
        **{"train_cpu_s": 1.0, "p50_us": 500.0, "bytes": 10**6, "answered": "in process"},
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
    assert asked[1:] == [("als", 42), ("als", 43)]
    assert json.loads(done.stdout)["cells"] == json.loads(saved.read_text(encoding="utf-8"))["cells"]
    assert "| ease | any | 0.5000 | 0.2000 |" in docs.read_text(encoding="utf-8")
    assert "| als | 2 | 0.5000 ± 0.0000 | 0.2000 ± 0.0000 |" in docs.read_text(encoding="utf-8")
    # Other settings are another cell.
    kept = json.loads(saved.read_text(encoding="utf-8"))
    kept["cells"][0]["recipe"]["recipe"]["split"]["train"] = 0.5
    saved.write_text(json.dumps(kept), encoding="utf-8")
    assert CliRunner().invoke(app, [*told, "--seeds", "2"]).exit_code == 0
    assert asked[3:] == [("als", 42)]


def test_the_pictures_hold_what_was_measured(tmp_path: Path) -> None:
    """Learning curve and recall of each family's first seed, and accuracy by latency of all seeds."""
    from matplotlib import pyplot

    def cell(family: str, seed: int, **measured: Any) -> dict[str, Any]:
        return {**fake(), "data": "tiny", "family": family, "seed": seed, **measured}

    ease = cell("ease", 42, curves={}, recall=[0.3, 0.4, 0.5], p50_us=2500.0)
    document = {"cells": [cell("als", 42), cell("als", 43, p50_us=1500.0), ease]}
    figure = pictures(document)
    drawn = [
        {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in picture.lines}
        for picture in figure.axes
    ]
    assert drawn[0] == {"als: als": ([0, 1], [0.0, 0.1])}
    assert drawn[1] == {"als": ([1, 2], [0.1, 0.2]), "ease": ([1, 2, 3], [0.3, 0.4, 0.5])}
    points = {text.get_text(): text.xy for text in figure.axes[2].texts}
    assert points == {"als": (1.0, 0.5), "ease": (2.5, 0.5)}
    assert sorted((x[0], y[0]) for x, y in drawn[2].values()) == sorted(points.values())
    pyplot.close(figure)
    file = tmp_path / "new" / "pictures.svg"
    draw(document, file)
    text = file.read_text(encoding="utf-8")
    for said in ("epoch", "validation nDCG@10", "recall at k", "p50 of one answer, ms", "als: als", ">ease<"):
        assert said in text


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


def test_rankers_are_compared_by_what_they_lift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, docs, asked = tmp_path / "accuracy.json", tmp_path / "accuracy.md", []

    class Trained:
        def measure(self, ranker: Any) -> dict[str, Any]:
            asked.append(type(ranker).__name__)
            before = {"ndcg": 0.4, "recall": 0.2, "coverage": 0.3}
            after = {**before, "ndcg": 0.41 if isinstance(ranker, FM) else 0.39}
            return {"before": before, "after": after, "best_epoch": 1, "validation": [], "train_cpu_s": 2.0}

    monkeypatch.setattr("benchmarks.accuracy.ranking.Ready.of", lambda recipe, dataset: Trained())
    monkeypatch.setattr("benchmarks.accuracy.ranking.load_dataset", lambda spec, data_dir: object())
    told = ["--ranking", "ease", "--family", "fm", "--seeds", "1", "--json", "--save", str(saved)]
    assert CliRunner().invoke(app, told).exit_code == 0
    done = CliRunner().invoke(app, [*told, "--family", "mlp", "--docs", str(docs)])
    assert done.exit_code == 0, done.stderr
    assert asked == ["FM", "MLP"]
    text = docs.read_text(encoding="utf-8")
    assert "| fm | 1 | 0.4100 | +0.0100 | 0.2000 | 0.30 | 2 |" in text
    assert text.index("| fm |") < text.index("| mlp | 1 | 0.3900 | -0.0100 |")
    assert CliRunner().invoke(app, [*told, "--sampled"]).exit_code == 2
    assert CliRunner().invoke(app, ["--ranking", "eaze"]).exit_code == 2


def test_settings_of_the_1_plus_99_protocol_are_chosen_on_the_validation_part() -> None:
    chosen, epochs = [], []

    class Family(NamedTuple):
        quality: float
        name: str = "tried"

        def fit(self, data: Any, plan: Any) -> tuple[Any, Any]:
            epochs.append(plan.epochs)
            return self, Course(2, validation=(0.0, 0.1, self.quality))

    class Judge:
        def figures(self, fitted: Any) -> SampledMetrics:
            chosen.append(fitted.quality)
            return SampledMetrics(10, 1, 99, 0.5, 0.3, 0.2, 0.8)

    pairs = Pairs.build(np.array([0, 0]), np.array([1, 2]), np.array([0, 0]), np.ones(2), 1)
    trainer = SimpleNamespace(pairs=pairs, folds=np.array([1, 0]), packed=None, inputs=None)
    bench: Any = Bench(trainer, Judge(), Judge())  # type: ignore[arg-type]
    found = bench.measure([Family(0.3), Family(0.5), Family(0.4)], seed=1)
    assert (chosen, epochs) == ([0.5], [None, None, None, 2])
    assert found["figures"]["ndcg"] == 0.3


def test_lists_over_the_catalogue_hold_each_positive_once_and_no_other_that_a_user_had() -> None:
    rng = np.random.default_rng(0)
    had = [rng.permutation(60)[:count] for count in (45, 3, 0)]
    users = np.repeat(np.arange(3), [len(one) for one in had])
    pairs = Pairs.build(users, np.concatenate(had), users, np.ones(len(users)), 3)
    lists = whole_lists(pairs, 60)
    assert lists.users.tolist() == [0, 0, 0, 1]
    assert (lists.rows[:, 0] == 60).all()
    positive = lists.weights > 0
    assert sorted(lists.rows[:3][positive[:3]]) == sorted(had[0])
    assert set(lists.rows[3][positive[3]]) == set(had[1])
    for user, rows, mine in zip(lists.users, lists.rows, positive, strict=True):
        assert not set(rows[~mine]) & set(had[user])
        assert set(range(60)) - set(had[user]) <= set(rows)


def test_seconds_are_the_processors_or_in_brackets_wall_time() -> None:
    assert seconds([{"train_s": 90.0}, {"train_cpu_s": 10.0}, {"train_cpu_s": 20.0}]) == "15"
    assert seconds([{"train_s": 90.0}, {"train_s": 30.0}]) == "(60)"
