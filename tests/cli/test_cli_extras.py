"""Messages where a library is not installed. ``tests/weight`` checks environments that really lack them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiercel_serving.commands.cli import COMMANDS
from tiercel_serving.commands.extras import missing_library


def without(*libraries: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command where these libraries cannot be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({libraries!r}))\n"
        f"sys.argv = ['tiercel', *{arguments!r}]\n"
        "from tiercel_serving.commands.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    return done


def test_the_bare_install_says_what_to_install() -> None:
    done = without("typer", "rich", arguments=("serve", "releases/x"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "needs typer" in done.stderr
    for extra in {"server", "commands", *(entry.extra for entry in COMMANDS.values())}:
        assert f'pip install "tiercel[{extra}]"' in done.stderr


def test_a_command_of_a_package_that_is_not_there() -> None:
    done = without("tiercel_pipelines", arguments=("train", "movielens", "--json"))
    assert done.returncode == 2
    message = json.loads(done.stdout)["error"]["message"]
    assert message.startswith("tiercel_pipelines is not installed, and this command needs it: pip install")
    assert '"tiercel[pipelines]"' in message
    assert message in done.stderr


def test_a_library_that_every_command_imports() -> None:
    done = without("rich", arguments=("health",))
    assert done.returncode == 2
    assert 'rich is not installed, and this command needs it: pip install "tiercel[server]"' in done.stderr


def test_a_library_that_a_command_imports_as_it_works(release: Path) -> None:
    done = without("msgspec", arguments=("verify", str(release), "--json"))
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "ModuleNotFoundError"
    assert error["message"] == (
        'msgspec is not installed, and this command needs it: pip install "tiercel[server]"'
    )
    assert error["message"] in done.stderr


def test_a_library_that_a_kind_imports_as_it_works(release: Path) -> None:
    done = without("onnxruntime", arguments=("verify", str(release), "--json"))
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "KindUnavailable"
    assert "onnxruntime" in error["message"]
    assert 'pip install "tiercel[' in error["message"]


def test_a_module_of_ours_that_is_not_there_is_a_defect() -> None:
    def error(name: str | None) -> ModuleNotFoundError:
        return ModuleNotFoundError("no", name=name)

    assert missing_library(error("tiercel_serving.nonsense"), "server") is None
    assert missing_library(error(None), "server") is None
    assert missing_library(error("torch"), None) is None


def test_a_python_that_an_extra_does_not_run_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModuleNotFoundError("no", name="nvtabular")
    monkeypatch.setattr("tiercel_serving.commands.extras.RUNNING", (3, 13))
    said = missing_library(error, "pipelines")
    assert said is not None
    assert said.endswith('"tiercel[pipelines]", on Python 3.10 or 3.11 (this is 3.13)')
    said = missing_library(error, "server")
    assert said is not None
    assert said.endswith('"tiercel[server]"')
