"""Growth of times with batches, index types and sizes, and the plots of other results."""

import copy
import json
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from tiercel_serving.bench import growth
from tiercel_serving.bench.compare import read_any
from tiercel_serving.bench.html_report import html_report
from tiercel_serving.bench.repository import known_user_ids, write_bench_repository
from tiercel_serving.commands.bench import read_others
from tiercel_serving.commands.shell import Refused
from tiercel_serving.errors import BenchError
from tiercel_serving.runtime.chain import Chain


@pytest.fixture
def result():
    measured = {"p50_us": 100.0, "p99_us": 200.0, "throughput": 9000.0}
    return {
        "served": {"1": {"fused": measured}},
        "bare": {"stages_us": {"retrieval": 30.0}, "between_stages_us": 4.0, "p50_us": 34.0},
        "machine": {"cpu": "a", "cores": 2},
        "release": {"name": "r", "items": 1000, "users": 20, "candidates": 200, "kept": 100},
    }


SCALE = {
    "machine": {"cpu": "a", "cores": 2},
    "sizes": {
        "S1": {"items": 10_000, "answers": {"one": 900.0, "batch": 300.0}, "searches": []},
        "S0": {
            "items": 1000,
            "answers": {"one": 700.0, "batch": 200.0},
            "searches": [
                {"index": "Flat", "mask": "none", "recall": 1.0, "us": 50.0, "refused": ""},
                {"index": "HNSW32", "mask": "none", "recall": 0.9, "us": 20.0, "refused": ""},
                {"index": "IVF9", "mask": "none", "recall": 0.0, "us": 0.0, "refused": "too few"},
                {"index": "Flat", "mask": "500 seen", "recall": 1.0, "us": 60.0, "refused": ""},
            ],
        },
    },
}


def test_batches_and_indexes_of_a_release(tiny_release):
    pipeline = Chain.open(tiny_release)
    grown = growth.measure_growth(tiny_release, pipeline, known_user_ids(tiny_release, 5), 0.001)
    most = tiny_release.settings.max_batch_size
    assert list(grown.batches) == [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= most]
    assert min(grown.batches.values()) > 0
    assert grown.batches[1] > grown.batches[max(grown.batches)]  # batching pays off
    # With few vectors there is only the exact index.
    assert grown.indexes
    assert {one.index for found in grown.indexes.values() for one in found} == {"Flat"}


def test_accuracy_is_bought_with_a_search_parameter():
    draw = np.random.default_rng(0)
    vectors, queries = (draw.standard_normal((n, 8), np.float32) for n in (2600, 4))
    release = SimpleNamespace(settings=SimpleNamespace(candidates=20))
    found = list(growth._search(vectors, queries, release))
    assert (found[0].index, found[0].recall) == ("Flat", 1.0)
    for factory, (parameter, values) in growth.SWEEPS.items():
        of_this = [one for one in found if one.index == factory]
        assert [one.setting for one in of_this] == [f"{parameter}={value}" for value in values]
        assert of_this[0].recall < of_this[-1].recall <= 1.0
        assert all(one.us > 0 for one in found)


def test_the_page_has_a_plot_for_each_thing_that_grows(result, tmp_path):
    page = html_report(result)
    assert "Growth" not in page
    found = [growth.Searched("Flat", "", 1.0, 90.0), growth.Searched("HNSW32", "efSearch=8", 0.8, 9.0)]
    result["growth"] = growth.Growth({1: 900.0, 2: 500.0}, {"tower": found}).to_json()
    other = copy.deepcopy(result)
    other["release"] |= {"items": 50_000, "users": 900}
    before = page.count("<svg")
    page = html_report(json.loads(json.dumps(result)), [other, SCALE])
    # Batch, one source, items and users (N and K are equal); answers at scale, and an index there.
    assert page.count("<svg") == before + 6
    for said in (
        "source tower",
        "Growth with items",
        "differ in items, users",
        "Scale: answers",
        "1,000 items",
    ):
        assert said in page
    assert "candidates that are" not in page
    assert ElementTree.fromstring(page.removeprefix("<!doctype html>")).find("body") is not None
    assert "http" not in page


def test_other_results_are_read_before_anything_is_measured(result, tmp_path):
    files = [tmp_path / "bench.json", tmp_path / "scale.json"]
    for file, document in zip(files, (result, SCALE), strict=True):
        file.write_text(json.dumps(document))
    assert read_others(files, tmp_path / "page.html") == [result, SCALE]
    with pytest.raises(Refused, match="name one"):
        read_others(files, None)
    files[0].write_text("{}")
    with pytest.raises(BenchError, match="wrote, but it lacks machine"):
        read_any(files[0])


def test_every_model_gets_as_many_instances_as_are_asked_for(tiny_release, tmp_path):
    write_bench_repository(tiny_release, tmp_path, "python", 3)
    configs = [file.read_text() for file in tmp_path.glob("*/config.pbtxt")]
    counted = [text for text in configs if "instance_group" in text]
    assert len(counted) > 10
    assert all("count: 3" in text for text in counted)
