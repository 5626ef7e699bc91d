"""The feature benchmark's report: figures with their limits, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.features.against import Against
from benchmarks.features.lookups import BATCH, Flat, Gather, Hash, ns_a_key
from benchmarks.features.one_row import OneRow
from benchmarks.features.opening import OPEN_LIMIT_S, PRIVATE_LIMIT, Opening
from benchmarks.features.served import MODELS, Served
from tiercel_serving.bench.report import format_table


@dataclass(frozen=True)
class FeatureReport:
    """All results of one run of the feature benchmark.

    Parameters
    ----------
    facts
        Date, command, machine and versions, on which the figures depend.
    cases
        Case → description.
    against
        Times of the program and ``Workflow.transform``, by case and batch.
    one_row
        The same for one row of a run's workflow, by part.
    gathers, hashes, flats, openings
        Costs of vocabularies.
    served
        Tiercel and Merlin Systems in one Triton, by case.
    missing
        Part that was not measured → reason.
    """

    facts: Mapping[str, Any]
    cases: Mapping[str, str] = field(default_factory=dict)
    against: Sequence[Against] = ()
    one_row: Sequence[OneRow] = ()
    gathers: Sequence[Gather] = ()
    hashes: Sequence[Hash] = ()
    flats: Sequence[Flat] = ()
    openings: Sequence[Opening] = ()
    served: Sequence[Served] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> list[Any]:
        """Every figure."""
        return [
            *self.against,
            *self.one_row,
            *self.gathers,
            *self.hashes,
            *self.flats,
            *self.openings,
            *self.served,
        ]

    @property
    def ok(self) -> bool:
        """Whether every measured figure is within its limit."""
        return all(figure.ok for figure in self.figures)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form with medians and the rounds behind them."""
        groups = ("against", "one_row", "gathers", "hashes", "flats", "openings", "served")
        return {
            **self.facts,
            "cases": dict(self.cases),
            **{group: [figure.to_json() for figure in getattr(self, group)] for group in groups},
            "not_measured": dict(self.missing),
            "ok": self.ok,
        }


def format_features(report: FeatureReport) -> str:
    """Return the report as plain text tables."""
    parts = [
        _cases(report),
        _against_table(report.against),
        _one_row_table(report.one_row),
        _vocabulary_table(report),
        _flat_table(report.flats),
        _served_table(report.served),
        "\n".join(f"Not measured: {what}: {why}" for what, why in report.missing.items()),
    ]
    return "\n\n".join(part for part in parts if part)


def _cases(report: FeatureReport) -> str:
    width = max(map(len, report.cases), default=0)
    return "\n".join(f"  {name:<{width}}  {says}" for name, says in report.cases.items())


def _against_table(figures: Sequence[Against]) -> str:
    if not figures:
        return ""
    rows = [
        [
            figure.case,
            f"{figure.batch:,}",
            duration(figure.transform.us),
            duration(figure.program.us),
            f"{figure.ratio:,.0f}",
            duration(figure.from_tensors.us),
            duration(figure.from_frame.us),
            _against_limits(figure),
        ]
        for figure in figures
    ]
    head = [
        "case",
        "rows",
        "transform",
        "program",
        "times",
        "from tensors",
        "from frame",
        "limits",
    ]
    return (
        "One process, medians: Workflow.transform of a frame, the program on columns that are ready, and\n"
        "the program with all that comes before it, from Triton's arrays and from the same frame:\n"
        + format_table(head, rows, left=(0, 7))
    )


def _one_row_table(figures: Sequence[OneRow]) -> str:
    if not figures:
        return ""
    rows = [
        [
            figure.part,
            str(figure.columns),
            duration(figure.program_us),
            duration(figure.transform_us),
            f"{figure.ratio:,.0f}",
            _limit("at least", figure.limit, "times", figure.ok),
        ]
        for figure in figures
    ]
    head = ["part", "columns", "program", "transform", "times", "limit"]
    return "One row of the run's workflow, medians:\n" + format_table(head, rows, left=(0, 5))


def _against_limits(figure: Against) -> str:
    texts = []
    if figure.limit is not None:
        texts.append(f"at least {figure.limit:.0f} times: {verdict(figure.ratio >= figure.limit)}")
    if figure.aim_us is not None:
        texts.append(f"at most {figure.aim_us:.0f} µs: {verdict(figure.program.us <= figure.aim_us)}")
    return "; ".join(texts)


def _vocabulary_table(report: FeatureReport) -> str:
    rows = [*map(_gather_row, report.gathers), *map(_hash_row, report.hashes)]
    for opening in report.openings:
        rows += _opening_rows(opening)
    if not rows:
        return ""
    return "Vocabularies:\n" + format_table(["", "measured", "limit"], rows, left=(0, 1, 2))


def _gather_row(figure: Gather) -> list[str]:
    measured = (
        f"{duration(figure.encode.us)}, bare table[index] {duration(figure.bare.us)}: "
        f"{figure.ratio:.2f} times (the whole program {duration(figure.program.us)})"
    )
    name = f"direct tables, {figure.columns} columns, {BATCH:,} rows"
    return [name, measured, _limit("at most", figure.limit, "times", figure.ok)]


def _hash_row(figure: Hash) -> list[str]:
    measured = (
        f"{ns_a_key(figure.lookup):.0f} ns a key, pandas get_indexer {ns_a_key(figure.pandas):.0f} ns: "
        f"{figure.ratio:.1f} times faster"
    )
    name = f"hash lookup, {figure.kind}, {figure.entries:,} entries"
    return [name, measured, _limit("at least", figure.limit, "times", figure.ok)]


def _opening_rows(figure: Opening) -> list[list[str]]:
    limits = ("", "")
    if figure.limited:
        limits = (
            f"at most {OPEN_LIMIT_S:g} s: {verdict(figure.open_ok)}",
            f"at most {PRIVATE_LIMIT:.0%}: {verdict(figure.private_ok)}",
        )
    opened = f"{figure.open_s:.4f} s, then {duration(figure.first_row_us)} for the first row"
    private = (
        f"{figure.private_bytes / 1e6:.1f} MB of {figure.size_bytes / 1e6:.0f} MB: {figure.private_share:.2%}"
    )
    return [
        [f"opening {figure.strings:,} strings", opened, limits[0]],
        ["private memory of a further instance", private, limits[1]],
    ]


def _flat_table(figures: Sequence[Flat]) -> str:
    if not figures:
        return ""
    sizes = list(figures[0].sizes)
    rows = [
        [
            figure.kind,
            *(f"{figure.sizes[size].us:.1f}" for size in sizes),
            f"{figure.ratio:.2f}",
            _limit("at most", figure.limit, "times", figure.ok),
        ]
        for figure in figures
    ]
    head = ["µs", *(f"{size:,}" for size in sizes), "times", "limit"]
    return "One row of one column, by entries of its vocabulary:\n" + format_table(
        head, rows, left=(0, len(head) - 1)
    )


def _served_table(figures: Sequence[Served]) -> str:
    if not figures:
        return ""
    rows = [
        [
            figure.case,
            *(f"{figure.p50_us(name):.0f}" if name in figure.rounds else "" for name in MODELS),
            f"{figure.ratio:.1f}",
            f"{figure.times('workflow', 'columns'):.1f}",
            f"{figure.ceiling:.1f}",
            _limit("at least", figure.limit, "times", figure.stock_ok),
            "" if figure.own_ratio is None else f"{figure.own_ratio:.1f}",
            _limit("at least", figure.own_limit, "times", figure.own_ok),
        ]
        for figure in figures
    ]
    head = ["case", *MODELS, "times", "by columns", "at most", "limit", "own times", "own limit"]
    return (
        f"One Triton ({figures[0].triton}), one row a request, one caller, p50 in µs. workflow and executor\n"
        "are Merlin Systems 23.8. times is workflow / tiercel, by columns workflow / columns, and at most\n"
        "what times would be if features took no time. own is tiercel on its own runner, and its times\n"
        "are workflow / own:\n" + format_table(head, rows, left=(0, len(head) - 3, len(head) - 1))
    )


def _limit(bound: str, limit: float | None, unit: str, ok: bool) -> str:
    return "" if limit is None else f"{bound} {limit:g} {unit}: {verdict(ok)}"


def verdict(ok: bool) -> str:
    """Return the word printed for a limit that was kept or missed."""
    return "pass" if ok else "FAIL"


def duration(us: float) -> str:
    """Return microseconds as text in a readable unit."""
    if us >= 1e6:
        return f"{us / 1e6:.2f} s"
    if us >= 1e3:
        return f"{us / 1e3:.2f} ms" if us < 1e5 else f"{us / 1e3:.0f} ms"
    return f"{us:.1f} µs"
