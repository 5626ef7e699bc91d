"""What a server leaves behind, and how it is removed: processes, shared memory, a temporary directory.

Run as a script, it is the guard: a small process that waits until the one that started the server is
gone, however it went, and then removes what that one could not. It needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

#: First line that the guard is sent on a clean stop.
DONE = "done"


def group_members(group: int) -> list[int]:
    """Return the process ids of a process group, without zombies."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # After the command's name, which may hold anything: state, parent, group.
                fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    found.append(int(entry))
    return found


def kill_group(group: int, grace_s: float = 0.0) -> None:
    """End every process of a group: SIGTERM and a grace, if there is one, then SIGKILL; wait for the end."""
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
    """Remove the empty directory that the Python backend makes as it starts, and a killed one leaves.

    Its name is random and its place is fixed in the backend, so it is told by its age: ``spawned`` is when
    Triton was started, seconds since the epoch. One that may be that of another Triton, which lives and was
    started at the same moment, stays until that one ends: without it, its end is a crash.
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
    """Return when each living Triton of this machine was started, in seconds since the epoch."""
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
    """Wait for the other end of standard input to close; clean up unless it said that it had done so.

    Each line is the id of a process group to end, or :data:`DONE`.
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
