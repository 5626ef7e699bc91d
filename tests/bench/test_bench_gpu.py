"""The GPU benchmark on the CPU: its tiny form, and that it imports where no release can be exported."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.gpu.__main__ import app
from benchmarks.gpu.command import measure
from benchmarks.gpu.report import ALL_FORMS, SIZES

ROOT = Path(__file__).resolve().parents[2]


def test_it_imports_nothing_that_a_gpu_machine_lacks() -> None:
    files = [*(ROOT / "benchmarks" / "gpu").glob("*.py"), ROOT / "benchmarks" / "engines" / "run.py"]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in named}
    assert {"torch", "tiercel_serving"} <= tops
    assert not tops & {
        "pandas",
        "nvtabular",
        "merlin",
        "tiercel_export",
        "tiercel_pipelines",
        "onnx",
        "pytest",
    }


def test_tiny_on_the_cpu(tmp_path: Path) -> None:
    said: list[str] = []
    parts = ("ranker", "search", "index", "served")
    report = measure(SIZES["tiny"], "cpu", parts, None, tmp_path, tmp_path, "typed", said.append)
    document = json.loads(json.dumps(report.to_json()))
    rows = {(row["form"], row["users"]): row for row in document["ranker"]}
    assert rows["eager", 4]["times"]["p50_us"] > 0
    assert rows["eager", 4]["difference"] == 0
    assert rows["aoti, CUDA graphs", 1]["reason"] == "RuntimeError: CUDA graphs need a GPU"
    found = {(row["precision"], row["users"]): row["over_bandwidth"] for row in document["search"]}
    assert set(found) == {(precision, users) for precision in ("float32", "float16") for users in (1, 4)}
    assert min(found.values()) > 0
    indexed = {(row["nprobe"], row["users"]): row for row in document["index"]}
    assert set(indexed) == {(nprobe, users) for nprobe in (2, 16) for users in (1, 4)}
    assert indexed[16, 4]["recall"] == 1.0, "every list was looked at"
    text = report.to_markdown()
    assert "| 3,000 | IVF16,Flat | 16 | 4 | 1.000 |" in text
    assert "| eager | 4 × 16 |" in text
    assert "not run: RuntimeError: CUDA graphs need a GPU" in text
    assert said[0].startswith("3,000 × 16")


def test_without_a_gpu_it_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(app, ["--size", "tiny"])
    assert done.exit_code == 1
    assert "target gpu: torch" in done.stderr
    assert CliRunner().invoke(app, ["--part", "served"]).exit_code == 2


@pytest.mark.slow
def test_every_form_on_the_cpu(tmp_path: Path) -> None:
    size = replace(SIZES["tiny"], forms=ALL_FORMS)
    report = measure(size, "cpu", ("ranker",), None, tmp_path, tmp_path, "typed", lambda text: None)
    ran = {row.form: row for row in report.ranker if row.times is not None}
    assert set(ran) >= {"eager", "torch.compile", "aoti", "onnxruntime float32"}
    assert all(ran[form].difference < 1e-5 for form in ("torch.compile", "aoti", "onnxruntime float32"))
