"""Dockerfile and compose files, as far as they can be tested without a container engine."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from container.entry_point import tool
from tiercel_serving.supervise.compatibility import RECOMMENDED, TRITONS

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = ("compose.yaml", "compose.cpu.yaml")


def instructions() -> list[tuple[str, str, str]]:
    """Return the Dockerfile's (target, instruction, arguments), in order."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.M).replace("\\\n", " ")
    found, target = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            target = rest.rpartition(" AS ")[2]
        found.append((target, name, " ".join(rest.split())))
    return found


def of_target(target: str, instruction: str) -> list[str]:
    return [rest for where, name, rest in instructions() if (where, name) == (target, instruction)]


def services(name: str) -> dict[str, Any]:
    """Return the services of a compose file, with those that they extend merged in."""
    document = yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))
    for key, service in document["services"].items():
        if "extends" in service:
            base = services(service["extends"]["file"])[service["extends"]["service"]]
            document["services"][key] = {**base, **{k: v for k, v in service.items() if k != "extends"}}
    return document["services"]


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    done = subprocess.run([tool("hadolint"), str(DOCKER / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_files_follow_the_specification() -> None:
    pytest.importorskip("check_jsonschema", reason="it carries the Compose Specification's schema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *COMPOSE]
    done = subprocess.run(command, cwd=DOCKER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_images_copy_exists_and_is_seen_by_the_build() -> None:
    seen = [
        line[1:]
        for line in (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    ]
    for pattern in seen:
        assert (ROOT / pattern).exists() or pattern == "releases", f"{pattern}: nothing for the build to see"
    copied = [
        rest for _, name, rest in instructions() if name == "COPY" and not re.match(r"--(from|chown)=", rest)
    ]
    assert copied
    for line in copied:
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
            assert any(fnmatch.fnmatch(name, pattern) for pattern in seen), (
                f"{name}: the build does not see it"
            )


def test_the_probe_fails_where_nobody_answers() -> None:
    [check] = of_target("serving", "HEALTHCHECK")
    assert of_target("serving-cpu", "HEALTHCHECK") == [check]
    name, *arguments = json.loads(check.partition(" CMD ")[2])
    assert name == "tiercel"
    assert arguments[:2] == ["health", "localhost:8001"]
    probe = [sys.executable, "-c", "from tiercel_serving.commands.main import main; main()"]
    nobody = [argument.replace("localhost:8001", "127.0.0.1:1") for argument in arguments]
    done = subprocess.run([*probe, *nobody], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("target", "extras"),
    [("serving", "commands,redis"), ("serving-cpu", "server,redis"), ("export", "pipelines")],
)
def test_each_image_installs_extras_there_are_and_runs_as_nobody_special(target: str, extras: str) -> None:
    assert any(f'-c /tmp/constraints.txt "$1[{extras}]"' in run for run in of_target(target, "RUN"))
    assert "--from=wheel /wheel /tmp/wheel" in of_target(target, "COPY")
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", declared, flags=re.M)
    assert of_target(target, "USER") == ["1000"]
    roots = re.search(r"^where = \[(.*)\]$", declared, flags=re.M)
    assert roots is not None
    for root in json.loads(f"[{roots[1]}]"):
        assert f"{root} {root}" in of_target("wheel", "COPY")


def test_tritons_tag_is_in_one_place_and_in_the_table() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    naming = {
        name
        for name in files.splitlines()
        if name.startswith("docker/")
        and re.search(r"\d\d\.\d\d-py3", (ROOT / name).read_text(encoding="utf-8"))
    }
    assert naming == {"docker/Dockerfile"}
    [tag] = re.findall(r"^ARG TRITON_TAG=(\S+)$", DOCKERFILE, flags=re.M)
    assert tag == f"{RECOMMENDED}-py3"
    assert RECOMMENDED in {row.release for row in TRITONS}


def test_nobody_is_told_that_the_images_have_run() -> None:
    assert "have no container engine, so they do not build or run the images" in DOCKERFILE
    readme = (DOCKER / "README.md").read_text(encoding="utf-8")
    assert "has not been built or run" in readme


@pytest.mark.parametrize("name", COMPOSE)
def test_services_are_shut_in(name: str) -> None:
    """Services run without root, with only named writable paths, no new privileges, and no public port."""
    targets = {target for target, _, _ in instructions()}
    for key, service in services(name).items():
        assert service["read_only"] is True, key
        assert service["cap_drop"] == ["ALL"], key
        assert service["security_opt"] == ["no-new-privileges:true"], key
        assert service["restart"] == "unless-stopped", key
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{key}: {port}"
        if "build" in service:
            assert service["build"]["target"] in targets
            assert of_target(service["build"]["target"], "HEALTHCHECK")
        else:
            assert service["healthcheck"], key
            assert service["user"] not in ("root", "0"), key
            assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\S*", service["image"]), (
                f"{key}: a tag that does not move"
            )


@pytest.mark.parametrize("name", COMPOSE)
def test_what_compose_files_name_is_there(name: str) -> None:
    document = yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))
    found = services(name)
    assert set(found) == {"triton", "redis", "prometheus", "grafana"}
    for key, service in found.items():
        assert set(service["networks"]) <= set(document["networks"]), key
        assert set(service.get("depends_on", {})) <= set(found), key
        for volume in service.get("volumes", []):
            if isinstance(volume, str):
                source = volume.split(":")[0]
                assert (DOCKER / source).is_dir() if source.startswith(".") else source in document["volumes"]
    assert ("deploy" in found["triton"]) == (name == "compose.yaml")
    assert found["triton"]["shm_size"] == "256m"


def test_the_two_deployments_differ_in_the_gpu_alone() -> None:
    gpu, cpu = (services(name)["triton"] for name in COMPOSE)
    differ = {key for key in {*gpu, *cpu} if gpu.get(key) != cpu.get(key)}
    assert differ == {"build", "image", "deploy", "volumes"}
    assert set(services(COMPOSE[0])) == set(services(COMPOSE[1]))
