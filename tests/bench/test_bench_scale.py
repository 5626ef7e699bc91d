"""The scale benchmark: the generator, its tiny form end to end, and its report of limits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("nvtabular")

from benchmarks.scale.__main__ import app
from benchmarks.scale.made_up import RULES, heavy_users, make_up
from benchmarks.scale.report import Figure, Measured, ScaleReport, format_scale
from benchmarks.scale.searching import Searched
from benchmarks.scale.sizes import SIZES

TINY = SIZES["tiny"]


def scale(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="python -m benchmarks.scale")


@pytest.mark.parametrize("text_ids", [False, True])
def test_the_same_seed_makes_the_same_data_up(text_ids):
    one, again = (make_up(TINY, text_ids=text_ids) for _ in range(2))
    for name in ("items", "users", "interactions"):
        assert getattr(one, name).equals(getattr(again, name))
    assert (len(one.items), len(one.users)) == (TINY.items, TINY.users)
    assert len(one.interactions) == pytest.approx(TINY.events, rel=0.05)
    assert isinstance(one.items["item_id"][0], str) is text_ids
    np.testing.assert_allclose(np.linalg.norm(one.vectors, axis=1), 1, rtol=1e-5)
    had = one.interactions.groupby("user_id")["item_id"].nunique()
    heavy = one.users["user_id"][heavy_users(TINY)]
    assert had[heavy].min() >= TINY.heavy_events
    assert len(had) == TINY.users
    for share, most in RULES.items():
        assert np.mean(one.items["lot"] < most) == float(share.rstrip("%")) / 100


@pytest.mark.slow
def test_tiny_runs_from_end_to_end_and_saves_json_and_a_plot(tmp_path):
    saved = tmp_path / "deep" / "scale.json"
    done = scale("--size", "tiny", "--text-ids", "--json", "--save", str(saved))
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads(saved.read_text(encoding="utf-8"))
    assert saved.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    [tiny] = document["sizes"].values()
    assert tiny["export"]["seconds"] > 0
    assert tiny["release_bytes"] > tiny["opening"]["private_bytes"] / 10
    searches = tiny["searches"]
    assert {found["index"] for found in searches} == set(TINY.indexes)
    assert len(searches) == len(TINY.indexes) * (4 + len(RULES))
    assert min(found["recall"] for found in searches) >= 0.99
    assert all(0 < us < 1e6 for us in tiny["served"].values())
    assert document["figures"] == [], "too small for any limit"


def test_wrong_sizes_are_refused():
    done = scale("--size", "S9")
    assert done.exit_code == 2
    assert "--size S9: use tiny, S0, S1 or S2" in done.stderr


def measured(size: str, **answers: float) -> Measured:
    spent = {
        "one": 1000.0,
        "batch": 400.0,
        "heavy": 500.0,
        "batch_retrieval": 200.0,
        "heavy_retrieval": 310.0,
    }
    searches = (
        Searched("Flat", "none", 1.0, 900.0, 900.0, 900.0),
        Searched("IVF", "none", 0.995, 100.0, 900.0, 100.0),
        Searched("IVF", "5,000 best excluded", 0.98, 1100.0, 900.0, 100.0),
        Searched("SQ4", "none", refused="too coarse"),
    )
    export = {"seconds": 10.0, "peak_bytes": 5e9}
    opening = {"seconds": 1.0, "private_bytes": 20e6}
    served = {"one": answers.get("one", 1000.0) + 400, "excluded": 4000.0}
    spent |= answers
    return Measured(size, "IVF", 100_000_000, export, opening, spent, served, True, {}, searches)


def test_limits_are_printed_as_ok_or_missed():
    report = ScaleReport({}, {"S0": measured("S0"), "S2": measured("S2", one=1600.0)})
    figures = {figure.what: figure for figure in report.figures()}
    missed = {what for what, figure in figures.items() if not figure.ok}
    assert missed == {
        "S2 IVF / S0 IVF: an answer to one user",
        "S0: ms that excluded ids add to a served answer",
        "S2: GB of an export beyond the frames",
        "S2: private memory of an instance / release",
        *(f"{size}: retrieval of a batch with a heavy user / without" for size in ("S0", "S2")),
        *(f"{size} IVF, 5,000 best excluded: recall" for size in ("S0", "S2")),
        "S2 IVF, 5,000 best excluded: search / scan",
        "S2 IVF, 5,000 best excluded: search / unmasked",
    }
    assert not report.ok
    text = format_scale(report)
    assert "MISSED" in text
    assert "refused" in text


def test_a_figure_may_be_bounded_from_below():
    assert Figure("recall", 0.99, 0.99, least=True).ok
    assert not Figure("recall", 0.98, 0.99, least=True).ok
    assert Figure("ratio", 1.2, 1.2).row()[-1] == "ok"
