"""The feature benchmark: every part at tiny sizes, its output, and what it does without Merlin Systems."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("nvtabular")

from benchmarks.features import merlin_systems as peer_module
from benchmarks.features import served as served_module
from benchmarks.features.__main__ import app
from benchmarks.features.against import Against, Programs, check_same, tensors_of
from benchmarks.features.cases import CASES, make_case
from benchmarks.features.lookups import Flat, Gather, Hash
from benchmarks.features.merlin_systems import PACKAGES, STAMP, find_merlin_systems
from benchmarks.features.opening import Opening
from benchmarks.features.plan import FULL, QUICK
from benchmarks.features.plot import draw
from benchmarks.features.report import FeatureReport, format_features
from benchmarks.features.run import Serving, run_features
from benchmarks.features.served import MODELS, SERVED, Served, compare_answers, requests_of
from benchmarks.features.timing import Timed, interleave, span
from tiercel_export.workflow.cut import CompiledProgram
from tiercel_serving.bench import PythonClient, find_perf_analyzer
from tiercel_serving.bench.measurement import Measurement
from tiercel_serving.bench.perf_analyzer import default_cache
from tiercel_serving.bench.python_client import request_inputs
from tiercel_serving.errors import BenchError, PerfAnalyzerMissing


def tiercel(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="python -m benchmarks.features")


@pytest.mark.slow
@pytest.mark.parametrize("cases", [["three-small"], list(CASES)])
def test_quick_run_measures_everything_but_the_peer(tmp_path, cases):
    seen = []
    report = run_features(
        QUICK, cases=cases, progress=lambda what, done, total: seen.append(what), command="me"
    )
    assert [(figure.case, figure.batch) for figure in report.against] == [
        (case, batch) for case in cases for batch in QUICK.batches
    ]
    assert all(figure.program.us > 0 and figure.transform.us > 0 for figure in report.against)
    assert [figure.kind for figure in report.hashes] == ["integers", "strings", "packed strings"]
    assert [list(figure.sizes) for figure in report.flats] == [list(QUICK.flat)] * 3
    [gather], [opening] = report.gathers, report.openings
    assert gather.columns == 26
    assert opening.strings == QUICK.strings
    assert opening.size_bytes > QUICK.strings * len("user-1")
    assert report.missing == {"Merlin Systems": "left out, as asked"}
    assert report.ok, "no limit applies to a quick run"
    assert {"three-small: fitting", "lookups", "opening strings"} <= set(seen)

    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["command"] == "me"
    assert document["not_measured"] == report.missing
    assert all(figure["limit"] is None for figure in document["against"])
    text = format_features(report)
    assert "Not measured: Merlin Systems: left out, as asked" in text
    assert "FAIL" not in text
    assert "pass" not in text
    for suffix in ("png", "svg"):
        draw(report, tmp_path / f"plot.{suffix}")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "not measured" in (tmp_path / "plot.svg").read_text()


def test_command_saves_json_and_a_plot_beside_it(tmp_path):
    saved = tmp_path / "deep" / "features.json"
    done = tiercel("--quick", "--case", "three-small", "--part", "cases", "--json", "--save", str(saved))
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(saved.read_text(encoding="utf-8"))
    assert json.loads(done.stdout)["quick"] is True
    assert saved.with_suffix(".png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "features.gif"], "features.gif: expected a name that ends with .png or .svg"),
        (["--client", "curl"], "use perf_analyzer or python"),
        (["--case", "four"], "--case four: use three, three-small, movielens, criteo-int or criteo-text"),
        (["--part", "soup"], "--part soup: use cases, lookups, opening or served"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(arguments, message):
    done = tiercel(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr


# ------------------------------------------------------------------------------------- limits, in print


def timed(*us: float) -> Timed:
    return Timed(tuple(us))


def against(**more) -> Against:
    sides = {side: timed(100.0) for side in ("from_tensors", "from_frame")}
    return Against("three", 1, timed(9000.0, 8000.0, 7000.0), timed(80.0, 100.0, 70.0), **sides, **more)


def served(limit: float | None, ours: float = 400.0, own: float | None = None) -> Served:
    p50s = {"identity": 300.0, "tiercel": ours, "columns": 420.0, "workflow": 9000.0, "executor": 12000.0}
    p50s |= {} if own is None else {"own": own}
    rounds = {name: [Measurement(p50s[name], 1.0, 2.0, 3.0)] for name in MODELS if name in p50s}
    return Served("three", rounds, "2.51.0", limit, 50.0)


def test_ratios_are_of_medians_and_their_span_is_of_rounds():
    figure = against(limit=100.0)
    assert figure.ratio == 100.0
    assert figure.ok
    assert span(figure.transform, figure.program) == (80.0, 112.5)


@pytest.mark.parametrize(
    ("figure", "group", "words"),
    [
        (against(limit=101.0), "against", "at least 101 times: FAIL"),
        (against(limit=99.0, aim_us=79.0), "against", "at least 99 times: pass; at most 79 µs: FAIL"),
        (Gather(26, timed(10.0), timed(15.1), timed(30.0)), "gathers", "at most 1.5 times: FAIL"),
        (Hash("strings", 10, timed(100.0), timed(299.0)), "hashes", "at least 3 times: FAIL"),
        (Flat("strings", {10: timed(2.0), 100: timed(3.1)}), "flats", "at most 1.5 times: FAIL"),
        (Opening(10, 1000, 1.1, 1.0, 50, 1.0, 1), "openings", "at most 1 s: FAIL"),
        (Opening(10, 1000, 0.9, 1.0, 51, 1.0, 1), "openings", "at most 5%: FAIL"),
        (served(25.0), "served", "at least 25 times: FAIL"),
        (served(None, own=181.0), "served", "at least 50 times: FAIL"),
    ],
)
def test_a_missed_limit_is_printed_and_makes_the_report_fail(figure, group, words):
    report = FeatureReport({}, **{group: [figure]})
    assert words in format_features(report)
    assert not report.ok
    assert report.to_json()["ok"] is False


class Answers:
    """A Triton client whose models, by name, answer with one tensor each."""

    def __init__(self, answers):
        self.answers = answers

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass

    def get_model_metadata(self, model):
        if model not in self.answers:
            raise ValueError("unknown model")
        return SimpleNamespace(inputs=[], outputs=[SimpleNamespace(name="x")])

    def infer(self, model, inputs, client_timeout):
        return SimpleNamespace(as_numpy=lambda name: np.array(self.answers[model]))


@pytest.mark.parametrize("own", [None, 1.0, 3.0])
def test_answers_of_all_models_that_there_are_are_compared(own, monkeypatch):
    theirs, ours = float("nan"), 1.0
    answers = {model: ours if name in ("tiercel", "own") else theirs for name, model in MODELS.items()}
    answers[MODELS["own"]] = own
    models = {name: model for name, model in MODELS.items() if own is not None or name != "own"}
    client = Answers({model: answers[model] for model in models.values()})
    monkeypatch.setattr(served_module.triton_grpc, "InferenceServerClient", lambda url: client)
    if own == 3:
        with pytest.raises(BenchError, match=r"'own' answers x = 3.0, but 'tiercel' 1.0"):
            compare_answers("url", "three", models, [{}])
    else:
        compare_answers("url", "three", models, [{}])
    client.answers[MODELS["columns"]] = 2.0
    with pytest.raises(BenchError, match=r"'columns' answers x = 2.0, but 'workflow' nan"):
        compare_answers("url", "three", models, [{}])
    del client.answers[MODELS["executor"]]
    with pytest.raises(BenchError, match=r"model 'executor_model': a request failed: unknown model"):
        compare_answers("url", "three", models, [{}])


def test_served_without_a_limit_only_informs():
    figure = served(None)
    report = FeatureReport({}, served=[figure])
    assert report.ok
    assert "FAIL" not in format_features(report)
    assert figure.to_json()["ceiling"] == 30.0
    assert figure.to_json()["ratio"] == 22.5
    assert figure.to_json()["ratio_own"] is None
    assert served(22.0, own=180.0).to_json() == figure.to_json() | {
        "models": served(22.0, own=180.0).to_json()["models"],
        "limit": 22.0,
        "ratio_own": 50.0,
    }


def test_interleaving_takes_turns_and_gives_slow_sides_fewer_rounds(monkeypatch):
    taken = []
    sides = {name: [lambda name=name, i=i: taken.append((name, i)) for i in range(2)] for name in ("a", "b")}
    found = interleave(sides, rounds=2, seconds=0.0)
    # One warm-up call each, then rounds that cycle through the inputs.
    assert taken == [("a", 1), ("b", 1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert len(found["a"].rounds_us) == 2
    monkeypatch.setattr("benchmarks.features.timing._clock", lambda call: 2e6)
    assert len(interleave(sides, rounds=5, slow_rounds=1, seconds=0.0)["b"].rounds_us) == 1


# ------------------------------------------------------------------------------------------------ cases


def test_movielens_without_its_data_says_that_the_data_is_made_up(tmp_path, monkeypatch):
    monkeypatch.delenv("TIERCEL_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    case = make_case("movielens", QUICK, tmp_path)
    assert "MADE-UP" in case.says
    assert [compiled.part for compiled in case.compiled] == ["user", "item"]


@pytest.mark.slow
def test_rows_that_are_asked_one_by_one_are_not_null_and_later_ones_are_hard(tmp_path):
    case = make_case("criteo-text", replace(QUICK, pool=2000), tmp_path)
    texts = [f"C{i}" for i in range(1, 27)]
    assert case.rows.loc[: QUICK.singles - 1, texts].notna().all(axis=None)
    later = case.rows.loc[QUICK.singles :]
    for column in (*texts, "I1"):
        assert later[column].isna().any()
    assert later[texts].eq("unseen").any(axis=None)
    assert later["I1"].lt(0).any()


def test_a_program_that_differs_is_not_timed(tmp_path):
    case = make_case("three-small", QUICK, tmp_path)
    [compiled] = case.compiled
    programs = Programs(case, tmp_path)
    frame = programs.frame(case.rows.iloc[:5])
    check_same(case, programs, frame)
    means = [name for name in compiled.arrays if name.endswith(".mean")]
    assert means
    other = {**compiled.arrays, **{name: compiled.arrays[name] + 1 for name in means}}
    wrong = replace(case, compiled=(CompiledProgram(compiled.document, other),))
    with pytest.raises(BenchError, match=r"case three-small: .* differ on the rows to be timed \(price"):
        check_same(wrong, Programs(wrong, tmp_path), frame)


def test_requests_are_what_a_stage_is_sent(tmp_path):
    """The program gets equal columns from a request's tensors and from a frame."""
    case = make_case("movielens", QUICK, tmp_path)
    programs = Programs(case, tmp_path)
    [user, item] = programs.columns(programs.frame(case.rows.iloc[:7]))
    tensors = tensors_of(user | item, programs.inputs)
    assert tensors["age"].shape == (7, 1)
    assert tensors["genres"].shape[0] == 7
    assert tensors["genres__length"].dtype == np.int32
    again = programs.columns_of_tensors(tensors)
    expected, found = programs.run([user, item], 7), programs.run(again, 7)
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name].values, column.values)


# --------------------------------------------------------------------------------------- Merlin Systems


def test_requests_leave_nulls_out_and_say_their_shapes():
    rows = pd.DataFrame({"n": [1.5, np.nan, 2.5], "tags": [["a", "b"], ["c"], []]})
    first, second = requests_of(rows)
    assert first == {
        "n": {"content": [1.5], "shape": [1]},
        "tags__values": {"content": ["a", "b"], "shape": [2]},
        "tags__offsets": {"content": [0, 2], "shape": [2]},
    }
    assert second["tags__values"] == {"content": [], "shape": [0]}
    tensors = request_inputs(first, {"n": "FP64", "tags__values": "BYTES", "tags__offsets": "INT32"})
    assert [tensor.shape() for tensor in tensors] == [[1], [2], [2]]


def test_an_environment_that_can_not_be_built_is_a_figure_not_measured(tmp_path, monkeypatch):
    def fails(command, what, follow=None):
        raise BenchError(f"{what}: pip exited with 1, expected 0:\n  no network")

    monkeypatch.setattr(peer_module, "_run", fails)
    serving = Serving(PythonClient, tmp_path)
    report = run_features(QUICK, serving=serving, cases=("three-small",), parts=("served",))
    assert "no network" in report.missing["Merlin Systems"]
    assert not report.served
    assert "Not measured: Merlin Systems: environment of Merlin Systems 23.8.0 in" in format_features(report)


def test_a_missing_perf_analyzer_is_a_figure_not_measured(tmp_path):
    def missing():
        raise PerfAnalyzerMissing("no perf_analyzer here")

    report = run_features(QUICK, serving=Serving(missing, tmp_path), cases=(), parts=("served",))
    assert report.missing == {"Merlin Systems": "no perf_analyzer here"}


def test_an_interrupted_build_starts_again_and_a_whole_one_is_kept(tmp_path, monkeypatch):
    commands = []

    def run(command, what, follow=None):
        commands.append(command)
        folder = next(path for path in tmp_path.iterdir())
        folder.mkdir(exist_ok=True)
        for name in ("absl-py", "numpy") if follow else ():
            follow(f"Collecting {name}==1 (from -r packages.txt)")

    monkeypatch.setattr(peer_module, "_run", run)
    key = find_folder(tmp_path)
    key.mkdir(parents=True)
    (key / "left over").touch()
    monkeypatch.setattr(
        peer_module.shutil, "rmtree", lambda path, ignore_errors: (key / "left over").unlink()
    )
    seen = []
    first = find_merlin_systems(tmp_path, lambda done, total: seen.append((done, total)))
    total = len(PACKAGES.split())
    assert seen == [(0, total), (1, total), (2, total), (total, total)]
    assert not (key / "left over").exists()
    assert (first.folder / STAMP).is_file()
    built = len(commands)
    assert find_merlin_systems(tmp_path) == first
    assert len(commands) == built


def find_folder(cache: Path) -> Path:
    return peer_module.environment_folder(cache)


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_the_peer_is_built_served_and_answers_the_same():
    """Build Merlin Systems' environment from PyPI, as on a new machine, and ask a real Triton."""
    with tempfile.TemporaryDirectory() as cache:  # not tmp_path: pytest would keep its 0.8 GB
        serving = Serving(PythonClient, Path(cache), rounds=1, seconds=0.5)
        report = run_features(QUICK, serving=serving, cases=tuple(SERVED), parts=("served",))
    assert not report.missing
    assert [figure.case for figure in report.served] == list(SERVED)
    for figure in report.served:
        assert figure.p50_us("tiercel") < figure.p50_us("workflow") / 3


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_every_limit_is_kept():
    """Run everything at full size; needs an otherwise idle machine."""
    cache = default_cache().parent
    serving = Serving(lambda: find_perf_analyzer(cache / "perf_analyzer"), cache / "merlin-systems")
    report = run_features(FULL, serving=serving)
    assert not report.missing
    assert report.ok, format_features(report)
