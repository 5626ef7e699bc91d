"""What AOTInductor compiles with and for on this machine. torch is imported by whoever asks."""

from __future__ import annotations

from ..errors import DeviceUnavailable

#: The program that a package for a GPU is compiled of, beside it: ``torch.export.save``.
PROGRAM = "program.pt2"


def device_name(device: str) -> str:
    """Return a device of this machine as packages are bound to it: a CPU's instructions, or a GPU's model.

    Raises
    ------
    DeviceUnavailable
        There is no GPU that torch can use.
    """
    import torch

    if device == "cpu":
        import platform

        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if not torch.cuda.is_available():
        raise DeviceUnavailable(
            f"engine 'aoti-cuda': torch {torch.__version__} finds no GPU ({_why_no_gpu()}); use a machine "
            "with an NVIDIA GPU, a driver for its CUDA and a CUDA build of torch, or take --engine aoti"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"


def _why_no_gpu() -> str:
    """Return what torch says of it: that its driver is too old, or that it was built without CUDA."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split()[:30])
    return "CUDA itself starts"


def no_compiler(device: str) -> str | None:
    """Return why AOTInductor can't compile for a device of this machine and what to do, or None."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        device_name(device)
        get_cpp_compiler()
    except DeviceUnavailable as error:
        return str(error)
    except (InvalidCxxCompiler, RuntimeError, OSError) as error:
        said = " ".join(str(error).split()[:12])
        return (
            f"engine 'aoti' compiles C++, and no compiler is found ({said}); install g++ (Debian: "
            "apt-get install g++), name one in CXX, or take --engine onnx"
        )
    return None
