"""``python -m benchmarks.training_scale``, from the repository's root."""

from __future__ import annotations

from benchmarks.training_scale.command import NAME, command
from tiercel_serving.commands.cli import app_of
from tiercel_serving.commands.extras import extra_of_command

app = app_of(NAME, command)

if __name__ == "__main__":
    extra_of_command.set("dev")
    app(prog_name=NAME)
