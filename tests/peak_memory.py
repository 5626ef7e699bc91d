"""The peak memory of a command, measured from outside by Linux's ``/proc``."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def peak_bytes(command: Sequence[str | Path], field: str, timeout_s: float = 900.0) -> tuple[int, str]:
    """Run a command to its end; return the maximum of a field of its status, in bytes, and its output.

    ``VmHWM`` is the peak of all memory; ``RssAnon`` excludes the pages of memory-mapped files.
    """
    most, end = 0, time.monotonic() + timeout_s
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        status = Path("/proc", str(process.pid), "status")
        while process.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith(f"{field}:"):
                    most = max(most, int(line.split()[1]) * 1024)
            if time.monotonic() > end:
                process.kill()
            time.sleep(0.02)
        said = process.stdout.read()
    assert process.returncode == 0
    return most, said
