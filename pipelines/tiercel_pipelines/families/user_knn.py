r"""``user_knn``: items of the users with the most similar histories.

.. math::
    s_{ui} = \sum_{v \in N_k(u)} \mathrm{sim}(u, v)\, r_{vi}, \qquad
    \mathrm{sim}(u, v) = \frac{n_{uv}}{n_{uv} + h} \cdot \frac{x_u^\top x_v}{\|x_u\| \|x_v\|}
    \quad\text{or}\quad \frac{n_{uv}}{n_u + n_v - n_{uv} + h}

where x_u is the weighted vector of user u's items and n counts items: cosine or Jaccard (Resnick et al. 1994,
"GroupLens: an open architecture for collaborative filtering of netnews"; for implicit feedback Aiolli 2013,
"Efficient top-n recommendation for very large scale binary rated datasets"), shrunk by h where two users have
few items in common. Items are weighted like words in documents, where a user is a document: TF-IDF, or BM25
instead of the norms. r is 1, or v's rating minus the mean of v's ratings.

A list of neighbours for each user would be outdated by the user's next item. Therefore the interactions
themselves are served (``user neighbours``), and exact neighbours are found for the history of each request.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import save_file

from tiercel_export.forms import UserNeighbours
from tiercel_serving.kinds import Settings
from tiercel_serving.problems import AT_LEAST_0, COUNT, Problem, out_of_range
from tiercel_serving.spec import Array, Arrays

from ..arrays.inputs import ModelInputs
from ..errors import TrainingError
from .item_knn import bm25_share, rarity, similarity_problems
from .ratings import centred
from .sparse_weights import read_arrays, telling_column
from .table import Course, Plan, RetrievalData

_FILE = "user_neighbours.safetensors"


class UserKNN(Settings, frozen=True, tag="user_knn"):
    """User-user neighbourhood.

    Parameters
    ----------
    name
        Name of its candidate source.
    neighbours
        k, the number of neighbours.
    similarity
        ``cosine`` or ``jaccard``.
    weighting
        Weighting of items: ``none``, ``tf_idf`` or ``bm25``; Jaccard counts items and needs ``none``.
    shrinkage
        h, in items.
    rating
        Column of the interactions: neighbours then vote for items that they rated above their own mean, and
        against items that they rated below it. None weights all interactions alike.
    users_per_item
        Maximum number of users kept for each item, drawn at random, which bounds the cost of a request. None
        keeps all.
    """

    name: str = "user_knn"
    neighbours: int = 100
    similarity: Literal["cosine", "jaccard"] = "cosine"
    weighting: Literal["none", "tf_idf", "bm25"] = "tf_idf"
    shrinkage: float = 0.0
    rating: str | None = None
    users_per_item: int | None = 5_000

    form: ClassVar[str] = "user neighbours"
    dimension: ClassVar[None] = None
    scale: ClassVar[float] = 1.0

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and for a weighting together with Jaccard."""
        ranges = {"neighbours": COUNT, "shrinkage": AT_LEAST_0, "users_per_item": COUNT}
        return [*out_of_range(self, ranges, none={"users_per_item": "all"}), *similarity_problems(self)]

    def needs(self) -> Mapping[str, str]:
        """Return ``history_length``, since neighbours are found by the history."""
        return {"history_length": "say how many of a user's items it may look at, such as 100"}

    def interaction_columns(self) -> tuple[str, ...]:
        """Return the column of ratings, if one is set."""
        return () if self.rating is None else (self.rating,)

    def fit(self, data: RetrievalData, plan: Plan) -> tuple[FittedNeighbours, Course]:
        """Weight the interactions; there are no epochs, and no pairs of users are compared."""
        pairs, items = data.pairs, data.packed.n_items
        if not len(pairs):
            raise TrainingError(f"{plan.label}: there are no interactions to learn from")
        if plan.progress is not None:
            plan.progress(plan.label, 0, 1)
        votes = np.ones(len(pairs)) if self.rating is None else centred(pairs, self.rating, plan.label)
        # A user without interactions is nobody's neighbour.
        lengths = pairs.lengths[pairs.lengths > 0]
        offsets = np.append(0, np.cumsum(lengths))
        weights, likeness = self._weighed(pairs.items, lengths, items)
        had = sp.csr_matrix((np.arange(len(pairs)), pairs.items, offsets), (len(lengths), items)).tocsc()
        kept = self._kept(had.indptr, np.random.default_rng(plan.seed))
        column, categories = telling_column(data.packed.item["item_cat"][:-1])
        arrays = {
            "offsets": np.append(0, np.cumsum(kept))[had.indptr],
            "users": had.indices[kept].astype(np.int32),
            "likeness": likeness[had.data[kept]].astype(np.float32),
            "weights": weights.astype(np.float32),
            "lengths": lengths.astype(np.int32),
            "vote_offsets": offsets,
            "voted": pairs.items.astype(np.int32),
            "votes": votes.astype(np.float32),
            "neighbours": np.array([self.neighbours]),
            "shrinkage": np.array([float(self.shrinkage)]),
            "jaccard": np.array([self.similarity == "jaccard"], np.int32),
        }
        fitted = FittedNeighbours(UserNeighbours(arrays, categories, column))
        if plan.progress is not None:
            plan.progress(plan.label, 1, 1)
        judged = () if plan.judge is None else (plan.judge(fitted),)
        return fitted, Course(0, (), judged)

    def _weighed(self, rows: Array, lengths: Array, items: int) -> tuple[Array, Array]:
        """Return the weight of each item, ``[I]``, and the normalised weight of each interaction, ``[n]``."""
        weights = np.ones(items)
        if self.weighting != "none":
            weights = rarity(np.bincount(rows, minlength=items), len(lengths))
        likeness = weights[rows]
        owner = np.repeat(np.arange(len(lengths)), lengths)
        if self.weighting == "bm25":
            return weights, likeness * bm25_share(lengths)[owner]
        norms = np.sqrt(np.bincount(owner, likeness**2, minlength=len(lengths)))
        return weights, likeness / np.maximum(norms, 1e-12)[owner]

    def _kept(self, offsets: Array, rng: np.random.Generator) -> Array:
        """Return ``[n]`` True for kept entries: at most ``users_per_item`` per item (``offsets [I + 1]``)."""
        counts = np.diff(offsets)
        kept = np.ones(int(offsets[-1]), np.bool_)
        if self.users_per_item is None or counts.max(initial=0) <= self.users_per_item:
            return kept
        item = np.repeat(np.arange(len(counts)), counts)
        order = np.lexsort((rng.random(len(item)), item))
        kept[order] = np.arange(len(item)) - offsets[:-1][item] < self.users_per_item
        return kept

    def load(self, folder: Path, inputs: ModelInputs) -> FittedNeighbours:
        """Read the interactions."""
        arrays = read_arrays(folder / _FILE, "who had what")
        try:
            column, categories = int(arrays.pop("column")[0]), arrays.pop("categories")
        except KeyError as error:
            raise TrainingError(f"{folder / _FILE}: it holds no {error}; train again") from error
        return FittedNeighbours(UserNeighbours(arrays, categories, column))


class FittedNeighbours:
    """A fitted model: users and their items."""

    def __init__(self, users: UserNeighbours) -> None:
        self.users = users

    def query(self, users: Arrays) -> None:
        """Return None, since neighbours are found by the history."""
        return

    def form(self, items: Arrays) -> dict[str, Array]:
        """Return the arrays over a catalogue."""
        arrays: dict[str, Array] = self.users.over(items["item_cat"])
        return arrays

    def save(self, folder: Path) -> None:
        """Write the arrays, and the category id of each catalogue row."""
        assert self.users.categories is not None
        named = {"categories": self.users.categories, "column": np.array([self.users.column])}
        save_file({**self.users.arrays, **named}, folder / _FILE)

    def served(self) -> UserNeighbours:
        """Return the users, whose items can be mapped to any catalogue."""
        return self.users
