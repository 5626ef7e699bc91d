"""``python -m benchmarks.gpu``."""

from __future__ import annotations

import shlex
import sys
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.options import chosen
from tiercel_serving.commands.bench import write_whole
from tiercel_serving.commands.shell import Debug, Json, Refused, shell
from tiercel_serving.commands.tables import heading

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu.report import GpuReport, Size

NAME = "python -m benchmarks.gpu"
PARTS = ("ranker", "search", "index", "served")


def command(
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="full, or tiny for a try.")] = "full",
    device: Annotated[str, typer.Option("--device", metavar="cuda|cpu", help="Where it runs.")] = "cuda",
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="ranker, search, index, served; else all, if they can."),
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option("--form", help="Forms of the ranker, as the report names them; else all."),
    ] = None,
    release: Annotated[
        Path | None,
        typer.Option("--release", metavar="DIR", help="A release, to be served."),
    ] = None,
    artefacts: Annotated[
        Path | None,
        typer.Option("--artefacts", metavar="DIR", help="Where ONNX files lie, or shall be kept."),
    ] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Only write the ONNX files to --artefacts, and end.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.json", help="Write JSON here, Markdown beside it.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a ranker in every form, exact search, an index, and a served release, on a GPU.

    It needs torch, ONNX Runtime and what serves; what an export makes comes along: the ONNX files
    (`--prepare` writes them where onnxscript is installed) and the release.

    Example: [bold]python -m benchmarks.gpu --release releases/movielens --save gpu.json[/]
    """
    with shell(json=json, debug=debug) as sh:
        from rich.markup import escape
        from rich.text import Text

        from benchmarks.gpu.report import ALL_FORMS, SIZES

        sizes = SIZES[chosen("--size", [size], SIZES)[0]]
        if form:
            sizes = replace(sizes, forms=chosen("--form", form, ALL_FORMS))
        chosen("--device", [device], ("cuda", "cpu"))
        parts = chosen("--part", part, PARTS)
        if part and "served" in part and release is None:
            raise Refused("--part served: name a release with --release")
        with sh.work("Measuring", steps=False), tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if artefacts is None else artefacts
            if prepare:
                _prepare(sizes, artefacts)
                return
            typed = " ".join([NAME, shlex.join(sys.argv[1:])]).rstrip()
            report = measure(sizes, device, parts, release, folder, Path(temporary), typed, sh.note)
        document, text = report.to_json(), report.to_markdown()
        if save is not None:
            write_whole(save, document)
            save.with_suffix(".md").write_text(text, encoding="utf-8")
        sh.emit(document, heading("On a device"), Text(), escape(text))


def _prepare(size: Size, folder: Path | None) -> None:
    from benchmarks.gpu.ranker import PRECISIONS, prepare

    if folder is None:
        raise Refused("--prepare: say where with --artefacts")
    prepare(folder, size.shape, sorted({kept for _, kept in size.rankers}), tuple(PRECISIONS))


def measure(
    size: Size,
    device: str,
    parts: tuple[str, ...],
    release: Path | None,
    folder: Path,
    temporary: Path,
    command: str,
    note: Callable[[str], Any],
) -> GpuReport:
    """Measure the chosen parts; ``note`` is called with the name of the next step.

    Raises
    ------
    DeviceUnavailable
        There is no such device.
    """
    from benchmarks.gpu.index import measure_index
    from benchmarks.gpu.ranker import measure_ranker
    from benchmarks.gpu.report import GpuReport
    from benchmarks.gpu.search import bandwidth, measure_search
    from tiercel_serving.device.place_torch import Place

    place = Place(device)
    report = GpuReport(_head(command, device))
    with place.here():
        if "search" in parts:
            speed = bandwidth(device, size.copied_bytes)
            report.bandwidth_gb_s = speed / 1e9
            shapes = (size.items, size.dimension, size.precisions, size.batches)
            report.search += measure_search(*shapes, device, max(size.rounds // 4, 3), speed, note)
    if "index" in parts:
        shapes_of_index = (*size.indexed, size.nprobes, size.batches)
        report.index += measure_index(*shapes_of_index, device, max(size.rounds // 4, 3), note)
    if "ranker" in parts:
        shapes_of_ranker = (size.shape, size.rankers, size.forms)
        report.ranker += measure_ranker(*shapes_of_ranker, device, size.rounds, folder, note)
    if "served" in parts and release is not None:
        from benchmarks.gpu.served import measure_served

        note(f"{release}, served")
        there = temporary / "there"
        report.served = measure_served(release, there, device, size.rounds, size.seconds, note)
    return report


def _head(command: str, device: str) -> dict[str, Any]:
    import torch

    from tiercel_serving.bench.machine import describe_machine, installed_versions

    cuda = device == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": describe_machine(),
        "device": device,
        "device_name": torch.cuda.get_device_name() if cuda else describe_machine()["cpu"],
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "cuda": torch.version.cuda,
        "versions": installed_versions(("torch", "triton", "onnxruntime", "onnxruntime-gpu", "numpy")),
    }
