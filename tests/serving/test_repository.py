"""The Triton repository of every variant of a recommender, in both layouts, checked by Triton's own rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_release import COLUMNS, Tiny

from tiercel_serving.repository.graph import client_parameters, render_repository
from tiercel_serving.repository.validate import read_repository, validate_repository


def rendered(tiny: Tiny, path: Path, layout: str) -> dict[str, Any]:
    render_repository(tiny.release, path, layout)
    validate_repository(path)
    return read_repository(path, [])


@pytest.mark.parametrize("layout", ["fused", "staged"])
def test_triton_would_serve_it(tiny: Tiny, tmp_path: Path, layout: str) -> None:
    configs = rendered(tiny, tmp_path, layout)
    stages = [name for name in tiny.release.stages if name != "describe_items"]
    models = ["chain"] if layout == "fused" else stages
    assert set(configs) == {*models, "describe_items", "recommend", "recommend_explain"}
    explain = {output.name for output in configs["recommend_explain"].output}
    assert {f"time_us_{name}" for name in stages} <= explain
    manifest = tiny.release.manifest
    assert ("rank_score" in explain) == (manifest.ranking is not None)
    assert ("history_row" in explain) == (manifest.settings.history_length > 0)
    assert ("reorder_reason" in explain) == any(step.reasons for step in manifest.settings.reorder)
    assert not {name for name in explain if name.startswith("user_row")}


@pytest.mark.parametrize("variant", ["plain"], indirect=True)
def test_what_the_ensembles_tell_their_clients(tiny: Tiny, tmp_path: Path) -> None:
    configs = rendered(tiny, tmp_path, "fused")
    told = {key: value.string_value for key, value in configs["recommend"].parameters.items()}
    assert told == client_parameters(tiny.release)
    assert json.loads(told["request_columns"]) == [
        {name: getattr(column, name) for name in column.__struct_fields__ if name != "of_rules"}
        for column in COLUMNS
    ]
    assert json.loads(told["stages"])[:3] == ["user_features", "query_near", "retrieval"]
    assert json.loads(told["reorder_reasons"]) == []
    inputs = {tensor.name: tensor for tensor in configs["recommend"].input}
    for column in COLUMNS:
        assert list(inputs[column.tensor].dims) == [-1 if column.is_list else 1]
        assert column.companion is None or list(inputs[column.companion].dims) == [1]


@pytest.mark.parametrize("variant", ["reordered"], indirect=True)
def test_reasons_of_steps_are_numbered_through(tiny: Tiny) -> None:
    reasons = json.loads(client_parameters(tiny.release)["reorder_reasons"])
    assert reasons == ["its year is even", "nobody knows its year"] * 2
