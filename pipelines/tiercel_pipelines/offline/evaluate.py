"""Quality of what is served: every test user is asked for over gRPC, and nothing else is looked at.

The figures stand for the whole chain (compiled features, engines, index, filters, order), not for the
trained models. Protocol: ``docs/evaluation.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import EvaluationError
from .metrics import RankingMetrics, Relevance, ranking_metrics

if TYPE_CHECKING:
    from tiercel_client import ServerInfo
    from tiercel_serving.release.opened import Release

    from ..training import TrainedRun

IntArray = npt.NDArray[np.int64]
Id = int | str
Progress = Callable[[str, int, int | None], None]

EXPLAIN_MODEL = "recommend_explain"
#: Seconds that one batch of users may take.
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Published:
    """Somebody's figures at 10 for the same data set, split and protocol."""

    name: str
    ndcg: float
    precision: float
    recall: float
    source: str


RECOMMENDERS = "recommenders-team/recommenders, comparison of algorithms"
MEASURED = "measured for this project with the same split"

#: Data set → what others reached on it with a random 75/25 split by user (seed 42), top 10 of all unseen
#: items.
PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "ml-100k": (
        Published("EASE (λ = 400)", 0.4826, 0.4201, 0.2241, MEASURED),
        Published("BiVAE", 0.4751, 0.4118, 0.2191, RECOMMENDERS),
        Published("iALS (64 factors)", 0.4725, 0.4156, 0.2214, MEASURED),
        Published("BPR", 0.4420, 0.3882, 0.2125, RECOMMENDERS),
        Published("LightGCN", 0.4198, 0.3796, 0.1443, RECOMMENDERS),
        Published("NCF", 0.3961, 0.3473, 0.1808, RECOMMENDERS),
        Published("SAR", 0.3825, 0.3308, 0.1764, RECOMMENDERS),
    )
}
#: The k and the split that the published figures are for.
PUBLISHED_K = 10
PUBLISHED_SPLIT: Mapping[str, Any] = {"train": 0.75, "seed": 42}


class Served(Protocol):
    """What can be asked; :class:`ServedEnsemble` asks a real server."""

    @property
    def info(self) -> ServerInfo:
        """What answers."""
        ...

    def recommend(self, user_ids: Sequence[Id], k: int) -> list[Sequence[Id]]:
        """Return each user's answer, best first: raw item ids, at most k."""
        ...

    def retrieve(self, user_ids: Sequence[Id]) -> IntArray:
        """Return what retrieval gave each user, best first: catalogue rows ``[n, N]``, pad I."""
        ...


class ServedEnsemble:
    """A server that ``tiercel serve`` started, or any other with the same ensembles.

    Parameters
    ----------
    url
        ``host:port`` of gRPC.
    """

    def __init__(self, url: str) -> None:
        import tritonclient.grpc as triton_grpc

        from tiercel_client import Recommender

        self._recommender = Recommender(url)
        self._triton = triton_grpc.InferenceServerClient(url)
        self._grpc = triton_grpc
        self.info: ServerInfo = self._recommender.server_info()

    def __enter__(self) -> ServedEnsemble:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._triton.close()
        self._recommender.close()

    def recommend(self, user_ids: Sequence[Id], k: int) -> list[Sequence[Id]]:
        """See :class:`Served`."""
        answers = self._recommender.recommend_many(user_ids, k=k, titles=False, timeout_s=TIMEOUT_S)
        return [answer.item_ids for answer in answers]

    def retrieve(self, user_ids: Sequence[Id]) -> IntArray:
        """See :class:`Served`. One request, since the client explains one user at a time."""
        is_text = self.info.user_id_dtype == "bytes"
        ids = np.empty((len(user_ids), 1), np.object_ if is_text else np.int64)
        ids[:, 0] = [user.encode() for user in map(str, user_ids)] if is_text else list(user_ids)
        tensor = self._grpc.InferInput("user_id", list(ids.shape), "BYTES" if is_text else "INT64")
        tensor.set_data_from_numpy(ids)
        wanted = [self._grpc.InferRequestedOutput("retrieved_row")]
        try:
            answer = self._triton.infer(EXPLAIN_MODEL, [tensor], outputs=wanted, client_timeout=TIMEOUT_S)
        except Exception as error:
            raise EvaluationError(f"{EXPLAIN_MODEL} failed for {len(user_ids)} users: {error}") from error
        rows: IntArray = answer.as_numpy("retrieved_row")
        return rows


@dataclass(frozen=True)
class EvaluationData:
    """Who is asked for, and what counts as right.

    Parameters
    ----------
    dataset
        Name of the data set.
    user_ids
        The U users with test items.
    item_ids
        Raw ids of the catalogue, in row order.
    relevance
        Each user's test items as catalogue rows.
    known
        Each user's items of the training and validation part, which must not be recommended.
    popular
        All rows, most known interactions first, ties by row.
    published
        Figures to stand beside, if they were measured in the same way.
    """

    dataset: str
    user_ids: list[Id]
    item_ids: list[Id]
    relevance: Relevance
    known: Relevance
    popular: IntArray
    published: tuple[Published, ...] = ()

    @classmethod
    def from_frames(
        cls,
        dataset: str,
        items: pd.DataFrame,
        known: pd.DataFrame,
        test: pd.DataFrame,
        *,
        user_id: str = "user_id",
        item_id: str = "item_id",
        published: tuple[Published, ...] = (),
    ) -> EvaluationData:
        """Build from tables with raw ids.

        Parameters
        ----------
        dataset
            Name of the data set.
        items
            The catalogue; a row's position is the catalogue row.
        known, test
            Interactions that serving may know, and those to be found.
        user_id, item_id
            Names of the id columns.
        published
            Figures to stand beside.
        """
        if not len(test):
            raise EvaluationError(f"{dataset}: the test part is empty, so there is nobody to ask about")
        catalogue = pd.Index(items[item_id])
        users = pd.Index(test[user_id].unique())
        of_test = _rows(catalogue, test[item_id], dataset)
        of_known = _rows(catalogue, known[item_id], dataset)
        by = users.get_indexer(known[user_id])
        counts = np.bincount(of_known, minlength=len(catalogue))
        return cls(
            dataset=dataset,
            user_ids=users.tolist(),
            item_ids=catalogue.tolist(),
            relevance=Relevance.from_pairs(users.get_indexer(test[user_id]), of_test, len(users)),
            known=Relevance.from_pairs(by[by >= 0], of_known[by >= 0], len(users)),
            popular=np.argsort(-counts, kind="stable"),
            published=published,
        )

    @classmethod
    def from_run(cls, run: TrainedRun, k: int = PUBLISHED_K) -> EvaluationData:
        """Take the tables of a run; published figures only if data set, split and k are theirs."""
        dataset = str(run.info["dataset"]["name"])
        split = run.recipe.get("split", {})
        same = k == PUBLISHED_K and all(split.get(key) == value for key, value in PUBLISHED_SPLIT.items())
        return cls.from_frames(
            dataset,
            run.items,
            run.interactions,
            run.test,
            user_id=run.user_id,
            item_id=run.item_id,
            published=PUBLISHED.get(dataset, ()) if same else (),
        )


@dataclass(frozen=True)
class EvaluationReport:
    """What was measured.

    Parameters
    ----------
    dataset
        Name of the data set.
    name, build_id
        What was served.
    k
        Places looked at.
    figures
        ``popularity`` (a baseline, not served), ``retrieval`` and ``ranking`` (both served).
    published
        Figures of others in the same protocol.
    """

    dataset: str
    name: str
    build_id: str
    k: int
    figures: Mapping[str, RankingMetrics]
    published: tuple[Published, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "dataset": self.dataset,
            "name": self.name,
            "build_id": self.build_id,
            "k": self.k,
            "users": self.figures["ranking"].users,
            "figures": {name: metrics.to_json() for name, metrics in self.figures.items()},
            "published": [asdict(row) for row in self.published],
        }


def evaluate_served(
    served: Served | str,
    data: EvaluationData,
    *,
    k: int = 10,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Ask a server for every test user and measure what it answers.

    Parameters
    ----------
    served
        What to ask, or ``host:port`` of gRPC.
    data
        Whom to ask about, and what counts as right.
    k
        Places looked at.
    progress
        Called as users are done.

    Returns
    -------
    EvaluationReport
        Figures after retrieval alone (the first k of what retrieval gave, before any filter), after
        ranking (what a caller gets), and of the popularity baseline.

    Raises
    ------
    EvaluationError
        The server answers with items that the data does not have, repeats one, or serves another
        catalogue.
    """
    if isinstance(served, str):
        with ServedEnsemble(served) as ensemble:
            return evaluate_served(ensemble, data, k=k, progress=progress)
    info = served.info
    if k > info.k_max:
        raise EvaluationError(f"k = {k}: the server answers with at most {info.k_max} items; ask for fewer")
    ranked, retrieved = _ask(served, data, k, info.max_batch_size, progress)
    lists = {
        "popularity": popularity_lists(data, k),
        "retrieval": retrieved,
        "ranking": ranked,
    }
    catalogue = len(data.item_ids)
    figures = {}
    for name, rows in lists.items():
        counts = (rows != catalogue).sum(axis=1)
        try:
            figures[name] = ranking_metrics(rows, counts, data.relevance, k, catalogue)
        except ValueError as error:
            raise EvaluationError(f"{info.name}, {name}: {error}") from error
    return EvaluationReport(data.dataset, info.name, info.build_id, k, figures, data.published)


def popularity_lists(data: EvaluationData, k: int) -> IntArray:
    """Return each user's k most popular items among those the user does not know; ``[U, k]``, pad I."""
    catalogue, users = len(data.item_ids), len(data.user_ids)
    place = np.empty(catalogue, np.int64)
    place[data.popular] = np.arange(catalogue)
    lists = np.full((users, k), catalogue, np.int64)
    for user in range(users):
        known = data.known.rows[data.known.offsets[user] : data.known.offsets[user + 1]]
        # Nobody's k-th unknown item stands further down than k plus what the user knows.
        taken = np.zeros(min(catalogue, k + len(known)), np.bool_)
        places = place[known]
        taken[places[places < len(taken)]] = True
        best = data.popular[np.flatnonzero(~taken)[:k]]
        lists[user, : len(best)] = best
    return lists


def check_same(info: ServerInfo, run: TrainedRun, build_id: str | None = None) -> None:
    """Refuse to measure a server by a run that it was not made of.

    Parameters
    ----------
    info
        What answers.
    run
        The run whose test part is used.
    build_id
        The build that must answer, if a release says which.

    Raises
    ------
    EvaluationError
        The recommender's name, its build or its type of ids differs.
    """
    if info.name != run.recipe_name:
        raise EvaluationError(
            f"the server serves {info.name!r}, but {run.path} is a run of {run.recipe_name!r}; "
            "name the run that was exported"
        )
    if build_id is not None and info.build_id != build_id:
        raise EvaluationError(
            f"the server serves build {info.build_id}, but the release is build {build_id}; "
            "start the server on that release"
        )


def check_tables(release: Release) -> None:
    """Refuse a release that holds other tables than its run: the test part says nothing about those.

    Parameters
    ----------
    release
        The release to be measured.

    Raises
    ------
    EvaluationError
        A table was given to the export in place of the run's.
    """
    tables = release.manifest.get("tables", {})
    given = [name for name, table in tables.items() if table["from"] != "run"]
    if given:
        raise EvaluationError(
            f"{release.path}: its {' and '.join(given)} are not the run's, so the run's test part does not "
            "measure it; export the run without other tables and evaluate that"
        )


def _ask(
    served: Served, data: EvaluationData, k: int, batch: int, progress: Progress | None
) -> tuple[IntArray, IntArray]:
    """Return what a caller gets and what retrieval gave, as rows ``[U, k]`` with pad I."""
    catalogue, users = len(data.item_ids), len(data.user_ids)
    row_of = {item: row for row, item in enumerate(data.item_ids)}
    ranked, retrieved = (np.full((users, k), catalogue, np.int64) for _ in range(2))
    for start in range(0, users, batch):
        asked = data.user_ids[start : start + batch]
        candidates = served.retrieve(asked)
        answers = served.recommend(asked, k)
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
    """Refuse a server whose catalogue rows mean other items: its answer must come from its candidates."""
    if not np.isin(rows, candidates).all():
        raise EvaluationError(
            f"user {user!r}: an item of the answer is not among the rows that retrieval gave, so the "
            f"server's catalogue is in another order than {data.dataset}; name the run that was exported"
        )


def _rows(catalogue: pd.Index, ids: pd.Series, dataset: str) -> IntArray:
    rows: IntArray = catalogue.get_indexer(ids).astype(np.int64)
    if (rows < 0).any():
        raise EvaluationError(
            f"{dataset}: item {ids.to_numpy()[rows < 0][0]!r} of the interactions is not in the catalogue"
        )
    return rows
