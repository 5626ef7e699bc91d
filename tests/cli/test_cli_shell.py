"""Behaviour shared by all commands, tested on commands made for this purpose."""

from __future__ import annotations

import json as json_module
import os
import signal
import subprocess
import sys
import textwrap

import pytest

COMMAND = """
import json as json_module, os, signal, sys, time
import typer
from tiercel_serving.commands.shell import Debug, Json, shell

def command(what: str = "ok", json: Json = False, debug: Debug = False) -> None:
    with shell(json=json, debug=debug) as sh:
        print("a library prints")
        os.write(1, b"and another, from C\\n")
        with sh.work("Working") as progress:
            for i in range(3):
                progress("counting", i, 3)
        {body}

app = typer.Typer()
app.command()(command)
app()
"""


def run(body: str, *arguments: str, number: int | None = None) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(COMMAND).format(body=body)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if number is not None:
        assert process.stderr is not None
        while "up" not in process.stderr.readline():
            pass
        process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def test_json_is_all_there_is_on_standard_output() -> None:
    done = run("sh.emit({'a': 1, 'name': 'Amélie'}, 'a table')", "--json")
    assert done.returncode == 0
    assert json_module.loads(done.stdout) == {"a": 1, "name": "Amélie"}
    for words in ("a library prints", "and another, from C", "Working", "counting"):
        assert words in done.stderr


def test_behind_a_semicolon_stands_how_things_are_and_not_another_piece_of_work() -> None:
    done = run("with sh.work('') as p: [p(f'an epoch; loss {100 - n}', n, 100) for n in range(100)]")
    lines = [line for line in done.stderr.splitlines() if "an epoch" in line]
    assert lines == [f"  an epoch {n}%; loss {100 - n}" for n in range(0, 100, 10)]


def test_without_a_terminal_progress_is_lines_with_percentages() -> None:
    done = run(
        "with sh.work('') as p: [p('rows', n, 1000) for n in range(1001)]; "
        "[p('users', n, None) for n in range(100)]"
    )
    lines = done.stderr.splitlines()
    counted = [line for line in lines if "counting" in line]
    assert counted == ["  counting 0%", "  counting 33%", "  counting 66%"]
    assert [line for line in lines if "rows" in line] == [f"  rows {n}%" for n in range(0, 101, 10)]
    assert lines[-8:] == ["  users", *(f"  users {n}" for n in (1, 2, 4, 8, 16, 32, 64))]


def test_people_get_a_table_and_nothing_else() -> None:
    done = run("sh.emit({'a': 1}, 'a table :x: [1]')")
    assert done.stdout == "a table :x: [1]\n"
    assert "a library prints" in done.stderr


def test_two_json_objects_are_a_defect() -> None:
    done = run("sh.emit({}); sh.emit({})", "--json")
    assert done.returncode == 1
    assert done.stdout == "{}\n"


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (
            "from tiercel_serving.errors import ServerFailed as E; raise E('[Triton] localhost:x: died')",
            1,
            "error [Triton] localhost:x: died",
        ),
        (
            "from tiercel_serving.errors import ReleaseMissing as E; raise E('no release')",
            2,
            "error no release",
        ),
        ("raise ValueError('oops')", 1, "unexpected ValueError: oops"),
        ("raise KeyboardInterrupt", 130, "Interrupted"),
        ("raise typer.Exit(7)", 7, ""),
    ],
)
def test_errors(raised: str, code: int, words: str) -> None:
    done = run(raised)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_machines_faults_are_no_defect_of_ours() -> None:
    done = run("raise PermissionError(13, 'Permission denied', '/srv/x')", "--debug", "--json")
    error = json_module.loads(done.stdout)["error"]
    assert error["type"] == "MachineFault"
    assert error["message"].startswith("/srv/x: Permission denied; ")
    assert "Traceback" in done.stderr
    assert "defect" not in done.stderr


def test_debug_shows_the_stack_and_json_tells_the_error() -> None:
    done = run("raise ValueError('oops')", "--debug", "--json")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert json_module.loads(done.stdout) == {"error": {"type": "ValueError", "message": "oops"}}


SLEEP = """
        try:
            sys.stderr.write("up\\n"); sys.stderr.flush()
            # Not in one piece: a signal just before a sleep begins is heard when that ends.
            for _ in range(400):
                time.sleep(0.05)
        finally:
            sys.stderr.write("taken back\\n")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_unwind(number: int, code: int) -> None:
    done = run(SLEEP.strip(), number=number)
    assert done.returncode == code
    assert "taken back" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_reader_is_no_stack_trace() -> None:
    code = textwrap.dedent(COMMAND).format(body="sh.emit({}, 'many lines\\n' * 20_000)")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=20
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert done.returncode != 0
