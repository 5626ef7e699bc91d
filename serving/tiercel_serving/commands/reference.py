"""``docs/cli.md``, written from the commands themselves.

``python -m tiercel_serving.commands.reference > docs/cli.md``
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from .cli import COMMANDS, load_command

HEAD = """\
# The `tiercel` command

Written by `python -m tiercel_serving.commands.reference > docs/cli.md`; a test holds it to the commands.

Every command prints a table for people on standard output, or with `--json` exactly one JSON object;
progress, notes and errors go to standard error. An error is one message that says what to do; `--debug`
shows its stack trace, and with `--json` it is also the object `{"error": {"type": …, "message": …}}`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the work failed |
| 2 | what was typed cannot be: an unknown option, a recipe with mistakes, no such release, a port taken, \
a command whose libraries are not installed |
| 130 | Ctrl-C; nothing half-made is left |
| 143 | SIGTERM; the same (`tiercel serve` ends with 0) |
"""


def markdown() -> str:
    """Return the whole text of ``docs/cli.md``."""
    return HEAD + "".join("\n" + "\n".join(_section(name)) + "\n" for name in COMMANDS)


def _section(name: str) -> Iterator[str]:
    command = load_command(name)
    shown = [
        param for param in command.params if param.name != "help" and not getattr(param, "hidden", False)
    ]
    arguments = [param for param in shown if param.param_type_name == "argument"]
    usage = [param.metavar if param.required else f"[{param.metavar}]" for param in arguments]
    yield f"## `{' '.join(['tiercel', name, *usage])}`\n"
    yield _plain(command.help) + "\n"
    yield f'Needs `pip install "tiercel[{COMMANDS[name].extra}]"`.\n'
    yield "| | | default |\n|---|---|---|"
    for param in shown:
        yield f"| {_names(param)} | {_plain(param.help or '')} | {_default(param)} |"


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar}`"
    names = ", ".join(f"`{option}`" for option in (*param.opts, *param.secondary_opts))
    return names + (f" {param.metavar}".replace("|", r"\|") if param.metavar else "")


def _default(param: Any) -> str:
    if param.required:
        return "required"
    value = param.default
    if value is None or value is False or value == [] or value == ():
        return ""
    return f"`{value}`"


def _plain(text: str) -> str:
    return re.sub(r"\[/?(bold)?\]", "`", text).replace("|", r"\|")


if __name__ == "__main__":
    sys.stdout.write(markdown())
