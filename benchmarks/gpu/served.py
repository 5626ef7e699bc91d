"""A release in one process and on Triton, its stages on the device, beside the same release on the CPU.

The release comes along: one of target ``cpu`` with engine ``onnx``, or of target ``gpu`` whose engines
``tiercel build-engines`` has compiled here. Its artefacts are those of the other forms: only manifest and
configs are written anew, in copies that share them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.engines.run import analyse_all, ask_all, median_us, serve_all
from tiercel_serving.bench.perf_analyzer import PerfAnalyzer, find_perf_analyzer
from tiercel_serving.commands.serve import example_user
from tiercel_serving.commands.shell import Refused
from tiercel_serving.engines.table import ENGINES
from tiercel_serving.errors import PerfAnalyzerMissing, TiercelError
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.release.writing import write_manifest
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.repository.targets import FUSED
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.stages.engine import engine_names
from tiercel_serving.verify.golden import StoredGolden

#: Device → the forms that are measured there, each a target and an engine.
FORMS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "cpu": (("cpu", "onnx"), ("torch", "onnx")),
    "cuda": (("cpu", "onnx"), ("gpu", "onnx-cuda"), ("gpu", "aoti-cuda")),
}

#: Requests to one server before the next has its turn, as a caller has it who asks again and again: a server
#: that slept a few milliseconds, while others were asked, takes longer.
IN_A_ROW = 50

#: What a served answer gives.
ANSWER = ("item_id", "score", "count", "status")


def forms(path: Path, folder: Path, device: str) -> Iterator[tuple[str, Release]]:
    """Yield the release in each form whose engines' files it has, with what the form is called.

    Raises
    ------
    Refused
        It has an ONNX file for none of its engines.
    """
    opened = open_release(path)
    names = engine_names(opened)
    for target, engine in FORMS[device]:
        files = [path / "artefacts" / name / ENGINES.find(engine).file for name in names]
        if all(file.is_file() for file in files):
            name = f"{target}, {engine}"
            yield name, changed(opened, folder / f"{target}-{engine}", target, engine)
        elif engine == "onnx":
            missing = ", ".join(str(file) for file in files if not file.is_file())
            raise Refused(f"--release {path}: there is no {missing}; give one of --engine onnx or aoti-cuda")


def changed(release: Release, folder: Path, target: str, engine: str) -> Release:
    """Return the release for another target and engine, in a folder that links its artefacts."""
    manifest = release.manifest
    shutil.copytree(release.path / "artefacts", folder / "artefacts", copy_function=os.link)
    replace = msgspec.structs.replace
    other = replace(
        manifest,
        target=target,
        layout=FUSED,
        queries={name: replace(model, engine=engine) for name, model in manifest.queries.items()},
        ranking=None if manifest.ranking is None else replace(manifest.ranking, engine=engine),
    )
    render_repository(Release(folder, other), folder / "triton", FUSED)
    write_manifest(folder, other)
    return open_release(folder)


def measure_served(
    path: Path, folder: Path, device: str, rounds: int, seconds: float, note: Callable[[str], Any]
) -> dict[str, Any]:
    """Return by form the median answer to one user, in one process and served, and the rate to eight.

    ``note`` is told of a form that can't run here, and why.
    """
    opened = open_release(path)
    known, (golden, _) = example_user(opened), StoredGolden(opened).tensors("answers")
    user = known.encode() if isinstance(known, str) else known
    arrays = {"user_id": np.array([[user]], dtype=golden["user_id"].dtype)}
    releases, calls = dict[str, Release](), dict[str, Callable[[], Any]]()
    for name, release in forms(path, folder, device):
        chain = _opened(name, release, note)
        if chain is not None:
            releases[name], calls[name] = release, partial(chain.run, arrays, ANSWER)
    inside = median_us(calls, rounds, warm=max(20, rounds // 10))
    calls.clear()
    paths = {name: release.path for name, release in releases.items()}
    analyzer = _analyzer(note)
    with serve_all(paths) as servers:
        asked = ask_all(servers, max(rounds // IN_A_ROW, 3), seconds, IN_A_ROW)
        analysed = {} if analyzer is None else analyse_all(servers, analyzer, seconds)
    return {
        name: {"in_process_p50_us": inside[name], **asked[name], **analysed.get(name, {})}
        for name in releases
    }


def _analyzer(note: Callable[[str], Any]) -> PerfAnalyzer | None:
    try:
        return find_perf_analyzer()
    except PerfAnalyzerMissing as error:
        note(f"without perf_analyzer: {error}")
        return None


def _opened(name: str, release: Release, note: Callable[[str], Any]) -> Chain | None:
    try:
        return Chain.open(release)
    except TiercelError as error:
        note(f"{name}: not run: {error}")
        return None
