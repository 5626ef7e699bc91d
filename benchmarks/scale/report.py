"""The scale benchmark's report: figures with their limits, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.scale.searching import Searched
from benchmarks.scale.sizes import SIZES
from tiercel_serving.bench.report import format_table

#: Limits: the least recall, the most time of a search relative to an exact scan, and the most time of
#: retrieval for a batch with one heavy user relative to one without.
RECALL, SCAN, HEAVY = 0.99, 1.2, 1.5
#: The largest size, and limits on it alone: bytes of an export beyond the caller's frames, seconds to the
#: first answer, and time of a search relative to an unmasked one (with the most excluded items, and with any
#: other mask).
LARGE, EXPORT_BYTES, OPEN_S, EXCLUDED, MASKED = "S2", 4e9, 3.0, 10.0, 5.0
#: Sizes at which a search is compared with a scan; at smaller sizes any search is fast.
SEARCHED = ("S1", "S2")
#: Limits: an instance's private memory relative to the release (largest size only), one answer relative to
#: that of the smallest size, and milliseconds that excluded text ids add to a served answer.
PRIVATE, FLAT, EXCLUDED_MS = 0.15, 1.5, 2.0


@dataclass(frozen=True)
class Measured:
    """Measurements of one size.

    Parameters
    ----------
    size, index
        The size's name, and the index type of the release.
    release_bytes
        Size of the release's files.
    export, opening, answers, served
        Results of the modules ``exporting``, ``opening``, ``answering`` and ``serving``.
    text_ids
        Whether ids are text.
    source
        The manifest's entry of the index.
    searches
        Each index type under each mask.
    """

    size: str
    index: str
    release_bytes: int
    export: Mapping[str, Any]
    opening: Mapping[str, float]
    answers: Mapping[str, float]
    served: Mapping[str, float]
    text_ids: bool
    source: Mapping[str, Any]
    searches: Sequence[Searched]


@dataclass(frozen=True)
class Figure:
    """One figure with its limit.

    Parameters
    ----------
    what
        Human-readable description.
    value, limit
        The figure, and its upper limit, or its lower limit if ``least``.
    """

    what: str
    value: float
    limit: float
    least: bool = False

    @property
    def ok(self) -> bool:
        """Whether it is within its limit."""
        return self.value >= self.limit if self.least else self.value <= self.limit

    def row(self) -> list[str]:
        """Return the cells of a table row."""
        bound = f"at {'least' if self.least else 'most'} {self.limit:g}"
        return [self.what, f"{self.value:.4g}", bound, "ok" if self.ok else "MISSED"]


@dataclass(frozen=True)
class ScaleReport:
    """All results of one run of the scale benchmark: ``facts`` of the machine and versions, and sizes."""

    facts: Mapping[str, Any]
    sizes: Mapping[str, Measured]

    def figures(self) -> list[Figure]:
        """Return every figure that has a limit."""
        found = [figure for measured in self.sizes.values() for figure in _figures(measured)]
        names = [name for name in self.sizes if name != "tiny"]
        if len(names) > 1:
            first, last = self.sizes[names[0]], self.sizes[names[-1]]
            what = f"{last.size} {last.index} / {first.size} {first.index}: an answer to one user"
            found.append(Figure(what, last.answers["one"] / first.answers["one"], FLAT))
            found.append(Figure(f"{what}, served", last.served["one"] / first.served["one"], FLAT))
        return found

    @property
    def ok(self) -> bool:
        """Whether every figure is within its limit."""
        return all(figure.ok for figure in self.figures())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        figures = [{**asdict(figure), "ok": figure.ok} for figure in self.figures()]
        sizes = {name: {**asdict(SIZES[name]), **asdict(one)} for name, one in self.sizes.items()}
        return {**self.facts, "sizes": sizes, "figures": figures, "ok": self.ok}


def _figures(one: Measured) -> Iterator[Figure]:
    large = one.size == LARGE
    if large:
        yield Figure(
            f"{one.size}: GB of an export beyond the frames",
            one.export["peak_bytes"] / 1e9,
            EXPORT_BYTES / 1e9,
        )
        yield Figure(f"{one.size}: seconds to the first answer", one.opening["seconds"], OPEN_S)
        share = one.opening["private_bytes"] / one.release_bytes
        yield Figure(f"{one.size}: private memory of an instance / release", share, PRIVATE)
    if one.size == "tiny":
        # Times at this size are too short to mean anything.
        return
    ratio = one.answers["heavy_retrieval"] / one.answers["batch_retrieval"]
    yield Figure(f"{one.size}: retrieval of a batch with a heavy user / without", ratio, HEAVY)
    if one.text_ids:
        added = (one.served["excluded"] - one.served["one"]) / 1000
        yield Figure(f"{one.size}: ms that excluded ids add to a served answer", added, EXCLUDED_MS)
    for found in one.searches:
        if found.refused:
            continue
        what = f"{one.size} {found.index}, {found.mask}"
        yield Figure(f"{what}: recall", found.recall, RECALL, least=True)
        if found.index == "Flat" or one.size not in SEARCHED:
            continue
        yield Figure(f"{what}: search / scan", found.us / found.scan_us, SCAN)
        if large and found.mask != "none":
            most = found.mask.startswith(f"{SIZES[one.size].hidden[1]:,} best")
            limit = EXCLUDED if most else MASKED
            yield Figure(f"{what}: search / unmasked", found.us / found.unmasked_us, limit)


def format_scale(report: ScaleReport) -> str:
    """Return the report as tables."""
    parts = [_whole(list(report.sizes.values()))]
    for one in report.sizes.values():
        rows = [
            [
                s.index,
                s.mask,
                *(["refused", "", ""] if s.refused else [f"{s.recall:.4f}", _ms(s.us), _ms(s.scan_us)]),
            ]
            for s in one.searches
        ]
        parts.append(
            f"{one.size}\n" + format_table(["index", "mask", "recall", "search ms", "scan ms"], rows)
        )
    if figures := report.figures():
        parts.append(format_table(["figure", "", "limit", ""], [figure.row() for figure in figures]))
    return "\n\n".join(parts)


def _whole(sizes: Sequence[Measured]) -> str:
    head = ["size", "index", "export s", "peak GB", "release GB", "open s", "private MB"]
    head += ["1 user ms", "served ms", "64: a user µs", "with a heavy one"]
    rows = [
        [
            *(one.size, one.index, f"{one.export['seconds']:.1f}", f"{one.export['peak_bytes'] / 1e9:.2f}"),
            *(f"{one.release_bytes / 1e9:.3f}", f"{one.opening['seconds']:.2f}"),
            *(f"{one.opening['private_bytes'] / 1e6:.1f}", _ms(one.answers["one"]), _ms(one.served["one"])),
            *(f"{one.answers['batch']:.0f}", f"{one.answers['heavy']:.0f}"),
        ]
        for one in sizes
    ]
    return format_table(head, rows)


def _ms(us: float) -> str:
    return f"{us / 1000:.3f}"
