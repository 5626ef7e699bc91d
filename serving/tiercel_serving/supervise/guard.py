"""Remove what a server leaves behind: processes, shared memory, a temporary directory.

Run as a script, this is the guard, a small process that waits until the process that started the server is
gone, for any reason, and then cleans up if that process did not. It needs only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

#: The line that the guard gets after a clean stop.
DONE = "done"


def group_members(group: int) -> list[int]:
    """Return the process ids of a process group, without zombies."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The fields after the command's name, which may contain anything: state, parent, group.
                fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    found.append(int(entry))
    return found


def kill_group(group: int, grace_s: float = 0.0) -> None:
    """End every process of a group: SIGTERM if ``grace_s`` > 0, then SIGKILL; wait up to 5 s for the end."""
    if grace_s > 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while group_members(group) and time.monotonic() < deadline:
            time.sleep(0.05)
    deadline = time.monotonic() + 5.0
    while group_members(group) and time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        time.sleep(0.02)


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared memory regions whose names start with ``prefix``."""
    for file in Path("/dev/shm").glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            file.unlink()


def remove_environments(spawned: float, folder: Path = Path("/tmp")) -> None:
    """Remove the empty directory that the Python backend creates on start, and leaves if it is killed.

    The backend gives it a random name in a fixed place, so it is recognised by its age; ``spawned`` is when
    Triton was started, in seconds since the epoch. A directory that may belong to another living Triton that
    was started at the same time stays, because that Triton would crash on exit without it.
    """
    others = tritons()
    for path in folder.glob("python_env_??????"):
        with contextlib.suppress(OSError):
            status = path.stat()
            ages = [status.st_ctime - begun for begun in (spawned, *others)]
            ours, *theirs = (-0.5 <= age <= 3.0 for age in ages)
            if status.st_uid == os.getuid() and ours and not any(theirs):
                path.rmdir()


def tritons() -> list[float]:
    """Return the start time of each living Triton on this machine, in seconds since the epoch."""
    booted = time.time() - float(Path("/proc/uptime").read_text().split()[0])
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            head, _, tail = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")
            fields = tail.split()
            if head.endswith("(tritonserver") and fields[0] not in "ZX":
                found.append(booted + int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    return found


def main(workdir: str, prefix: str) -> None:
    """Wait until standard input is closed, then clean up; return without cleaning up on :data:`DONE`.

    Any other line is the id of a process group to end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = {}
    # Not `for line in sys.stdin`, which reads ahead.
    while line := sys.stdin.readline():
        if line.strip() == DONE:
            return
        groups[int(line)] = time.time()
    for group, spawned in groups.items():
        kill_group(group, grace_s=6.0)
        remove_environments(spawned)
    remove_shared_memory(prefix)
    shutil.rmtree(workdir, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
