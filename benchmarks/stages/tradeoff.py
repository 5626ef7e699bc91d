"""What each step's strength costs in nDCG and gives in variety, on MovieLens-100K, through the served steps.

``python -m benchmarks.stages.tradeoff FILE.json`` writes the figures, and a plot (SVG) beside. Candidates
are the 100 best unseen items by PureSVD (Cremonesi et al. 2010), which needs no training; the split is the
published one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiercel_pipelines.data import MovieLens100K, load_dataset
from tiercel_pipelines.data.split import split_dataset
from tiercel_pipelines.features.raw_columns import raw_columns
from tiercel_pipelines.offline.metrics import FloatArray, Relevance, find_hits, ndcg_at_k, ranking_metrics
from tiercel_serving.columns import Column, with_null_row
from tiercel_serving.ranked import sort_by_score
from tiercel_serving.reorder.calibration import Calibration
from tiercel_serving.reorder.cap import Cap
from tiercel_serving.reorder.dpp import DPP
from tiercel_serving.reorder.gumbel_top_k import GumbelTopK
from tiercel_serving.reorder.inputs import of_source
from tiercel_serving.reorder.mmr import MMR
from tiercel_serving.reorder.popularity_correction import PopularityCorrection
from tiercel_serving.reorder.spread import Spread
from tiercel_serving.reorder.steps import Steps
from tiercel_serving.settings import ServingSettings
from tiercel_serving.spec import Array

KEPT, AT, DIMENSION, HISTORY = 100, 10, 64, 50

#: Step → what makes it of a strength, and the strengths.
STEPS: Mapping[str, tuple[Callable[[float], Any], tuple[float, ...]]] = {
    "mmr": (lambda s: MMR(source="svd", strength=s), (0.1, 0.2, 0.4, 0.6, 0.8)),
    "dpp": (lambda s: DPP(source="svd", strength=s), (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)),
    "mmr of genres": (lambda s: MMR(column="genres", strength=s), (0.1, 0.2, 0.3, 0.4, 0.6)),
    "dpp of genres": (lambda s: DPP(column="genres", strength=s), (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)),
    "spread": (lambda s: Spread(source="svd", strength=s), (0.1, 0.2, 0.4, 0.6, 0.8)),
    "calibration": (lambda s: Calibration("genres", s), (0.2, 0.4, 0.6, 0.8, 0.95)),
    "popularity correction": (
        lambda s: PopularityCorrection(source="popular", strength=s),
        (0.02, 0.05, 0.1, 0.2, 0.4),
    ),
    "cap of genres": (lambda s: Cap("genres", int(s)), (8, 6, 5, 4, 3)),
    "gumbel": (GumbelTopK, (0.01, 0.02, 0.05, 0.1, 0.2)),
}


#: Curves that are compared: the first shall not lie below the second.
PAIRS = (("dpp", "mmr"), ("dpp of genres", "mmr of genres"))


def candidates() -> tuple[dict[str, Column], dict[str, Array], Relevance, int]:
    """Return item columns, the steps' arrays, the test part and I."""
    dataset = load_dataset(MovieLens100K())
    split = split_dataset(dataset)
    users, items = dataset.users[dataset.user_id], dataset.items[dataset.item_id]
    pairs = {}
    for part, frame in (("train", split.train), ("test", split.test)):
        pairs[part] = tuple(
            values.map(dict(zip(ids, range(len(ids)), strict=True))).to_numpy()
            for values, ids in ((frame[dataset.user_id], users), (frame[dataset.item_id], items))
        )
    had = np.zeros((len(users), len(items)), np.float32)
    had[pairs["train"]] = 1
    _, _, right = np.linalg.svd(had, full_matrices=False)
    vectors = np.ascontiguousarray(right[:DIMENSION].T)
    scores = np.where(had > 0, -np.inf, had @ vectors @ vectors.T).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :KEPT]
    latest = split.train.sort_values("timestamp", kind="stable").groupby(dataset.user_id, sort=False)
    history, length = np.full((len(users), HISTORY), len(items)), np.zeros((len(users), 1), np.int32)
    row_of = dict(zip(items, range(len(items)), strict=True))
    seen = latest[dataset.item_id].agg(list)
    for at, user in enumerate(users):
        last = [row_of[item] for item in seen.get(user, [])[-HISTORY:]]
        history[at, : len(last)], length[at] = last, len(last)
    ends = np.arange(len(items) + 1) * DIMENSION
    columns = {
        "genres": raw_columns(dataset.items, ["genres"])["genres"],
        of_source("popular"): Column(had.sum(axis=0) / had.sum(axis=0).max()),
        of_source("svd"): Column(vectors.reshape(-1), None, ends),
    }
    arrays = {
        "kept_row": rows,
        "kept_score": np.take_along_axis(scores, rows, axis=1),
        "status": np.zeros((len(users), 1), np.int32),
        "seed": np.arange(float(len(users)))[:, None],
        "history_row": history,
        "history_length": length,
    }
    test_users, test_items = pairs["test"]
    relevance = Relevance.from_pairs(test_users, test_items, len(users))
    return {name: with_null_row(one) for name, one in columns.items()}, arrays, relevance, len(items)


def figures(rows: Array, columns: Mapping[str, Column], relevance: Relevance, items: int) -> dict[str, float]:
    """Return nDCG, intra-list diversity of genres, coverage and the Gini index of exposure, at 10."""
    from tiercel_serving.reorder.vectors import hot_rows

    hot = hot_rows(columns["genres"])
    unit = (hot / np.maximum(np.linalg.norm(hot, axis=1, keepdims=True), 1e-9))[rows[:, :AT]]
    alike = np.einsum("uid,ujd->u", unit, unit) - np.einsum("uid,uid->u", unit, unit)
    found = ranking_metrics(rows[:, :AT], relevance, AT, items)
    shown = np.sort(np.bincount(rows[:, :AT].ravel(), minlength=items + 1)[:items])
    rank = np.arange(1, items + 1)
    gini = float(((2 * rank - items - 1) * shown).sum() / (items * shown.sum()))
    return {
        "ndcg": round(found.ndcg, 4),
        "diversity": round(float(1 - (alike / (AT * (AT - 1))).mean()), 4),
        "coverage": round(found.coverage, 4),
        "gini": round(gini, 4),
    }


def run() -> dict[str, Any]:
    """Return the figures without a step, and of each step by strength."""
    columns, arrays, relevance, items = candidates()

    def order(*steps: Any) -> tuple[dict[str, float], FloatArray]:
        final = Steps(ServingSettings(reorder=steps), columns, items).apply(arrays)
        rows = sort_by_score(final.scores, final.rows)[1]
        ndcg = ndcg_at_k(find_hits(rows[:, :AT], relevance, AT, items), relevance.counts)
        return figures(rows, columns, relevance, items), ndcg

    none = order()
    points = {name: [order(make(s)) for s in strengths] for name, (make, strengths) in STEPS.items()}
    found = {
        name: {str(s): point for s, (point, _) in zip(STEPS[name][1], own, strict=True)}
        for name, own in points.items()
    }
    pairs = {f"{over} over {under}": compared(points[over], [none, *points[under]]) for over, under in PAIRS}
    head = {"data": "ml-100k", "candidates": KEPT, "at": AT, "users": len(relevance)}
    return {**head, "none": none[0], "steps": found, "compared": pairs}


def compared(
    over: Sequence[tuple[Mapping[str, float], FloatArray]],
    under: Sequence[tuple[Mapping[str, float], FloatArray]],
) -> list[dict[str, float]]:
    """Return how far each point of one curve lies above another curve, at the same diversity.

    Points are figures, and each user's nDCG. The other curve is drawn straight between its points; ``error``
    is the standard error over users.
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
    """Draw nDCG over diversity, coverage and Gini."""
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
    made = run()
    target.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    draw(made, target.with_suffix(".svg"))
