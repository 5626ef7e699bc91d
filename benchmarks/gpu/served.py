"""A release on Triton with its stages on the device, beside the same release on the CPU.

The release comes along: it was exported for target ``cpu`` with engine ``onnx``, whose files are those of
``torch`` and of ``gpu`` with ``onnx-cuda``. Only manifest and configs are written anew, in a copy that shares
the artefacts.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.engines.run import served
from tiercel_serving.commands.shell import Refused
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.release.writing import write_manifest
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.repository.targets import FUSED

#: Device → target, and the engine that reads the same ONNX file there.
TARGETS = {"cpu": ("torch", "onnx"), "cuda": ("gpu", "onnx-cuda")}


def retargeted(path: Path, folder: Path, device: str) -> Release:
    """Return the release as one whose stages run on a device, in a folder that links its artefacts.

    Raises
    ------
    Refused
        Its engines are of another kind than ``onnx``.
    """
    opened = open_release(path)
    manifest, (target, engine) = opened.manifest, TARGETS[device]
    engines = {model.engine for model in manifest.queries.values()}
    if manifest.ranking is not None:
        engines.add(manifest.ranking.engine)
    other = sorted(engines - {"onnx"})
    if other:
        raise Refused(f"--release {path}: its engines are {', '.join(other)}; give one of --engine onnx")
    shutil.copytree(path / "artefacts", folder / "artefacts", copy_function=os.link)
    changed = msgspec.structs.replace(
        manifest,
        target=target,
        layout=FUSED,
        queries={
            name: msgspec.structs.replace(model, engine=engine) for name, model in manifest.queries.items()
        },
        ranking=manifest.ranking and msgspec.structs.replace(manifest.ranking, engine=engine),
    )
    render_repository(Release(folder, changed), folder / "triton", FUSED)
    write_manifest(folder, changed)
    return open_release(folder)


def measure_served(path: Path, folder: Path, device: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the median answer and the rate of both, by target."""
    there = retargeted(path, folder, device)
    paths = {open_release(path).manifest.target: path, there.manifest.target: there.path}
    return served(paths, rounds, seconds)
