"""A script that acts as one more instance of a stage, run by ``opening.py`` in its own process.

``python instance.py PROGRAM ASKED.json`` opens the artefact, looks up the strings of a JSON list, prints
one JSON object, and stays until its standard input ends. It imports only what a stage imports.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from tiercel_serving.columns import Column
from tiercel_serving.features import FeatureProgram
from tiercel_serving.release.artefacts import open_artefact

#: Number of batches of one row.
SINGLES = 100


def measure(program_path: Path, texts: list[str]) -> dict[str, float]:
    """Open the artefact as a stage does, look up strings, and return times, memory and the lowest id."""
    asked = np.array([text.encode() for text in texts], np.object_)
    before = anonymous_bytes()
    begin = time.perf_counter()
    program = FeatureProgram.open(open_artefact(program_path, "features"))
    opened = time.perf_counter()
    name = program.inputs[0].name
    program.packed({name: Column(asked[:1])}, 1)
    answered = time.perf_counter()
    ids = program.packed({name: Column(asked)}, len(asked))["user_cat"]
    for place in range(SINGLES):
        program.packed({name: Column(asked[place : place + 1])}, 1)
    return {
        "open_s": opened - begin,
        "first_row_us": (answered - opened) * 1e6,
        "private_bytes": max(anonymous_bytes() - before, 0),
        "lowest_id": int(ids.min()),
    }


def anonymous_bytes() -> int:
    """Return how many bytes of this process's memory no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith("Anonymous:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))), flush=True)
    sys.stdin.read()
