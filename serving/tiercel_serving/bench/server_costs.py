"""What a server spends, without whoever asks it: processor time, memory, and where requests wait in it."""

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
    """Means over the requests of one Triton model, in microseconds; ``batch`` is rows for each run."""

    queue_us: float
    compute_us: float
    batch: float


def cpu_seconds(group: int) -> float:
    """Return the processor time of a server's processes so far: Triton and its stubs."""
    total = 0
    for pid in group_members(group):
        with suppress(OSError):
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total * _TICKS_S


def forget_peak(group: int) -> None:
    """Have the peak of each process's memory start from what it holds now."""
    for pid in group_members(group):
        with suppress(OSError):
            Path("/proc", str(pid), "clear_refs").write_text("5")


def peak_mb(group: int) -> float:
    """Return the largest resident memory of each process, summed: what they share counts for each."""
    total = 0
    for pid in group_members(group):
        with suppress(OSError):
            for line in Path("/proc", str(pid), "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1])
    return total / 1024


class Statistics:
    """Triton's own statistics of all models, as they were when this was made."""

    def __init__(self, url: str) -> None:
        with triton_grpc.InferenceServerClient(url) as client:
            models = client.get_inference_statistics().model_stats
        self._models: Mapping[str, Any] = {model.name: model for model in models}

    def since(self, before: Statistics) -> dict[str, StageTimes]:
        """Return the means of what was answered since, of models that ran themselves (ensembles do not)."""
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
