"""Tables of means and spreads over seeds, for the terminal and ``docs/accuracy.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.accuracy import ranking, sampled
from benchmarks.accuracy.cell import seconds
from benchmarks.accuracy.contenders import COMPARISONS, UNSEEDED

HEAD = (
    "family",
    "seeds",
    "nDCG@10",
    "recall@10",
    "coverage",
    "novelty, bits",
    "training, processor s",
    "p50, ms",
    "release, MB",
)


@dataclass(frozen=True)
class Row:
    """The cells of a family on one data set, one per seed."""

    family: str
    cells: Sequence[Mapping[str, Any]]

    def of(self, *path: str) -> list[float]:
        """Return the figure at ``path`` of each cell."""
        found = []
        for cell in self.cells:
            value: Any = cell
            for name in path:
                value = value[name]
            found.append(float(value))
        return found

    @property
    def ndcg(self) -> float:
        """Mean nDCG@10 over seeds."""
        return mean(self.of("figures", "ranking", "ndcg"))

    def table(self) -> list[str]:
        """Return the row's cells as text."""
        return [
            self.family,
            "any" if self.family in UNSEEDED else str(len(self.cells)),
            spread(self.of("figures", "ranking", "ndcg")),
            spread(self.of("figures", "ranking", "recall")),
            f"{mean(self.of('figures', 'ranking', 'coverage')):.2f}",
            f"{mean(self.of('beyond', 'ranking', 'novelty')):.1f}",
            seconds(self.cells),
            f"{mean(self.of('p50_us')) / 1000:.2f}"
            + ("" if all(cell["answered"] == "triton" for cell in self.cells) else "*"),
            f"{mean(self.of('bytes')) / 1e6:.1f}",
        ]


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation as text; a single value has no spread."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def rows_of(document: Mapping[str, Any], data: str) -> list[Row]:
    """Return the rows of a data set by descending mean nDCG@10."""
    mine = [cell for cell in document["cells"] if cell["data"] == data]
    families = dict.fromkeys(cell["family"] for cell in mine)
    rows = [Row(family, [cell for cell in mine if cell["family"] == family]) for family in families]
    return sorted(rows, key=lambda row: -row.ndcg)


def popularity(rows: Sequence[Row]) -> list[str]:
    """Return the row of the popularity baseline, which every cell measures too."""
    cell = rows[0].cells[0]
    figures, beyond = cell["figures"]["popularity"], cell["beyond"]["popularity"]
    shown = [f"{figures['ndcg']:.4f}", f"{figures['recall']:.4f}", f"{figures['coverage']:.2f}"]
    return ["popularity", "", *shown, f"{beyond['novelty']:.1f}", "", "", ""]


def misses(document: Mapping[str, Any], data: Iterable[str]) -> list[str]:
    """Return a message for each figure below its limit."""
    found = []
    for name in data:
        wanted = COMPARISONS[name].wanted
        for row in rows_of(document, name):
            least = wanted.get(row.family, 0.0)
            if row.ndcg < least:
                found.append(f"{name}, {row.family}: nDCG@10 {row.ndcg:.4f}, wanted at least {least}")
    return found


def markdown(document: Mapping[str, Any]) -> str:
    """Return ``docs/accuracy.md``."""
    parts = [_INTRODUCTION]
    for name in dict.fromkeys(cell["data"] for cell in document["cells"]):
        rows = rows_of(document, name)
        machines = sorted(
            {f"{c['machine']['cpu']}, {c['machine']['cores']} cores" for r in rows for c in r.cells}
        )
        users = rows[0].cells[0]["figures"]["ranking"]["users"]
        protocol = COMPARISONS[name].protocol
        parts.append(f"## {name}\n\n{protocol[0].upper()}{protocol[1:]}.")
        parts.append(f"{users} users; mean ± standard deviation over seeds; on {' and '.join(machines)}.")
        lines = [HEAD, ["---"] * len(HEAD), *(row.table() for row in rows), popularity(rows)]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        parts += _partly_real(rows)
    parts += [*ranking.markdown(document), *sampled.markdown(document)]
    return "\n\n".join(parts) + "\n"


def _partly_real(rows: Iterable[Row]) -> list[str]:
    """Return notes on families with some seeds, but not all, measured through a real Triton."""
    families: dict[str, list[str]] = {}
    for row in rows:
        real = [str(cell["seed"]) for cell in row.cells if cell["answered"] == "triton"]
        if 0 < len(real) < len(row.cells):
            families.setdefault(", ".join(real), []).append(f"`{row.family}`")
    return [
        f"Measured through a real Triton over gRPC: seed {seeds} of {', '.join(names)}; the other seeds in "
        "one process."
        for seeds, names in families.items()
    ]


_INTRODUCTION = """\
# Accuracy

Written by `make accuracy` (`python -m benchmarks.accuracy`). Each family is trained from a recipe, exported
by the same compilers, and judged only by what the served stages answer for every user of the test part. The
split is the same for every seed; a seed changes initial weights, batches and negatives. Families with "any"
seed have nothing random. Settings are the defaults of [models.md](models.md), or those in
`benchmarks/accuracy/contenders.py`.

- The answer to a caller is what is measured, so a recipe with a ranker is measured after ranking.
- Coverage is the share of the catalogue that appears in anybody's top 10; novelty is the mean information of
  the recommended items ([evaluation.md](evaluation.md)).
- `p50` is the time of one answer to one user, through a real Triton over gRPC; with a star, of the stages in
  one process. The machine did other work meanwhile, so latencies compare families only roughly.
- Training is in processor seconds on one thread (`OMP_NUM_THREADS=1`), including everything before and after
  the epochs; other work on the machine adds nothing to them. Figures in brackets are wall time of earlier
  measurements, which includes other work."""
