"""Prometheus' rules and Grafana's dashboard against the metrics of a real server."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from container.entry_point import DOCKER, Container, tool
from tiercel_serving.settings import ServingSettings

DASHBOARD = json.loads((DOCKER / "grafana/dashboards/tiercel.json").read_text(encoding="utf-8"))
ALERTS = DOCKER / "prometheus/alerts.yaml"
DATASOURCES = DOCKER / "grafana/provisioning/datasources/prometheus.yaml"

#: Triton has these only on a machine with a GPU (its docs/user_guide/metrics.md).
GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def alerts() -> dict[str, str]:
    return {rule["alert"]: rule["expr"] for group in read(ALERTS)["groups"] for rule in group["rules"]}


def test_settings_that_descriptions_name_are_those_of_recipes() -> None:
    rules = [rule for group in read(ALERTS)["groups"] for rule in group["rules"]]
    said = {rule["alert"]: rule["annotations"]["description"] for rule in rules}
    assert "recipe's serving." in said["TiercelShortLists"]
    for name in re.findall(r"\bserving\.(\w+)", " ".join(said.values())):
        assert name in ServingSettings.__struct_fields__


def drawn() -> dict[str, str]:
    """Return each panel's expressions by title and letter, with Grafana's variables filled in."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$instance", ".*")
        for panel in panels()
        for target in panel["targets"]
    }


def test_every_metric_that_is_drawn_or_watched_is_one_that_a_server_has(container: Container) -> None:
    text = container.metrics()
    exposed = set(re.findall(r"^([a-z_]+)(?:\{| )", text, flags=re.M))
    for name, expression in {**drawn(), **alerts()}.items():
        for metric in re.findall(r"\b(?:nv|tiercel)_\w+", expression):
            assert metric in exposed | GPU_METRICS, f"{name}: {metric}"
    assert not GPU_METRICS & exposed, "there is a GPU: then these too are a server's"
    for label, value in re.findall(r'(status|reason|quantile|stage)="(\w+)"', " ".join(alerts().values())):
        assert f'{label}="{value}"' in text


def test_every_metric_of_ours_is_drawn(container: Container) -> None:
    ours = set(re.findall(r"^(tiercel_\w+)", container.metrics(), flags=re.M))
    assert ours
    assert ours <= set(re.findall(r"tiercel_\w+", " ".join(drawn().values())))


def test_the_dashboard_fits_together() -> None:
    [source] = read(DATASOURCES)["datasources"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels():
        assert panel["title"]
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or apart, (one, other)
    [variable] = DASHBOARD["templating"]["list"]
    assert variable["name"] == "instance"
    [provider] = read(DOCKER / "grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    compose = read(DOCKER / "compose.yaml")["services"]["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["volumes"]
    home = compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/tiercel.json"


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    tried = (DOCKER / "prometheus/alerts.test.yaml").read_text(encoding="utf-8")
    for group in read(ALERTS)["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert f'"{rule["alert"]}"' in tried


def test_rules_and_configuration_pass_promtool(tmp_path: Path) -> None:
    promtool = tool("promtool")
    rules = [
        {"record": f"drawn:number_{number}", "expr": expression}
        for number, expression in enumerate(drawn().values())
    ]
    drawing = tmp_path / "dashboard.yaml"
    drawing.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for arguments in (
        ["test", "rules", "alerts.test.yaml"],
        ["check", "config", "prometheus.yaml"],
        ["check", "rules", str(drawing)],
    ):
        done = subprocess.run([promtool, *arguments], cwd=ALERTS.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A running Prometheus that scrapes one server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def wait_for(self, expression: str, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if self.ask("query", query=expression)["result"]:
                    return
            except OSError:  # not listening yet, or still reading its (empty) storage
                pass
            time.sleep(0.2)
        pytest.fail(f"{expression}: nothing after {timeout_s:g} s; {self.ask('targets')}")


@pytest.fixture(scope="module")
def prometheus(container: Container, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run Prometheus with the deployment's configuration; only address and intervals differ."""
    program = tool("prometheus")
    place = tmp_path_factory.mktemp("prometheus")
    address = container.document["metrics"].removeprefix("http://").removesuffix("/metrics")
    settings = read(DOCKER / "prometheus/prometheus.yaml")
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [job] = [job for job in settings["scrape_configs"] if job["job_name"] == "triton"]
    assert job["static_configs"] == [{"targets": ["triton:8002"]}]
    job["static_configs"] = [{"targets": [address]}]
    settings["scrape_configs"] = [job]
    settings["rule_files"] = [str(ALERTS)]
    (place / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    options = [f"--config.file={place}/prometheus.yaml", f"--storage.tsdb.path={place}/data"]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            [program, *options, f"--web.listen-address={listen}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield Prometheus(f"http://{listen}")
    finally:
        process.terminate()
        process.wait(30)


def test_a_prometheus_reads_a_real_server(container: Container, prometheus: Prometheus) -> None:
    """Every panel except the GPU's has data, and no alert fires."""
    from tiercel_client import Recommender

    prometheus.wait_for('up{job="triton"} == 1')
    with Recommender(container.document["grpc"]) as recommender:
        recommender.health(timeout_s=10)
        recommender.recommend(container.document["user"])
    # Rates need two scrapes after the answers, which the server counts within a second.
    prometheus.wait_for("sum(rate(tiercel_answers_total[1m])) > 0")
    for name, expression in drawn().items():
        if not GPU_METRICS & set(re.findall(r"\w+", expression)) and "ALERTS" not in expression:
            found = prometheus.ask("query", query=expression.removesuffix(" > 0"))
            assert found["result"], f"{name}: {expression}"
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == set(alerts())
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert {rule["state"] for rule in rules} == {"inactive"}
