"""The entry point of ``tiercel``. It needs only the standard library, to report what else is needed."""

from __future__ import annotations

import sys

BARE = """\
tiercel: the command needs {missing}, which is not installed (the bare install is the client alone):
  pip install "tiercel[server]"      to serve, verify and ask releases; Python 3.10 to 3.12
  pip install "tiercel[commands]"    the same with a Triton of your own, from Python 3.10 on
  pip install "tiercel[pipelines]"   to train and export too; Python 3.10 or 3.11
"""


def main() -> None:
    """Run the ``tiercel`` command, or report which extra installs it and exit with code 2."""
    try:
        from .cli import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "tiercel_serving":
            raise
        sys.stderr.write(BARE.format(missing=error.name))
        raise SystemExit(2) from None
    try:
        app(prog_name="tiercel")
    except (OSError, MemoryError, ImportError) as error:  # before a command has begun
        from ..machine_faults import fault_of

        fault = fault_of(error)
        if fault is None:
            raise
        sys.stderr.write(f"error {fault}\n")
        raise SystemExit(1) from None
