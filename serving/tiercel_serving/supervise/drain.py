"""The end of a Triton that is told to stop: it answers what is in flight and unloads its models.

After that it only sleeps, a second or two between looks at what is left; nobody waits for its exit.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from . import guard
from .log import all_unloaded

#: How long the last answers may take from Triton to the sockets.
_SENT_S = 0.1


def drain(process: subprocess.Popen[bytes], log: Path, grace_s: float, *, whole: bool = False) -> None:
    """Send SIGTERM, and return when nothing is in flight and every model is unloaded, or the time is over.

    Parameters
    ----------
    process
        Triton, which leads a process group.
    log
        Where it writes. What is no plain file isn't read; then its exit is waited for, as where its words
        are others than those of the Tritons that we know.
    grace_s
        How long that may take.
    whole
        Whether to wait until it has exited: what it writes at the very end, a trace, is wanted.
    """
    whole = whole or not log.is_file()
    begun = 0 if whole else log.stat().st_size
    deadline = time.monotonic() + grace_s
    process.send_signal(signal.SIGTERM)
    while process.poll() is None and time.monotonic() < deadline:
        if not whole and _unloaded(process.pid, log, begun):
            time.sleep(_SENT_S)
            return
        time.sleep(0.02)


def _unloaded(group: int, log: Path, begun: int) -> bool:
    with log.open("rb") as file:
        file.seek(begun)
        text = file.read().decode(errors="replace")
    return all_unloaded(text) and guard.group_members(group) == [group]
