"""Evaluation of what is served, from the recommendations for every test user.

The figures measure the whole chain (compiled features, engines, index, filters, order) rather than the
trained models alone. Protocol: ``docs/evaluation.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel_serving.stages.specs import NOW

from ..data import Progress
from ..errors import EvaluationError
from .beyond_accuracy import BeyondAccuracy, beyond_accuracy
from .evaluation_data import EvaluationData
from .metrics import IntArray, RankingMetrics, ranking_metrics, recall_curve
from .published import Published
from .served_ensemble import Ensemble, Id, ServedEnsemble

if TYPE_CHECKING:
    from tiercel_client import ServerInfo
    from tiercel_serving.release.opened import Release

    from ..training import TrainedRun


@dataclass(frozen=True)
class EvaluationReport:
    """The result of an evaluation.

    Parameters
    ----------
    dataset, name, build_id, k
        The data set, the recommender and its build, and the number of places evaluated.
    figures
        ``popularity`` (a baseline, not served), ``retrieval`` and ``ranking`` (both served).
    published
        Published figures in the same protocol.
    allow_seen, seen_again_days, left_out
        Whether items that a user had may be recommended again, always or after that many days; and the
        number of (user, test item) pairs that are left out because the item may not be.
    beyond
        Novelty, diversity and popularity of the same lists. A name is absent if its lists are all
        empty, or if no interactions are known.
    recall_curves
        Recall at 1, 2, … k of the same lists.
    """

    dataset: str
    name: str
    build_id: str
    k: int
    figures: Mapping[str, RankingMetrics]
    published: tuple[Published, ...] = ()
    allow_seen: bool = False
    seen_again_days: float | None = None
    left_out: int = 0
    beyond: Mapping[str, BeyondAccuracy] = field(default_factory=dict)
    recall_curves: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "dataset": self.dataset,
            "name": self.name,
            "build_id": self.build_id,
            "k": self.k,
            "users": self.figures["ranking"].users,
            "figures": {name: metrics.to_json() for name, metrics in self.figures.items()},
            "beyond": {name: figures.to_json() for name, figures in self.beyond.items()},
            "recall_curves": {name: list(curve) for name, curve in self.recall_curves.items()},
            "published": [asdict(row) for row in self.published],
            "allow_seen": self.allow_seen,
            "seen_again_days": self.seen_again_days,
            "left_out": self.left_out,
        }


def evaluate_served(
    served: Ensemble | str,
    data: EvaluationData,
    *,
    k: int = 10,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Request recommendations for every test user and measure them.

    Parameters
    ----------
    served
        A server (``ServedEnsemble``), a release in this process (``LocalEnsemble``), or the ``host:port``
        of a server's gRPC endpoint, which :func:`check_protocol` then checks first.
    data
        The users to evaluate and their relevant items.
    k
        Number of places to evaluate.
    progress
        Called after each batch of users.

    Returns
    -------
    EvaluationReport
        Figures after retrieval alone (the first k retrieved items, before any filter), after ranking (what
        a caller gets), and of the popularity baseline.

    Raises
    ------
    EvaluationError
        If k exceeds the server's ``k_max``, a request to the server fails, or the server answers with items
        that the data does not have, repeats one, or serves another catalogue.
    """
    if isinstance(served, str):
        with ServedEnsemble(served) as ensemble:
            check_protocol(ensemble.info, data)
            return evaluate_served(ensemble, data, k=k, progress=progress)
    info = served.info
    if k > info.k_max:
        raise EvaluationError(f"k = {k}: the server answers with at most {info.k_max} items; ask for fewer")
    ranked, retrieved = _ask(served, data, k, info.max_batch_size, progress)
    lists = {"popularity": data.popularity_lists(k), "retrieval": retrieved, "ranking": ranked}
    figures, beyond, curves = {}, {}, {}
    catalogue = len(data.item_ids)
    try:
        for name, rows in lists.items():
            figures[name] = ranking_metrics(rows, data.relevance, k, catalogue)
            curves[name] = recall_curve(rows, data.relevance, k, catalogue).tolist()
            if (rows != catalogue).any() and len(data.had[1]):
                beyond[name] = beyond_accuracy(rows, k, *data.had, catalogue)
    except ValueError as error:
        raise EvaluationError(f"{info.name}, {name}: {error}") from error
    return EvaluationReport(
        data.dataset,
        info.name,
        info.build_id,
        k,
        figures,
        data.published,
        data.allow_seen,
        data.seen_again_days,
        data.left_out,
        beyond,
        curves,
    )


def check_same(info: ServerInfo, run: TrainedRun, build_id: str | None = None) -> None:
    """Raise EvaluationError if a server serves another recommender than the run's, or not ``build_id``."""
    name = run.record.recipe.name
    if info.name != name:
        raise EvaluationError(
            f"the server serves {info.name!r}, but {run.path} is a run of {name!r}; "
            "name the run that was exported"
        )
    if build_id is not None and info.build_id != build_id:
        raise EvaluationError(
            f"the server serves build {info.build_id}, but the release is build {build_id}; "
            "start the server on that release"
        )


def check_protocol(info: ServerInfo, data: EvaluationData) -> None:
    """Raise EvaluationError if server and data differ in whether seen items may be recommended again."""
    if info.allow_seen != data.allow_seen:
        raise EvaluationError(
            f"the server serves {info.name!r} with allow_seen={info.allow_seen}, but the test part is made "
            f"for allow_seen={data.allow_seen}; name the run that was exported, or serve this one"
        )
    asks_time = any(column.name == NOW for column in info.request_columns)
    if data.now_s is not None and not asks_time:
        raise EvaluationError(
            f"the server serves {info.name!r} without seen_again_days, and the test part is made for it; "
            "name the run that was exported, or serve this one"
        )


def check_tables(release: Release) -> None:
    """Raise EvaluationError if a release was exported with other tables than the run's."""
    given = [name for name, table in release.manifest.tables.items() if table["from"] != "run"]
    if given:
        raise EvaluationError(
            f"{release.path}: its {' and '.join(given)} are not the run's, so the run's test part does not "
            "measure it; export the run without other tables and evaluate that"
        )


def _ask(
    served: Ensemble, data: EvaluationData, k: int, batch: int, progress: Progress | None
) -> tuple[IntArray, IntArray]:
    """Return the recommended and the retrieved items, as catalogue rows ``[U, k]`` padded with I."""
    catalogue, users = len(data.item_ids), len(data.user_ids)
    row_of = {item: row for row, item in enumerate(data.item_ids)}
    ranked, retrieved = (np.full((users, k), catalogue, np.int64) for _ in range(2))
    for start in range(0, users, batch):
        asked = data.user_ids[start : start + batch]
        now_s = None if data.now_s is None else data.now_s[start : start + batch]
        candidates = served.retrieve(asked, now_s)
        answers = served.recommend(asked, k, now_s)
        width = min(k, candidates.shape[1])
        retrieved[start : start + len(asked), :width] = candidates[:, :width]
        for offset, answer in enumerate(answers):
            rows = _answer_rows(answer, row_of, asked[offset])
            _check_catalogue(rows, candidates[offset], asked[offset], data)
            ranked[start + offset, : len(rows)] = rows
        if progress is not None:
            progress("users", start + len(asked), users)
    return ranked, retrieved


def _answer_rows(answer: Sequence[Id], row_of: Mapping[Id, int], user: Id) -> list[int]:
    unknown = [item for item in answer if item not in row_of]
    if unknown:
        raise EvaluationError(
            f"user {user!r}: the server recommends item {unknown[0]!r}, which the run does not have; "
            "name the run that was exported"
        )
    return [row_of[item] for item in answer]


def _check_catalogue(rows: Sequence[int], candidates: IntArray, user: Id, data: EvaluationData) -> None:
    """Raise EvaluationError if an answer is not among the candidates, since catalogue orders then differ."""
    if not np.isin(rows, candidates).all():
        raise EvaluationError(
            f"user {user!r}: an item of the answer is not among the rows that retrieval gave, so the "
            f"server's catalogue is in another order than {data.dataset}; name the run that was exported"
        )
