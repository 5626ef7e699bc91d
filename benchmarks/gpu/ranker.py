"""The ranker in each of its forms, at each shape: latency, throughput, and difference from eager."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.model import INPUTS, Ranker, Shape, example
from benchmarks.gpu.timing import Times, measure

#: A function that runs the ranker on named tensors.
Run = Callable[[Mapping[str, Tensor]], Tensor]

#: Precision of an ONNX file → its dtype.
PRECISIONS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

OUTPUT = "rank_score"


class RankerRow(NamedTuple):
    """One form at one shape; if it could not run, ``reason`` replaces times and difference."""

    form: str
    users: int
    kept: int
    times: Times | None
    difference: float | None
    reason: str = ""


def onnx_file(folder: Path, precision: str, kept: int) -> Path:
    """Return the ONNX file of the ranker of K candidates."""
    return folder / f"ranker-{kept}-{precision}.onnx"


def prepare(folder: Path, shape: Shape, kept: Sequence[int], precisions: Sequence[str]) -> None:
    """Write the ranker as ONNX for each K and precision, for use on a machine without ``onnxscript``."""
    folder.mkdir(parents=True, exist_ok=True)
    for precision in precisions:
        model = _model(shape, "cpu").to(PRECISIONS[precision])
        for count in kept:
            batch = torch.export.Dim("batch", min=1, max=1024)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    model,
                    (),
                    str(onnx_file(folder, precision, count)),
                    kwargs=example(shape, 2, count, "cpu"),
                    input_names=list(INPUTS),
                    output_names=[OUTPUT],
                    dynamic_shapes={name: {0: batch} for name in INPUTS},
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )


def _model(shape: Shape, device: str) -> Ranker:
    torch.manual_seed(0)
    return Ranker(shape).eval().requires_grad_(False).to(device)


def measure_ranker(
    shape: Shape,
    sizes: Sequence[tuple[int, int]],
    forms: Sequence[str],
    device: str,
    rounds: int,
    folder: Path,
    progress: Callable[[str], None],
) -> Iterator[RankerRow]:
    """Measure each form at each ``[B, K]``.

    Parameters
    ----------
    shape
        Size of the ranker.
    sizes
        Pairs of B users and K candidates.
    forms
        Keys of :data:`FORMS`.
    device
        ``cpu`` or ``cuda``.
    rounds
        Number of calls of each form at each size.
    folder
        Folder of ONNX files and compiled packages; missing ones are written there.
    progress
        Called with the name of the next step.
    """
    model = _model(shape, device)
    for kept in dict.fromkeys(count for _, count in sizes):
        for form in forms:
            progress(f"{form}, K = {kept}")
            batches = [users for users, count in sizes if count == kept]
            try:
                run = FORMS[form](model, shape, kept, device, folder)
            except Exception as error:  # such as a missing package; the report says so
                reason = _first_line(error)
                yield from (RankerRow(form, users, kept, None, None, reason) for users in batches)
                continue
            for users in batches:
                yield _row(form, run, model, example(shape, users, kept, device), device, rounds)


def _row(
    form: str, run: Run, model: Ranker, given: Mapping[str, Tensor], device: str, rounds: int
) -> RankerRow:
    users, kept = given["kept_score"].shape
    try:
        with torch.inference_mode():
            difference = float((run(given) - model(**given)).abs().max())
            times = measure(lambda: run(given), device, rounds)
    except Exception as error:
        return RankerRow(form, users, kept, None, None, _first_line(error))
    return RankerRow(form, users, kept, times, difference)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()[:25])}"


# ------------------------------------------------------------------------------------------------- forms


def _eager(model: Ranker, shape: Shape, kept: int, device: str, folder: Path) -> Run:
    return lambda given: model(**given)


def _compiled(model: Ranker, shape: Shape, kept: int, device: str, folder: Path) -> Run:
    compiled = torch.compile(copy.deepcopy(model), dynamic=False)
    return lambda given: compiled(**given)


def _aoti(graphs: bool) -> Callable[..., Run]:
    def make(model: Ranker, shape: Shape, kept: int, device: str, folder: Path) -> Run:
        if graphs and device != "cuda":
            raise RuntimeError("CUDA graphs need a GPU")
        loader = _package(model, shape, kept, device, folder)
        run: Any = loader.run
        if not graphs:
            return lambda given: run([given[name] for name in INPUTS])[0]
        from tiercel_serving.device.graphs_torch import GraphedRun, lasting, one_instance

        run = GraphedRun(loader.run, one_instance())
        # Earlier stages leave tensors in lasting memory, from which the graph reads them without a copy.
        return lambda given: run([lasting(given[name]) for name in INPUTS])[0]

    return make


def _package(model: Ranker, shape: Shape, kept: int, device: str, folder: Path) -> Any:
    """Return the loaded package for one K, compiled as in an export unless the device's file exists."""
    from tiercel_serving.engines.aoti import load_package
    from tiercel_serving.engines.aoti_torch import build_package, write_program
    from tiercel_serving.engines.bound import Bound
    from tiercel_serving.engines.compiler import PROGRAM

    folder = folder / f"ranker-{kept}"
    if not (folder / PROGRAM).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        batch, shown = torch.export.Dim("batch", min=1, max=1024), example(shape, 2, kept, "cpu")
        program = torch.export.export(
            copy.deepcopy(model).to("cpu"),
            (),
            shown,
            dynamic_shapes={name: {0: batch} for name in INPUTS},
        )
        dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in shown.items()}
        write_program(program, folder, Bound("torch", str(torch.__version__), "any", dtypes, (OUTPUT,)))
    file = folder / f"{device}.pt2"
    build_package(folder, file.name, device)
    return load_package(file, device)


def _onnx(precision: str) -> Callable[..., Run]:
    def make(model: Ranker, shape: Shape, kept: int, device: str, folder: Path) -> Run:
        from tiercel_serving.engines.table import ENGINES

        file = onnx_file(folder, precision, kept)
        if not file.is_file():
            prepare(folder, shape, (kept,), (precision,))
        kind: Any = ENGINES.find({"cpu": "onnx", "cuda": "onnx-cuda"}[device])
        engine = kind.open(file, (OUTPUT,), threads=1)
        return lambda given: engine.run_tensors(given)[OUTPUT]

    return make


#: Form → function that makes its ``Run``.
FORMS: Mapping[str, Callable[..., Run]] = {
    "eager": _eager,
    "torch.compile": _compiled,
    "aoti": _aoti(graphs=False),
    "aoti, CUDA graphs": _aoti(graphs=True),
    **{f"onnxruntime {precision}": _onnx(precision) for precision in PRECISIONS},
}
