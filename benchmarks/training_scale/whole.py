"""From tables to every user's list: ``python -m benchmarks.training_scale.whole FOLDER [STEP …]``.

:mod:`benchmarks.training_scale.made` writes ``FOLDER/data``. The steps are commands of ``tiercel``, each in a
process of its own: train (one epoch of each model; a killed training resumes), export, verify, score. All
steps run unless some are named. ``FOLDER/whole.json`` gets the time and memory of each.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_RECIPE = str(Path(__file__).with_name("recipe.py").resolve())

#: Step → arguments of ``tiercel``, which runs in the folder.
STEPS = {
    "train": ("train", _RECIPE, "--data-dir=data", "--run=run", "--epochs=1", "--resume"),
    "export": ("export", "run", "--release=release", "--replace"),
    "verify": ("verify", "release"),
    "score": ("score", "release", "lists.parquet", "--overwrite"),
}


@dataclass
class Watch:
    """CPU seconds and peak resident memory in bytes of a process, by the step that its output names."""

    pid: int
    at: str = "start"
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    peak: int = 0

    def look(self) -> None:
        """Sample 50 times a second until the process has ended: some steps of small data are as short."""
        seen = 0.0
        while held := self._held():
            self.peaks[self.at] = max(self.peaks.get(self.at, 0), held["VmRSS"])
            self.peak = held["VmHWM"]
            now = max(seen, self._spent_s())
            self.seconds[self.at] = round(self.seconds.get(self.at, 0.0) + now - seen, 2)
            seen = now
            time.sleep(0.02)

    def _held(self) -> dict[str, int]:
        """Return the process's resident memory and its peak in bytes; empty once it has ended."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return {}
        return {name: int(kb) * 1024 for name, kb in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status)}

    def _spent_s(self) -> float:
        with suppress(OSError):
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def hear(self, line: str) -> None:
        """Read the step from a line of progress, such as ``two_tower, fold 1 of 4 30%``."""
        found = re.fullmatch(r"  (\S.*?)( \d+%)?\n", line)
        self.at = found[1] if found else self.at


def run_step(name: str, folder: Path) -> dict[str, Any]:
    """Run a step and return its time and memory; its progress goes to ``<name>.log``."""
    command = [str(Path(sys.executable).with_name("tiercel")), *STEPS[name], "--json"]
    begun = time.perf_counter()
    with (
        (folder / f"{name}.log").open("a", encoding="utf-8") as log,
        (folder / f"{name}.json").open("w", encoding="utf-8") as told,
    ):
        process = subprocess.Popen(command, cwd=folder, stdout=told, stderr=subprocess.PIPE, text=True)
        watch = Watch(process.pid)
        threading.Thread(target=watch.look, daemon=True).start()
        assert process.stderr is not None
        for line in process.stderr:
            watch.hear(line)
            print(f"{time.strftime('%T')} {line}", end="", file=log, flush=True)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed, see {folder / name}.log and .json")
    return {
        "wall_s": round(time.perf_counter() - begun, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_bytes": watch.peak,
        "steps_cpu_s": watch.seconds,
        "peaks_bytes": watch.peaks,
    }


def main(folder: Path, names: list[str]) -> None:
    """Run the named steps (all by default), and merge their results into ``whole.json``."""
    file = folder / "whole.json"
    for name in names or list(STEPS):
        taken = run_step(name, folder)
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps({**kept, name: taken}, indent=1), encoding="utf-8")
        print(name, json.dumps(taken), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
