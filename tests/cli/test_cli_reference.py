"""The command line interface: help, docs/cli.md, usage errors."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tiercel_serving.commands.cli import COMMANDS, app, load_command

ROOT = Path(__file__).parents[2]
WRITTEN = [name for name, entry in COMMANDS.items() if importlib.util.find_spec(entry.module)]
HEAVY = {"numpy", "torch", "pandas", "grpc", "httpx"}


def test_every_command_of_the_table_exists() -> None:
    assert list(COMMANDS) == WRITTEN


def leaves() -> dict[str, Any]:
    """Return commands by the words to type; those of a group are separate entries."""
    found = {}
    for name in WRITTEN:
        command = load_command(name)
        group = getattr(command, "commands", None)
        found |= {name: command} if group is None else {f"{name} {sub}": one for sub, one in group.items()}
    return found


@pytest.mark.parametrize(("name", "command"), leaves().items())
def test_every_command_has_help_with_an_example_json_and_debug(name: str, command: Any) -> None:
    assert re.search(rf"Example: \[bold\]tiercel {name}\b.*\[/\]", command.help)
    options = {option for param in command.params for option in param.opts}
    assert {"--json", "--debug"} <= options
    assert all(param.help for param in command.params)
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert f"tiercel {name}" in result.output


def cpu_s_of_children() -> float:
    """Return the CPU seconds of child processes; wall time would include the load of other processes."""
    times = os.times()
    return times.children_user + times.children_system


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; sys.argv = ['tiercel', '--help']\n"
        "from tiercel_serving.commands.main import main\n"
        "try: main()\n"
        f"finally: print({{m.split('.')[0] for m in sys.modules}} & {HEAVY})"
    )
    before = cpu_s_of_children()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert cpu_s_of_children() - before < 2.0
    assert done.stdout.rstrip().endswith("set()")
    for name, entry in COMMANDS.items():
        assert re.search(rf"{name}\s+{re.escape(entry.help)}", done.stdout)


def test_docs_are_what_the_commands_say() -> None:
    from tiercel_serving.commands.reference import markdown

    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == markdown(), "run: python -m tiercel_serving.commands.reference > docs/cli.md"


def test_commands_in_the_documents_exist() -> None:
    """Check each command line of a code block, and its options."""
    options = {
        name: {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        for name, command in leaves().items()
    }
    pages = [
        page for at in ("*.md", "docs/*.md", "docker/*.md") for page in ROOT.glob(at) if page.name != "cli.md"
    ]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    ]
    lines = [line for block in blocks for line in re.findall(r"^(?:\$ )?tiercel (.*)$", block, re.M)]
    assert len(lines) > 40
    for line in lines:
        words = line.partition("#")[0].partition(" -- ")[0].split()
        name = next(one for one in (" ".join(words[:2]), words[0]) if one in options or one == words[0])
        assert name in options, line
        given = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
        assert given <= options[name] | {"--help"}, line


def test_usage_errors_are_two() -> None:
    runner = CliRunner()
    for arguments in (["rekommend"], ["serve"], ["serve", "x", "--grpc-port", "many"], ["train"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2, arguments
        assert "Usage: tiercel" in result.output
    for command in (["recommend", "--url"], ["health"], ["evaluate", "run", "--url"]):
        for url in ("localhost", "localhost:x"):
            result = runner.invoke(app, [*command, url])
            assert result.exit_code == 2
            assert "expected HOST:PORT" in result.output
    assert "Did you mean 'recommend'" in runner.invoke(app, ["rekommend"]).output
    assert runner.invoke(app, ["--version"]).output.startswith("tiercel ")
