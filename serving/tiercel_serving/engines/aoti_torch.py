"""A package of AOTInductor, compiled of the program that an export wrote: for ``tiercel build-engines``."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path

import msgspec
import torch
from torch.export.passes import move_to_device_pass

from ..errors import ArtefactCorrupt, ArtefactMissing, EngineBuildFailed
from .bound import SUFFIX, Bound
from .compiler import PROGRAM, device_name, no_compiler
from .epilogues_torch import fuse_activations
from .trt.build import network_sha256

#: Threads are a matter of the host that serves, not of the one that compiles.
OPTIONS = {"cpp.dynamic_threads": True}


def write_program(program: torch.export.ExportedProgram, folder: Path, bound: Bound) -> None:
    """Write a program, traced on the CPU, into an artefact's folder, for :func:`build_package`.

    Parameters
    ----------
    program
        What was exported.
    folder
        The artefact's.
    bound
        Names and dtypes of its inputs and outputs; its checksum is filled in.
    """
    file = folder / PROGRAM
    torch.export.save(program, str(file))
    msgspec.structs.replace(bound, network=network_sha256(file)).write(file)


def build_package(folder: Path, name: str, device: str, cache: Path | None = None) -> str:
    """Compile the program of a folder for a device of this machine, and say what came of it.

    Parameters
    ----------
    folder
        The artefact's folder.
    name
        The package's file.
    device
        ``cpu`` or ``cuda``.
    cache
        A folder that keeps packages by torch version, device and program; None keeps nothing.

    Raises
    ------
    DeviceUnavailable
        There is no such device.
    ArtefactCorrupt
        The program was changed after its export.
    ArtefactMissing
        This is a built copy without its program, and its package is for another torch or device.
    EngineBuildFailed
        This torch reads no such program, there is no compiler, or it failed.
    """
    here, program, file = device_name(device), folder / PROGRAM, folder / name
    if not program.is_file():
        return _built_elsewhere(file, here)
    written, digest = Bound.read(program), network_sha256(program)
    if digest != written.network:
        raise ArtefactCorrupt(f"{program}: it was changed after its export; export again")
    version = str(torch.__version__)
    bound = Bound("torch", version, here, written.inputs, written.outputs, digest)
    if _is(file, bound):
        return "was built before"
    stored = None
    if cache is not None:
        key = hashlib.sha256("\n".join((version, here, digest)).encode()).hexdigest()[:32]
        stored = cache / key / name
        if _is(stored, bound):
            _copy(stored, file)
            return "from the cache"
    compile_program(_read(program, written, device), file, folder.name, here)
    bound.write(file)
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        _copy(file, stored)
    return f"compiled for {here}, {file.stat().st_size / 1e6:.1f} MB"


def _built_elsewhere(file: Path, here: str) -> str:
    """Say that a package without its program was built, if it fits here."""
    bound = Bound.read(file)
    if (bound.version, bound.device) != (str(torch.__version__), here):
        raise ArtefactMissing(
            f"{file.parent / PROGRAM}: the program was left out of this copy, whose package is for torch "
            f"{bound.version} and {bound.device}, not for torch {torch.__version__} and {here}; run `tiercel "
            "build-engines` on the release that the copy was built of, or export again"
        )
    return "was built before"


def compile_program(program: torch.export.ExportedProgram, file: Path, what: str, where: str) -> None:
    """Write a program's package for the device that it is on.

    Raises
    ------
    EngineBuildFailed
        There is no compiler, or it failed.
    """
    missing = no_compiler("cpu")
    if missing is not None:
        raise EngineBuildFailed(f"{what}: {missing}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(file.resolve()), inductor_configs=dict(OPTIONS)
            )
    except Exception as error:
        said = " ".join(str(error).strip().splitlines()[:3])
        raise EngineBuildFailed(
            f"{what}: AOTInductor could not compile the model for {where}: {said}; take --engine onnx"
        ) from error


def _read(file: Path, written: Bound, device: str) -> torch.export.ExportedProgram:
    """Return the program on a device."""
    try:
        program = torch.export.load(str(file))
    except Exception as error:
        said = " ".join(str(error).strip().splitlines()[:2])
        raise EngineBuildFailed(
            f"{file}: torch {torch.__version__} reads no program that torch {written.version} exported "
            f"({said}); install that version here, or export with this one"
        ) from error
    if device != "cpu":
        # With its number, as tensors name it: "cuda" alone is another device to the pass.
        program = move_to_device_pass(program, f"{device}:{torch.cuda.current_device()}")
        fuse_activations(program)
    return program


def _is(file: Path, bound: Bound) -> bool:
    """Whether a package that lies there is the one that would be compiled."""
    there = file.is_file() and file.with_name(file.name + SUFFIX).is_file()
    return there and Bound.read(file) == bound


def _copy(source: Path, to: Path) -> None:
    for end in ("", SUFFIX):
        shutil.copyfile(source.with_name(source.name + end), to.with_name(to.name + end))
