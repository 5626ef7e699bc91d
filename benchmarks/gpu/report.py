"""The sizes of the benchmark, and its results as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.index import IndexRow
from benchmarks.gpu.model import Shape
from benchmarks.gpu.ranker import RankerRow
from benchmarks.gpu.search import SearchRow


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    shape: Shape
    rankers: Sequence[tuple[int, int]]
    forms: Sequence[str]
    items: Sequence[int]
    dimension: int
    precisions: Sequence[str]
    batches: Sequence[int]
    indexed: tuple[int, int, str]
    nprobes: Sequence[int]
    copied_bytes: int
    rounds: int
    seconds: float


ALL_FORMS = (
    *("eager", "torch.compile", "aoti", "aoti, CUDA graphs"),
    *("onnxruntime float32", "onnxruntime bfloat16", "onnxruntime float16"),
)

SIZES: Mapping[str, Size] = {
    "full": Size(
        Shape(),
        ((1, 128), (1, 256), (8, 256), (64, 512), (64, 1024)),
        ALL_FORMS,
        (1_000_000, 10_000_000, 50_000_000),
        128,
        ("float32", "float16"),
        (1, 8, 64),
        (10_000_000, 128, "IVF4096,PQ64"),
        (8, 32, 128),
        1 << 30,
        200,
        5.0,
    ),
    "tiny": Size(
        Shape(categories=50, dimension=8, hidden=(16,)),
        ((1, 16), (4, 16)),
        ("eager", "aoti, CUDA graphs"),
        (3_000,),
        16,
        ("float32", "float16"),
        (1, 4),
        (3_000, 16, "IVF16,Flat"),
        (2, 16),
        1 << 20,
        3,
        0.3,
    ),
}


@dataclass
class GpuReport:
    """The figures of each measured part, and the facts on which they depend (``head``)."""

    head: Mapping[str, Any]
    ranker: list[RankerRow] = field(default_factory=list)
    bandwidth_gb_s: float | None = None
    search: list[SearchRow] = field(default_factory=list)
    index: list[IndexRow] = field(default_factory=list)
    served: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            **self.head,
            "ranker": [
                {**row._asdict(), "times": None if row.times is None else row.times._asdict()}
                for row in self.ranker
            ],
            "bandwidth_gb_s": self.bandwidth_gb_s,
            "search": [row._asdict() for row in self.search],
            "index": [row._asdict() for row in self.index],
            "served": {name: dict(figures) for name, figures in self.served.items()},
        }

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [f"# {self.head['device_name']}, {self.head['date']}", "", f"`{self.head['command']}`", ""]
        if self.ranker:
            lines += ["| ranker | B × K | p50, µs | p99, µs | in a row, µs | from eager |"]
            lines += ["|---|---|---|---|---|---|", *map(_ranker_line, self.ranker), ""]
        if self.search:
            lines += [f"Copying within the device: {self.bandwidth_gb_s:,.1f} GB/s, read and written.", ""]
            lines += ["| items | precision | users | launches | p50, µs | over reading the vectors once |"]
            lines += ["|---|---|---|---|---|---|", *map(_search_line, self.search), ""]
        if self.index:
            lines += ["| items | index | nprobe | users | recall@200 | exact, µs | index, µs |"]
            lines += ["|---|---|---|---|---|---|---|", *map(_index_line, self.index), ""]
        if self.served:
            by = "served, µs, by perf_analyzer | of which the model | by the Python client"
            lines += [f"| target, engine | in one process, µs | {by} | answers a second to 8 |"]
            lines += ["|---|---|---|---|---|---|", *map(_served_line, self.served.items())]
        return "\n".join(lines).rstrip() + "\n"


def _ranker_line(row: RankerRow) -> str:
    at = f"| {row.form} | {row.users} × {row.kept} |"
    if row.times is None:
        return f"{at} not run: {row.reason.replace('|', '/')} | | | |"
    return f"{at} {' | '.join(f'{value:,.0f}' for value in row.times)} | {row.difference:.1e} |"


def _served_line(row: tuple[str, Mapping[str, float]]) -> str:
    name, one = row
    times = ("in_process_p50_us", "perf_analyzer_p50_us", "model_us", "p50_us", "answers_per_s_at_8")
    told = (f"{one[time]:,.0f}" if time in one else "" for time in times)
    return f"| {name} | {' | '.join(told)} |"


def _search_line(row: SearchRow) -> str:
    at = f"| {row.items:,} | {row.precision} | {row.users} | {row.launches} |"
    if row.p50_us is None:
        return f"{at} not run: {row.reason} | |"
    return f"{at} {row.p50_us:,.0f} | {row.over_bandwidth:.2f} |"


def _index_line(row: IndexRow) -> str:
    at = f"| {row.items:,} | {row.factory} | {row.nprobe} | {row.users} |"
    if row.recall is None:
        return f"{at} not run: {row.reason.replace('|', '/')} | | |"
    return f"{at} {row.recall:.3f} | {row.exact_us:,.0f} | {row.index_us:,.0f} |"
