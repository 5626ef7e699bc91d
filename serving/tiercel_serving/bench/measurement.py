"""One measurement of latency and throughput, and the median over several rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Measurement:
    """Latency and throughput during one period of load.

    Parameters
    ----------
    p50_us, p90_us, p99_us
        Latency of a request at the client, microseconds.
    throughput
        Requests answered a second, over all callers.
    """

    p50_us: float
    p90_us: float
    p99_us: float
    throughput: float

    @classmethod
    def from_latencies(cls, latencies_us: npt.ArrayLike, seconds: float) -> Measurement:
        """Summarise the latencies (microseconds) of the requests answered within ``seconds``."""
        values = np.asarray(latencies_us, dtype=np.float64)
        p50, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
        return cls(p50, p90, p99, len(values) / seconds)

    def to_json(self) -> dict[str, float]:
        """Return a JSON form, rounded to a tenth."""
        return {name: round(value, 1) for name, value in asdict(self).items()}


def median_of(rounds: Sequence[Measurement]) -> Measurement:
    """Return the median of each figure over rounds; one disturbed round does not move it."""
    return Measurement(**{f.name: median(getattr(m, f.name) for m in rounds) for f in fields(Measurement)})
