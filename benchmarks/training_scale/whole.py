"""From tables to every user's list: ``python -m benchmarks.training_scale.whole FOLDER [STEP …]``.

``FOLDER/data`` is what :mod:`benchmarks.training_scale.made` wrote. The steps are the commands that people
type, each in a process of its own: train (one epoch of each model; a training that was killed goes on),
export, verify, score; all that are not named are left out. ``FOLDER/whole.json`` holds what each took.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# This process stays small: the peak that the kernel tells of a process begins with its parent's.
_RECIPE = str(Path(__file__).with_name("recipe.py").resolve())

#: What is typed after ``tiercel``, in the folder.
STEPS = {
    "train": ("train", _RECIPE, "--data-dir=data", "--run=run", "--epochs=1", "--resume"),
    "export": ("export", "run", "--release=release", "--replace"),
    "verify": ("verify", "release"),
    "score": ("score", "release", "lists.parquet", "--overwrite"),
}


@dataclass
class Watch:
    """Wall time and the resident memory's peak, in bytes, by what a process says it is at."""

    pid: int
    at: str = "start"
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        """Look five times a second, until the process has ended."""
        seen = time.perf_counter()
        while held := self._resident():
            self.peaks[self.at] = max(self.peaks.get(self.at, 0), held)
            time.sleep(0.2)
            spent, seen = time.perf_counter() - seen, time.perf_counter()
            self.seconds[self.at] = round(self.seconds.get(self.at, 0.0) + spent, 1)

    def _resident(self) -> int:
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        except OSError:  # it has ended, and was waited for
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def hear(self, line: str) -> None:
        """Take a line of its progress, such as ``two_tower, fold 1 of 4 30%``."""
        found = re.fullmatch(r"  (\S.*?)( \d+%)?\n", line)
        self.at = found[1] if found else self.at


def run_step(name: str, folder: Path) -> dict[str, Any]:
    """Run one of the steps and return what it took; what it says goes to ``<name>.log``."""
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
        "peak_bytes": used.ru_maxrss * 1024,
        "steps_s": watch.seconds,
        "peaks_bytes": watch.peaks,
    }


def main(folder: Path, names: list[str]) -> None:
    """Run steps, all if none is named, and keep what each took beside what was kept before."""
    file = folder / "whole.json"
    for name in names or list(STEPS):
        taken = run_step(name, folder)
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps({**kept, name: taken}, indent=1), encoding="utf-8")
        print(name, json.dumps(taken), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
