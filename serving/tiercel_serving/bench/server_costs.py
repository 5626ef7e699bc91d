"""A server's own costs, without the client's: processor time, memory, and where requests wait in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton_grpc

from ..supervise.guard import group_members

_TICKS_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class StageTimes:
    """Mean times of a request in one Triton model, in microseconds; ``batch`` is the mean rows per run."""

    queue_us: float
    compute_us: float
    batch: float


def cpu_seconds(group: int) -> float:
    """Return the seconds of processor time that the processes of a group (Triton, its stubs) used so far."""
    total = 0
    for pid in group_members(group):
        with suppress(OSError):
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total * _TICKS_S


def forget_peak(group: int) -> None:
    """Reset the peak resident memory of each process of a group to its current value."""
    for pid in group_members(group):
        with suppress(OSError):
            Path("/proc", str(pid), "clear_refs").write_text("5")


def peak_mb(group: int) -> float:
    """Return the sum over a group's processes of their peak resident memory, in MiB, shared pages in each."""
    total = 0
    for pid in group_members(group):
        with suppress(OSError):
            for line in Path("/proc", str(pid), "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1])
    return total / 1024


class Statistics:
    """A snapshot of Triton's statistics of all models, taken on construction."""

    def __init__(self, url: str) -> None:
        with triton_grpc.InferenceServerClient(url) as client:
            models = client.get_inference_statistics().model_stats
        self._models: Mapping[str, Any] = {model.name: model for model in models}

    def since(self, before: Statistics) -> dict[str, StageTimes]:
        """Return the means since an earlier snapshot, for each model that ran itself (ensembles do not)."""
        found = {}
        for name, now in self._models.items():
            then = before._models[name]
            count = now.inference_stats.queue.count - then.inference_stats.queue.count
            runs = now.execution_count - then.execution_count
            if count <= 0 or runs <= 0:
                continue

            def mean(part: str, now: Any = now, then: Any = then, count: int = count) -> float:
                spent = getattr(now.inference_stats, part).ns - getattr(then.inference_stats, part).ns
                return float(spent) / count / 1000

            compute = sum(mean(part) for part in ("compute_input", "compute_infer", "compute_output"))
            rows = now.inference_count - then.inference_count
            found[name] = StageTimes(mean("queue"), compute, rows / runs)
        return found
