"""Generate ``docs/cli.md`` from the commands.

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

Every command prints a table on standard output, or with `--json` exactly one JSON object. Progress, notes
and errors go to standard error.

An error is one message that says what to do. `--debug` adds its stack trace; with `--json` the error is also
printed as the object `{"error": {"type": …, "message": …}}`.

Where standard error is not a terminal, progress is plain lines with percentages: one when a piece of work
begins, one at each further tenth of it, and one a minute in between. Work that takes more than ten seconds
shows the remaining time. If the total is not known, the count is printed each time it has doubled. Long
epochs also show loss and steps per second.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the work failed |
| 2 | the request itself is wrong: an unknown option, a recipe with mistakes, no such release, a port in \
use, a command whose libraries are not installed |
| 130 | Ctrl-C; nothing incomplete is left behind |
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
