r"""``kmeans``: clusters of users or items, and for each cluster a list of items.

.. math:: \max \sum_x \cos(x, c_{k(x)})

over users or items x, by spherical k-means (Dhillon & Modha 2001, "Concept decompositions for large sparse
text data using clustering"; FAISS's implementation). An item's vector is its normalised row of H Σ in the
truncated singular value decomposition X ≈ W Σ Hᵀ of the interactions. A user's vector is the direction of the
history's mean, so the current history of a request decides the nearest cluster. A cluster of users lists the
items that most of them had; a cluster of items lists its own items with the most users.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
from safetensors.numpy import save_file

from tiercel_export.forms import Lists
from tiercel_serving.kinds import Settings
from tiercel_serving.problems import COUNT, Problem, choose, out_of_range
from tiercel_serving.spec import Array, Arrays

from ..arrays.inputs import ModelInputs
from ..errors import TrainingError
from .history_items import history_items
from .history_mean import HistoryMean, UnitItems, history_mean, id_table, unit_items
from .layers import run_module
from .sparse_weights import read_arrays, telling_column
from .table import Course, Plan, RetrievalData
from .weights import load_weights, save_weights

_WEIGHTS, _LISTS = "items.safetensors", "lists.safetensors"

#: Points that are assigned to clusters at once.
_BLOCK = 65_536

#: Random starts of k-means, of which the best result counts: one alone may merge clusters that lie apart.
_STARTS = 5


class KMeans(Settings, frozen=True, tag="kmeans"):
    """Clusters of users or of items, with a list each.

    Parameters
    ----------
    name
        Name of its candidate source.
    of
        ``users``: lists of what similar users had; ``items``: lists of items that the same users had.
    clusters
        C; at most the number of users or items.
    dimension
        D, the length of the vectors; elements beyond the rank of the interactions are 0.
    items_per_cluster
        Maximum length of a list.
    iterations
        Iterations of k-means.
    """

    name: str = "kmeans"
    of: Literal["users", "items"] = "users"
    clusters: int = 50
    dimension: int = 32
    items_per_cluster: int = 1_000
    iterations: int = 20

    form: ClassVar[str] = "lists"
    #: Scores are relative frequencies, not log-probabilities.
    scale: ClassVar[float] = 1.0

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and for an unknown ``of``."""
        names = ("clusters", "dimension", "items_per_cluster", "iterations")
        wrong = list(out_of_range(self, dict.fromkeys(names, COUNT)))
        if self.of not in ("users", "items"):
            problem = f"expected 'users' or 'items', got {self.of!r}"
            wrong.append(Problem("of", problem, choose(self.of, ("users", "items"))))
        return wrong

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns``, since the model reads the history."""
        return {"history_columns": "name the item id feature: users are described by their history"}

    def fit(self, data: RetrievalData, plan: Plan) -> tuple[FittedLists, Course]:
        """Decompose the interactions, cluster, and make the lists; there are no epochs."""
        pairs, items = data.pairs, data.packed.n_items
        if not len(pairs):
            raise TrainingError(f"{plan.label}: there are no interactions to learn from")
        if plan.progress is not None:
            plan.progress(plan.label, 0, 1)
        had = sp.csr_matrix((np.ones(len(pairs)), (pairs.users, pairs.items)), (pairs.n_users, items))
        vectors = _unit(_item_vectors(had, self.dimension, plan.seed))
        listed = np.flatnonzero(np.abs(vectors).sum(axis=1))
        users = np.flatnonzero(pairs.lengths)
        points = vectors[listed] if self.of == "items" else _unit(had[users] @ vectors)
        keys, cluster = self._clusters(points.astype(np.float32), plan.seed)
        if self.of == "items":
            counts = np.asarray(had.sum(axis=0)).ravel()[listed]
            said = sp.csr_matrix((counts / counts.max(), (cluster, listed)), (len(keys), items))
        else:
            members = sp.csr_matrix((np.ones(len(users)), (cluster, users)), (len(keys), pairs.n_users))
            share = sp.diags(1 / np.maximum(np.asarray(members.sum(axis=1)).ravel(), 1))
            said = sp.csr_matrix(share @ members @ had)
        offsets, rows, scores = _longest(said, self.items_per_cluster)
        column, categories = telling_column(data.packed.item["item_cat"][:-1])
        tower = self._fresh(data.inputs)
        place = id_table(data.inputs, tower.items)
        with torch.no_grad():
            ids = data.packed.item["item_cat"][listed, tower.items.places[place]]
            table = tower.items.tables[place]
            table.weight[torch.from_numpy(ids)] = torch.from_numpy(vectors[listed]).float()  # type: ignore[operator]
        arrays = {"keys": keys, "offsets": offsets, "rows": rows, "scores": scores}
        fitted = FittedLists(history_mean(tower.items).eval(), tower, arrays, categories, column)
        if plan.progress is not None:
            plan.progress(plan.label, 1, 1)
        judged = () if plan.judge is None else (plan.judge(fitted),)
        return fitted, Course(0, (), judged)

    def _clusters(self, points: Array, seed: int) -> tuple[Array, Array]:
        """Return the centres ``[C, D]``, and the nearest one of each point, ``[n]``."""
        import faiss

        count = min(self.clusters, len(points))
        faiss.omp_set_num_threads(torch.get_num_threads())
        found = faiss.Kmeans(
            points.shape[1],
            count,
            niter=self.iterations,
            nredo=_STARTS,
            seed=seed % 2**31,
            spherical=True,
            min_points_per_centroid=1,
        )
        found.train(np.ascontiguousarray(points))
        keys = np.asarray(found.centroids)
        nearest = [
            (points[start : start + _BLOCK] @ keys.T).argmax(axis=1)
            for start in range(0, len(points), _BLOCK)
        ]
        return keys, np.concatenate(nearest)

    def _fresh(self, inputs: ModelInputs) -> UnitItems:
        """Return the module of item vectors, all 0."""
        items = history_items(inputs, self.dimension, 0.0)
        return unit_items(items).eval()

    def load(self, folder: Path, inputs: ModelInputs) -> FittedLists:
        """Read item vectors, centres and lists."""
        tower = self._fresh(inputs)
        load_weights(tower, folder / _WEIGHTS)
        arrays = read_arrays(folder / _LISTS, "lists")
        try:
            column, categories = int(arrays.pop("column")[0]), arrays.pop("categories")
        except KeyError as error:
            raise TrainingError(f"{folder / _LISTS}: it holds no {error}; train again") from error
        return FittedLists(history_mean(tower.items).eval(), tower, arrays, categories, column)


class FittedLists:
    """A query module, and lists with their keys."""

    def __init__(
        self, user_tower: HistoryMean, items: UnitItems, arrays: Arrays, categories: Array, column: int
    ) -> None:
        self.user_tower, self._items = user_tower, items
        self._arrays, self._categories, self._column = dict(arrays), categories, column

    def query(self, users: Arrays) -> Array:
        """Return the queries ``[B, D]``."""
        return run_module(self.user_tower, users)

    def form(self, items: Arrays) -> dict[str, Array]:
        """Return ``keys``, ``offsets``, ``rows`` and ``scores`` over a catalogue."""
        arrays: dict[str, Array] = self.served().over(items["item_cat"])
        return arrays

    def save(self, folder: Path) -> None:
        """Write item vectors, centres and lists, and the category id of each catalogue row."""
        save_weights(self._items, folder / _WEIGHTS)
        named = {"categories": self._categories, "column": np.array([self._column])}
        save_file({**self._arrays, **named}, folder / _LISTS)

    def served(self) -> Lists:
        """Return the query module with the lists."""
        return Lists(self.user_tower, self._arrays, self._categories, self._column)


def _item_vectors(had: Any, dimension: int, seed: int) -> Array:
    """Return right singular vectors of ``had`` times its singular values, ``[I, D]``; 0 beyond the rank."""
    from scipy.sparse.linalg import svds

    count = min(dimension, min(had.shape) - 1)
    vectors = np.zeros((had.shape[1], dimension))
    if count > 0:
        start = np.random.default_rng(seed).normal(size=min(had.shape))
        _, values, right = svds(had, k=count, v0=start)
        vectors[:, :count] = (values[:, None] * right).T[:, ::-1]
    # An item without interactions has no direction.
    vectors[np.asarray(had.sum(axis=0)).ravel() == 0] = 0
    return vectors


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6))


def _longest(said: Any, most: int) -> tuple[Array, Array, Array]:
    """Return the ``most`` largest entries of each row as offsets, columns and values, ties by column."""
    said.sort_indices()
    row = np.repeat(np.arange(said.shape[0]), np.diff(said.indptr))
    order = np.lexsort((said.indices, -said.data, row))
    kept = order[np.arange(len(row)) - said.indptr[row] < most]
    offsets = np.append(0, np.cumsum(np.minimum(np.diff(said.indptr), most)))
    return offsets, said.indices[kept].astype(np.int32), said.data[kept].astype(np.float32)
