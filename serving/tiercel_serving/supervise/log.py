"""Read from Triton's log why it failed and whether its models are unloaded, and describe its exit."""

from __future__ import annotations

import contextlib
import re
import signal

#: Errors that every start without a GPU writes.
_HARMLESS = ("CudaDriverHelper", "CUDA memory pool", "pinned system memory")

_LOAD = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)")
_ERROR = re.compile(r"^(?:\S+Z \d+ )?E\S* .*?\] (?P<message>.*)$|^error: (?P<plain>.*)$")
_PORT = re.compile(r"Socket '[^']*:(\d+)' already in use")
#: Logged during shutdown once no inference is in flight; and for each model when it is unloaded.
_LIVE = re.compile(r"Found (\d+) live models and 0 in-flight non-inference requests")
_UNLOADED = "successfully unloaded '"


def failure_reasons(text: str) -> list[str]:
    """Return at most four of Triton's messages on why a start failed, of failed model loads if any."""
    loads: list[str] = []
    others: list[str] = []
    for line in text.splitlines():
        if load := _LOAD.search(line):
            loads.append(f"model {load['model']}: {_plain(load['reason'])}")
        elif (error := _ERROR.match(line)) and not any(word in line for word in _HARMLESS):
            others.append(_plain(error["message"] or error["plain"] or ""))
    return list(dict.fromkeys(loads or others))[:4]


def port_in_use(text: str) -> int | None:
    """Return the port that Triton could not bind, if that is why it failed."""
    match = _PORT.search(text)
    return int(match[1]) if match else None


def all_unloaded(text: str) -> bool:
    """Return whether Triton's log since SIGTERM shows that every model is unloaded."""
    looks = list(_LIVE.finditer(text))
    return bool(looks) and text.count(_UNLOADED, looks[-1].end()) >= int(looks[-1][1])


def tail(text: str, lines: int = 15) -> list[str]:
    """Return the last lines of a log without its tables."""
    plain = [line for line in text.splitlines() if line and line[0] not in "|+"]
    return plain[-lines:]


def exit_text(status: int) -> str:
    """Describe how a process ended, from its return code as in ``subprocess``."""
    if status >= 0:
        return f"exited with status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


def _plain(message: str) -> str:
    """Undo the quoting of Triton's log, and drop the stack trace after the message."""
    text = message.strip().strip('"').replace("\\n", "\n").split("\n\nAt:")[0]
    return re.sub(r"\s+", " ", text.removeprefix("Internal: ")).strip()
