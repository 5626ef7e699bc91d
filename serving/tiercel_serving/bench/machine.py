"""Describe what a benchmark's figures depend on: the processor, the system and the versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton_grpc

from ..release.writing import version
from ..supervise.awake import is_awake


def describe_machine() -> dict[str, Any]:
    """Return the CPU's name, the number of cores, the system and the Python version of this machine.

    ``awake`` is among them, and True, if its processors are kept awake (``supervise/awake.py``).
    """
    return {
        **({"awake": True} if is_awake() else {}),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: found for name in packages if (found := version(name)) is not None}


def triton_version(url: str) -> str:
    """Return the version of the Triton server at ``url``, ``host:port`` of gRPC."""
    with triton_grpc.InferenceServerClient(url) as client:
        metadata = client.get_server_metadata(client_timeout=5.0)
    return str(metadata.version)
