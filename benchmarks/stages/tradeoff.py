"""nDCG and diversity by each reorder step's strength, on MovieLens-100K, through a real Triton.

``python -m benchmarks.stages.tradeoff FILE.json`` trains ALS, and exports and serves one release whose steps
all read their strength from the request. It requests answers for every user of the published split at each
strength of each step, and writes the figures and a plot (SVG) with the same file name.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.accuracy.run import PACKAGES
from tiercel_client import Recommender
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.features.raw_columns import raw_columns
from tiercel_pipelines.offline.beyond_accuracy import gini
from tiercel_pipelines.offline.evaluation_data import EvaluationData
from tiercel_pipelines.offline.metrics import FloatArray, Relevance, find_hits, ndcg_at_k, ranking_metrics
from tiercel_pipelines.recipe import (
    ALS,
    DPP,
    MMR,
    Calibration,
    Cap,
    GumbelTopK,
    Index,
    PerRequest,
    Popular,
    PopularityCorrection,
    Recipe,
    Spread,
    load_recipe,
    replace,
)
from tiercel_pipelines.training import train_recipe
from tiercel_serving.bench.machine import describe_machine, installed_versions
from tiercel_serving.columns import Column, with_null_row
from tiercel_serving.spec import Array
from tiercel_serving.supervise.process import start_server

KEPT, AT, USERS = 100, 10, 64

#: Step → name of its strength in a request, and the strengths to measure. A strength of 0 changes nothing.
#: Neither does the cap at its highest value, nor Gumbel without a seed.
STRENGTHS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "mmr": ("mmr", (0.1, 0.2, 0.4, 0.6, 0.8)),
    "dpp": ("dpp", (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)),
    "mmr of genres": ("mmr_genres", (0.1, 0.2, 0.3, 0.4, 0.6)),
    "dpp of genres": ("dpp_genres", (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)),
    "spread": ("spread", (0.1, 0.2, 0.4, 0.6, 0.8)),
    "calibration": ("calibration", (0.2, 0.4, 0.6, 0.8, 0.95)),
    "popularity correction": ("popularity", (0.02, 0.05, 0.1, 0.2, 0.4)),
    "cap of genres": ("cap", (8, 6, 5, 4, 3)),
    "gumbel": ("temperature", (0.01, 0.02, 0.05, 0.1, 0.2)),
}

#: Pairs of curves to compare; the first should not lie below the second.
PAIRS = (("dpp", "mmr"), ("dpp of genres", "mmr of genres"))


def recipe() -> Recipe:
    """Return ALS on the published split, with every step, each off unless a request sets its strength."""
    off = {name: PerRequest(name, 0.0) for name in ("mmr", "dpp", "mmr_genres", "dpp_genres", "spread")}
    steps = (
        PopularityCorrection(source="popular", strength=PerRequest("popularity", 0.0)),
        MMR(source="als", strength=off["mmr"]),
        MMR(column="genres", strength=off["mmr_genres"]),
        DPP(source="als", strength=off["dpp"]),
        DPP(column="genres", strength=off["dpp_genres"]),
        Spread(source="als", strength=off["spread"]),
        Calibration("genres", PerRequest("calibration", 0.0)),
        GumbelTopK(PerRequest("temperature", 0.01, 0.01, 1.0)),
        Cap("genres", PerRequest("cap", KEPT, 1, KEPT, whole=True)),
    )
    base = load_recipe("movielens")
    serving = msgspec.structs.replace(
        base.serving,
        candidates=KEPT,
        kept=KEPT,
        k_max=AT,
        sources=(Index("als", factory="Flat"), Popular(quota=0)),
        reorder=steps,
        max_batch_size=USERS,
    )
    return replace(base, name="tradeoff", retrieval=ALS(), ranking=None, serving=serving)


class Asked:
    """Requests to a server for all users of an evaluation, in batches of ``USERS``."""

    def __init__(self, client: Recommender, data: EvaluationData) -> None:
        self._client, self._users = client, data.user_ids
        self._row_of = {item: row for row, item in enumerate(data.item_ids)}

    def rows(self, **numbers: float) -> Array:
        """Return answers as catalogue rows ``[U, AT]`` padded with I; each request holds ``numbers``."""
        rows = np.full((len(self._users), AT), len(self._row_of))
        for begin in range(0, len(self._users), USERS):
            users = self._users[begin : begin + USERS]
            sent = {name: [number] * len(users) for name, number in numbers.items()}
            if "temperature" in numbers:
                sent["seed"] = list(range(begin, begin + len(users)))
            answers = self._client.recommend_many(users, k=AT, features=sent, titles=False, timeout_s=60.0)
            for place, answer in enumerate(answers, begin):
                rows[place, : len(answer.item_ids)] = [self._row_of[item] for item in answer.item_ids]
        return rows


@contextmanager
def served() -> Iterator[tuple[Asked, dict[str, Column], EvaluationData]]:
    """Train, export and serve; yield the requests, the items' genres, and the evaluation's users."""
    made = recipe()
    dataset = load_dataset(made.dataset)
    with tempfile.TemporaryDirectory() as folder:
        run = train_recipe(made, dataset, Path(folder) / "run")
        release = export_run(run, Path(folder) / "release")
        data = EvaluationData.from_run(run)
        items = dataset.items.set_index(dataset.item_id).loc[data.item_ids].reset_index()
        genres = with_null_row(raw_columns(items, ["genres"])["genres"])
        with start_server(release.path) as server, Recommender(server.grpc_url) as client:
            yield Asked(client, data), {"genres": genres}, data


def figures(rows: Array, columns: Mapping[str, Column], relevance: Relevance, items: int) -> dict[str, float]:
    """Return nDCG, intra-list diversity of genres, coverage and the Gini coefficient of exposure, at 10."""
    from tiercel_serving.reorder.vectors import hot_rows

    hot = hot_rows(columns["genres"])
    unit = (hot / np.maximum(np.linalg.norm(hot, axis=1, keepdims=True), 1e-9))[rows[:, :AT]]
    alike = np.einsum("uid,ujd->u", unit, unit) - np.einsum("uid,uid->u", unit, unit)
    found = ranking_metrics(rows[:, :AT], relevance, AT, items)
    shown = np.bincount(rows[:, :AT].ravel(), minlength=items + 1)[:items]
    return {
        "ndcg": round(found.ndcg, 4),
        "diversity": round(float(1 - (alike / (AT * (AT - 1))).mean()), 4),
        "coverage": round(found.coverage, 4),
        "gini": round(gini(shown), 4),
    }


def run(command: str = "") -> dict[str, Any]:
    """Return the figures without steps, and those of each step by strength."""
    with served() as (asked, columns, data):
        relevance, items = data.relevance, len(data.item_ids)

        def order(**numbers: float) -> tuple[dict[str, float], FloatArray]:
            rows = asked.rows(**numbers)
            ndcg = ndcg_at_k(find_hits(rows, relevance, AT, items), relevance.counts)
            return figures(rows, columns, relevance, items), ndcg

        none = order()
        points = {
            step: [order(**{name: strength}) for strength in strengths]
            for step, (name, strengths) in STRENGTHS.items()
        }
    found = {
        step: {str(s): point for s, (point, _) in zip(STRENGTHS[step][1], own, strict=True)}
        for step, own in points.items()
    }
    pairs = {f"{over} over {under}": compared(points[over], [none, *points[under]]) for over, under in PAIRS}
    head = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": describe_machine(),
        "versions": installed_versions(PACKAGES),
        "answered": "triton",
        "data": "ml-100k",
        "retrieval": "als",
        "candidates": KEPT,
        "at": AT,
        "users": len(data.user_ids),
    }
    return {**head, "none": none[0], "steps": found, "compared": pairs}


def compared(
    over: Sequence[tuple[Mapping[str, float], FloatArray]],
    under: Sequence[tuple[Mapping[str, float], FloatArray]],
) -> list[dict[str, float]]:
    """Return the nDCG of each point of one curve above another curve at equal diversity.

    A point consists of the figures and each user's nDCG. The other curve is interpolated linearly between its
    points, and points of the first curve outside its range are left out. ``error`` is the standard error over
    users.
    """
    order = sorted(under, key=lambda point: point[0]["diversity"])
    places, scores = [point["diversity"] for point, _ in order], [ndcg for _, ndcg in order]
    found = []
    for point, ndcg in over:
        diversity = point["diversity"]
        if not places[0] <= diversity <= places[-1]:
            continue
        upper = max(int(np.searchsorted(places, diversity)), 1)
        share = (diversity - places[upper - 1]) / (places[upper] - places[upper - 1])
        above = ndcg - (1 - share) * scores[upper - 1] - share * scores[upper]
        error = float(above.std(ddof=1) / np.sqrt(len(above)))
        at = {"diversity": diversity, "above": round(float(above.mean()), 4), "error": round(error, 4)}
        found.append(at)
    return found


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw nDCG over diversity, coverage and the Gini coefficient into an SVG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained", sharey=True)
    for axis, name in zip(axes, ("diversity", "coverage", "gini"), strict=True):
        for step, by_strength in document["steps"].items():
            points = [document["none"], *by_strength.values()]
            axis.plot([p[name] for p in points], [p["ndcg"] for p in points], "-o", markersize=3, label=step)
        axis.set(xlabel=f"{name} at {AT}", ylabel=f"nDCG at {AT}")
    axes[0].legend(frameon=False, fontsize=7)
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tiercel"}):
        figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    made = run(f"python -m benchmarks.stages.tradeoff {target.name}")
    target.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    draw(made, target.with_suffix(".svg"))
