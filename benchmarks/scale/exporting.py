"""An export in a process of its own: its time, and its memory beyond the caller's data frames.

Run as a module, it generates the data, exports to a folder, and prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.scale.sizes import SIZES
from tiercel_serving.errors import BenchError


def measure_export(destination: Path, size: str, index: str, text_ids: bool) -> dict[str, float]:
    """Export, and return ``seconds``, ``steps`` in seconds, ``peak_bytes`` and ``frames_bytes``."""
    command = [sys.executable, "-m", __name__, str(destination), size, index, "text" if text_ids else "int"]
    return output_of(command)


def output_of(command: list[str]) -> dict[str, float]:
    """Return the JSON object in a command's last line of output; raise BenchError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command[1:4])} failed: {done.stderr.strip()[-2000:]}")
    document: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return document


def memory(field: str) -> int:
    """Return ``VmRSS`` (resident memory) or ``VmHWM`` (its peak) of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def main(destination: str, size: str, index: str, ids: str) -> None:
    """Export once, and print seconds and bytes as JSON."""
    from benchmarks.scale.made_up import make_up
    from benchmarks.scale.parts import arguments
    from tiercel_export import build_release

    with tempfile.TemporaryDirectory() as folder:
        made = make_up(SIZES[size], text_ids=ids == "text")
        given = arguments(made, SIZES[size], index, folder)
        # Reset the peak that the kernel counts (VmHWM).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, steps, peaks = memory("VmRSS"), {}, {}
        begun = last = time.perf_counter()
        name = ""

        def progress(step: str, done: int, total: int) -> None:
            nonlocal last, name
            now = time.perf_counter()
            if name:
                steps[name], peaks[name] = now - last, memory("VmHWM") - before
            last, name = now, step

        build_release(destination, **given, progress=progress)
        seconds = time.perf_counter() - begun
        peak = memory("VmHWM") - before
        print(
            json.dumps(
                {
                    "seconds": seconds,
                    "steps": steps,
                    "peaks": peaks,
                    "peak_bytes": peak,
                    "frames_bytes": before,
                }
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
