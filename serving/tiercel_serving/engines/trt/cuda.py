"""The few CUDA runtime calls that a plan needs, through NVIDIA's bindings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import DeviceUnavailable


@dataclass(frozen=True)
class Device:
    """One GPU: its model, its compute capability such as ``8.9``, and its free memory in bytes."""

    name: str
    capability: str
    free_bytes: int

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def runtime() -> Any:
    """Return CUDA's runtime API, or raise ModuleNotFoundError if the bindings are not installed."""
    from cuda.bindings import runtime as cudart

    return cudart


def ask(cudart: Any, call: str, *arguments: Any) -> Any:
    """Call a function of the runtime, and return its value, or a tuple of them.

    Raises
    ------
    DeviceUnavailable
        CUDA returned an error; the message has its name.
    """
    error, *values = getattr(cudart, call)(*arguments)
    if int(error) != 0:
        if "MemoryAllocation" in error.name:
            raise DeviceUnavailable(
                f"{call} of {arguments[0]:,} bytes: the GPU's memory is full ({error.name}); stop what else "
                "runs on it, lower max_batch_size or the number of instances, or take a larger GPU"
            )
        raise DeviceUnavailable(
            f"{call}: CUDA answered {error.name}; see the driver's log (dmesg, nvidia-smi)"
        )
    return values[0] if len(values) == 1 else tuple(values)


def find_device(cudart: Any) -> Device:
    """Return the current device.

    Raises
    ------
    DeviceUnavailable
        There is no GPU, or its driver is older than this CUDA.
    """
    _, driver = cudart.cudaDriverGetVersion()
    _, library = cudart.cudaRuntimeGetVersion()
    error, count = cudart.cudaGetDeviceCount()
    # Without a driver, whose version is then 0, CUDA reports the same error.
    if driver and error.name == "cudaErrorInsufficientDriver":
        raise DeviceUnavailable(
            f"the GPU's driver supports CUDA {_version(driver)}, this process was built for "
            f"{_version(library)}; update the driver of the machine (not the container), or take a "
            "container of that CUDA"
        )
    if int(error) != 0 or not count:
        raise DeviceUnavailable(
            f"CUDA finds no GPU ({error.name}); run it on a machine with an NVIDIA GPU and its driver, and "
            "give the container the GPU (docker run --gpus all)"
        )
    properties = ask(cudart, "cudaGetDeviceProperties", ask(cudart, "cudaGetDevice"))
    free, _ = ask(cudart, "cudaMemGetInfo")
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Device(name, f"{properties.major}.{properties.minor}", int(free))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
