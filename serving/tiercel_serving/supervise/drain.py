"""Stop a Triton gracefully: it answers the requests in flight and unloads its models.

After that it sleeps for a second or two between checks before it exits, so we do not wait for the exit.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from . import guard
from .log import all_unloaded

#: Time for the last responses to get from Triton to the sockets.
_SENT_S = 0.1


def drain(process: subprocess.Popen[bytes], log: Path, grace_s: float, *, whole: bool = False) -> None:
    """Send SIGTERM, and return when nothing is in flight and every model is unloaded, or on a timeout.

    Parameters
    ----------
    process
        Triton, which leads a process group.
    log
        Its log. If this is not a regular file, or lacks the messages of the Tritons that we know, the
        function waits for the exit.
    grace_s
        The timeout.
    whole
        Whether to wait for the exit in any case, for what Triton writes at its very end, such as a trace.
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
