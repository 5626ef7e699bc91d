"""Compile an AOTInductor package from the program that an export wrote, for ``tiercel build-engines``."""

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

#: The serving host sets the number of threads, not the one that compiles.
OPTIONS = {"cpp.dynamic_threads": True}


def write_program(program: torch.export.ExportedProgram, folder: Path, bound: Bound) -> None:
    """Write a program, traced on the CPU, into an artefact's folder, for :func:`build_package`.

    Parameters
    ----------
    program
        The exported program.
    folder
        The artefact's folder.
    bound
        Names and dtypes of its inputs and names of its outputs; the checksum is filled in here.
    """
    file = folder / PROGRAM
    torch.export.save(program, str(file))
    msgspec.structs.replace(bound, network=network_sha256(file)).write(file)


def build_package(folder: Path, name: str, device: str, cache: Path | None = None) -> str:
    """Compile the program of a folder for a device of this machine, and describe the result.

    Parameters
    ----------
    folder
        The artefact's folder.
    name
        The name of the package's file.
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
        This torch can't read the program, or the compiler is missing or failed.
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
    """Report a package without its program as built, if it fits this torch and device."""
    bound = Bound.read(file)
    if (bound.version, bound.device) != (str(torch.__version__), here):
        raise ArtefactMissing(
            f"{file.parent / PROGRAM}: the program was left out of this copy, whose package is for torch "
            f"{bound.version} and {bound.device}, not for torch {torch.__version__} and {here}; run `tiercel "
            "build-engines` on the release that the copy was built of, or export again"
        )
    return "was built before"


def compile_program(program: torch.export.ExportedProgram, file: Path, what: str, where: str) -> None:
    """Compile a program into a package, for the device that the program is on.

    Parameters
    ----------
    program
        The program.
    file
        The package to write.
    what, where
        The model and the device, for messages.

    Raises
    ------
    EngineBuildFailed
        The compiler is missing or failed.
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
    """Load a program and move it to a device."""
    try:
        program = torch.export.load(str(file))
    except Exception as error:
        said = " ".join(str(error).strip().splitlines()[:2])
        raise EngineBuildFailed(
            f"{file}: torch {torch.__version__} reads no program that torch {written.version} exported "
            f"({said}); install that version here, or export with this one"
        ) from error
    if device != "cpu":
        # With the device's index, as tensors name it: to the pass, "cuda" alone is another device.
        program = move_to_device_pass(program, f"{device}:{torch.cuda.current_device()}")
        fuse_activations(program)
    return program


def _is(file: Path, bound: Bound) -> bool:
    """Return whether an existing package is the one that would be compiled."""
    there = file.is_file() and file.with_name(file.name + SUFFIX).is_file()
    return there and Bound.read(file) == bound


def _copy(source: Path, to: Path) -> None:
    for end in ("", SUFFIX):
        shutil.copyfile(source.with_name(source.name + end), to.with_name(to.name + end))
