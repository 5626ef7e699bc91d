"""A release in one process and on Triton, with its stages on the device or on the CPU.

The caller provides the release, which has target ``cpu`` and engine ``onnx``, or target ``gpu`` and engines
that ``tiercel build-engines`` has compiled on this machine. Each form is a copy that links the release's
artefacts and has its own manifest and configs.
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

#: Device → the forms measured on it, each a target and an engine.
FORMS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "cpu": (("cpu", "onnx"), ("torch", "onnx")),
    "cuda": (("cpu", "onnx"), ("gpu", "onnx-cuda"), ("gpu", "aoti-cuda")),
}

#: Number of consecutive requests to one server before the next server, as from a busy caller. A server that
#: has idled for a few milliseconds, while others were measured, takes longer.
IN_A_ROW = 50

#: Outputs of a served answer.
ANSWER = ("item_id", "score", "count", "status")


def forms(path: Path, folder: Path, device: str) -> Iterator[tuple[str, Release]]:
    """Yield the name and release of each form for which the release has engine files.

    Raises
    ------
    Refused
        An ONNX file of a model is missing.
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
    """Return each form's median latency for one user, in one process and served, and the rate to 8 callers.

    Latencies are in microseconds, the rate is in answers per second. ``note`` is called with the name of a
    form that can't run on this machine, and the reason.
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
