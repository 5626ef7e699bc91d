"""The compiler and the devices of this machine for AOTInductor; torch is imported only on use."""

from __future__ import annotations

from ..errors import DeviceUnavailable

#: The program beside a GPU's package, from which it is compiled (written by ``torch.export.save``).
PROGRAM = "program.pt2"


def device_name(device: str) -> str:
    """Return the name that binds packages to a device: a CPU's instruction set, or a GPU's model.

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
    """Return torch's reason, such as a driver that is too old, or a build without CUDA."""
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
