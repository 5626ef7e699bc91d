"""The message of a command whose libraries are not installed."""

from __future__ import annotations

import importlib.util
import sys
from contextvars import ContextVar

#: The extra of the running command; :mod:`.cli` sets it, and :mod:`.shell` reads it.
extra_of_command: ContextVar[str | None] = ContextVar("extra_of_command", default=None)

RUNNING = sys.version_info[:2]
_NVTABULAR = ((3, 12), "3.10 or 3.11")
#: Extras that need an older Python: the first version that is too new, and the versions that work.
PYTHONS = {"pipelines": _NVTABULAR, "dev": _NVTABULAR}


def missing_library(error: ModuleNotFoundError, extra: str | None) -> str | None:
    """Return what to install after a failed import; None if no extra provides the module, which is a bug."""
    if extra is None or error.name is None:
        return None
    top = error.name.partition(".")[0]
    if top.startswith("tiercel_") and importlib.util.find_spec(top) is not None:
        return None
    text = f'{top} is not installed, and this command needs it: pip install "tiercel[{extra}]"'
    too_new, fitting = PYTHONS.get(extra, ((4, 0), ""))
    if too_new <= RUNNING:
        text += f", on Python {fitting} (this is {RUNNING[0]}.{RUNNING[1]})"
    return text
