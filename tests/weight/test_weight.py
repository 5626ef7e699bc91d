"""The law of weight, in environments that contain only what an extra installs, on a real release.

The Python of the tests exports the release; others serve it, verify it and send requests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from environments import Bare, Environment

#: None of these may be on a serving host.
HEAVY = {"torch", "pandas", "nvtabular", "merlin-core", "dask", "numba", "pyarrow", "onnx", "scipy"}
LIMIT_MB = 500


def emitted(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def check_verified(environment: Environment, release: Path) -> None:
    document = emitted(environment.tiercel("verify", release, "--json"))
    assert document["ok"]
    checked = {row["artefact"] for row in document["rows"]}
    golden = [row for row in document["rows"] if "golden" in row["check"]]
    assert len(checked) > 3
    assert golden


def test_a_serving_host_is_light(host: Environment) -> None:
    installed = host.distributions()
    assert {"tiercel", "nvidia-pytriton", "faiss-cpu", "onnxruntime", "msgspec", "typer"} <= set(installed)
    assert not HEAVY & set(installed)
    assert host.size_mb() <= LIMIT_MB


def test_a_serving_host_verifies(host: Environment, release: Path) -> None:
    check_verified(host, release)


def test_a_serving_host_serves(host: Environment, server: dict[str, Any]) -> None:
    """In its own Python, which the runner loads; requests go over gRPC by the host's own client."""
    assert emitted(host.tiercel("health", server["grpc"], "--json"))["healthy"]
    answer = emitted(host.tiercel("recommend", "--user", server["user"], "--url", server["grpc"], "--json"))
    assert answer["status"] == "known"
    assert answer["user_id"] == server["user"]
    assert len(answer["items"]) == 5
    assert answer["items"][0]["title"]


@pytest.mark.slow
def test_a_serving_host_measures(host: Environment, release: Path) -> None:
    options = ["--client", "python", "--seconds", "0.2", "--rounds", "1", "--concurrency", "1", "--json"]
    document = emitted(host.tiercel("bench", release, *options))
    runners = ("", "tiercel_") if shutil.which("cc") else ("",)
    models = ("identity", "hollow", "fused", "staged")
    assert {runner + model for runner in runners for model in models} == set(document["served"]["1"])


def test_the_bare_install_is_the_client(bare: Bare) -> None:
    assert bare.client == "Recommender"
    assert not {*HEAVY, "typer", "rich", "faiss-cpu", "onnxruntime"} & set(bare.distributions)


def test_the_bare_install_says_what_to_install(bare: Bare) -> None:
    for line, done in bare.answers.items():
        assert done.returncode == 2, line
        assert done.stdout == ""
        assert 'pip install "tiercel[server]"' in done.stderr
        assert "Traceback" not in done.stderr


def test_stages_and_verification_run_on_numpy_2(light: Environment, release: Path) -> None:
    """NumPy 2 promotes scalars differently, and the golden vectors were made with NumPy 1."""
    installed = light.distributions()
    assert installed["numpy"].startswith("2.")
    assert not {*HEAVY, "nvidia-pytriton"} & set(installed)
    check_verified(light, release)


def test_the_client_asks_from_numpy_2(light: Environment, server: dict[str, Any]) -> None:
    answer = emitted(light.tiercel("recommend", "--user", server["user"], "--url", server["grpc"], "--json"))
    assert answer["status"] == "known"
    assert light.tiercel("health", server["grpc"]).returncode == 0


def test_what_a_light_host_cannot_do_is_said(light: Environment, release: Path) -> None:
    no_triton = 'no Triton server here: install the embedded one with `pip install "tiercel[server]"`'
    serve, train = light.tiercel("serve", release), light.tiercel("train", "movielens")
    assert no_triton in serve.stderr
    assert 'pip install "tiercel[pipelines]"' in train.stderr
    assert (serve.returncode, train.returncode) == (1, 2)
    for done in (serve, train):
        assert "Traceback" not in done.stderr
        assert "defect" not in done.stderr
