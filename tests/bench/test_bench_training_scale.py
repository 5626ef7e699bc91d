"""The benchmark of what a training takes: its tiny form, and what it says of limits."""

from __future__ import annotations

import json

import pytest

from benchmarks.training_scale.command import misses
from benchmarks.training_scale.one import measure


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
