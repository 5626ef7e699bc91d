"""The benchmark of training: its tiny form, and its report of limits."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.training_scale.command import misses
from benchmarks.training_scale.made import make
from benchmarks.training_scale.one import measure
from benchmarks.training_scale.whole import main


@pytest.mark.slow
def test_tiny_is_trained_and_measured() -> None:
    said: list[str] = []
    measure("tiny", 1, say=said.append)
    found = json.loads(said[0])
    assert found["epochs"] == {"two_tower": 1, "ranking": 1}
    assert 0 < found["dataset_bytes"] <= found["peak_bytes"]
    assert found["train_s"] > 0
    assert "ranking" in found["peaks_bytes"]


def test_limits_are_told_apart() -> None:
    one, ten = {"train_s": 60, "peak_bytes": 10**9}, {"train_s": 600, "peak_bytes": 12 * 10**8}
    assert misses({"1x": one, "10x": ten}, whole=True) == []
    told = misses({"1x": {**one, "train_s": 1000, "peak_bytes": 4 * 10**9}}, whole=True)
    assert [line.split(", ")[0] for line in told] == ["1x: trained in 1000 s", "1x: 4.00 GB"]
    assert misses({"1x": {**one, "train_s": 1000}}, whole=False) == []
    [told_times] = misses({"1x": one, "10x": {**ten, "peak_bytes": 14 * 10**8}}, whole=True)
    assert told_times.startswith("10x: 1.40 times the memory")


@pytest.mark.slow
def test_the_whole_way_is_gone_and_goes_on_where_it_was_left(tmp_path: Path) -> None:
    make("tiny", tmp_path / "data")
    main(tmp_path, ["train", "export"])
    main(tmp_path, ["verify", "score"])
    kept = json.loads((tmp_path / "whole.json").read_text(encoding="utf-8"))
    assert list(kept) == ["train", "export", "verify", "score"]
    for taken in kept.values():
        assert taken["cpu_s"] > 0
        # The kernel updates its count of pages in batches.
        assert 0 < max(taken["peaks_bytes"].values()) <= 1.01 * taken["peak_bytes"]
    # It samples 50 times a second, so it may miss some steps as short as these.
    steps = set(kept["train"]["peaks_bytes"])
    assert {"packing", "figures"} <= steps
    assert any(step.endswith(" of 4") for step in steps)
    assert pq.read_metadata(tmp_path / "lists.parquet").num_rows == 60
