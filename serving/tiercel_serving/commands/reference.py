"""``docs/cli.md``, written from the commands themselves.

``python -m tiercel_serving.commands.reference > docs/cli.md``
"""

from __future__ import annotations

import re
import sys

import typer
from typer.cli import get_docs_for_click

from .cli import COMMANDS, load_command

HEAD = """\
# The `tiercel` command

Written by `python -m tiercel_serving.commands.reference > docs/cli.md`; a test holds it to the commands.

Every command prints a table for people on standard output, or with `--json` exactly one JSON object;
progress, notes and errors go to standard error. Where that is no terminal, progress is plain lines with
percentages: one as each piece of work begins, one at each further tenth of it, and one a minute between
them; work that takes more than ten seconds says what is left. Of work whose end is not known, the count is
said whenever it has doubled. Epochs that take long say loss and steps a second. An error is one
message that says what to do; `--debug` shows its stack trace, and with `--json` it is also the object
`{"error": {"type": …, "message": …}}`.

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
    return "\n".join([HEAD, *map(_section, COMMANDS)])


def _section(name: str) -> str:
    command = load_command(name)
    context = typer.Context(command, info_name=f"tiercel {name}")
    text = get_docs_for_click(obj=command, ctx=context, indent=1, name=name, call_prefix="tiercel")
    text = text.rstrip() + f'\n\nNeeds `pip install "tiercel[{COMMANDS[name].extra}]"`.\n'
    return re.sub(r"\[/?(bold)?\]", "`", text)


if __name__ == "__main__":
    sys.stdout.write(markdown())
