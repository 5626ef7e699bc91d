"""Bring your own models: compile parts that Tiercel did not train into a release, and ask it.

Run it with ``python docs/examples/bring_your_own.py [DESTINATION]``. ``docs/bring-your-own.md`` explains
every step. Nothing of ``tiercel_pipelines`` is used: the data, the NVTabular workflow, the torch modules
and the item vectors are this file's own.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tiercel_export import TableColumns, Vectors, build_release
from tiercel_serving.release.opened import Release
from tiercel_serving.rules.compare import Compare
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.verify.checks import verify_release

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Merlin warns about GPU packages that nothing here uses
    import nvtabular
    from merlin.io import Dataset
    from nvtabular import ops

DIMENSION = 16


def make_tables(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Make up books, readers, and who read what: a reader mostly reads one genre."""
    random = np.random.default_rng(seed)
    genres = np.array(["crime", "poetry", "travel", "history"])
    books = pd.DataFrame(
        {
            "isbn": [f"978-{n:04}" for n in range(200)],
            "genre": genres[np.arange(200) % 4],
            "pages": random.integers(40, 900, 200),
            "in_print": random.random(200) < 0.9,
            "title": [f"Book no. {n}" for n in range(200)],
        }
    )
    readers = pd.DataFrame(
        {
            "reader": np.arange(1, 81),
            "country": random.choice(["NL", "DE", "FR"], 80),
            "age": random.integers(12, 90, 80),
        }
    )
    who = random.integers(0, 80, 3000)
    genre = np.where(random.random(3000) < 0.8, who % 4, random.integers(0, 4, 3000))
    loans = pd.DataFrame(
        {
            "reader": readers["reader"].to_numpy()[who],
            "isbn": books["isbn"].to_numpy()[genre + 4 * random.integers(0, 50, 3000)],
            "timestamp": random.integers(0, 1_000_000, 3000),
        }
    )
    return readers, books, loans


def fit_workflow(readers: pd.DataFrame, books: pd.DataFrame, loans: pd.DataFrame, folder: str) -> Any:
    """Fit one workflow on the joined tables; the tags say whose each column is."""
    country = ["country"] >> ops.Categorify(out_path=folder)
    age = ["age"] >> ops.Normalize()
    genre = ["genre"] >> ops.Categorify(out_path=folder)
    pages = ["pages"] >> ops.LogOp() >> ops.Normalize()
    graph = ((country + age) >> ops.TagAsUserFeatures()) + ((genre + pages) >> ops.TagAsItemFeatures())
    workflow = nvtabular.Workflow(graph)
    joined = loans.merge(readers, on="reader").merge(books, on="isbn")
    workflow.fit(Dataset(joined[["country", "age", "genre", "pages"]], cpu=True))
    return workflow


def train_vectors(readers: pd.DataFrame, books: pd.DataFrame, loans: pd.DataFrame) -> np.ndarray:
    """Factorise who-read-what: any model that gives one vector a book will do."""
    matrix = np.zeros((len(readers), len(books)))
    matrix[loans["reader"] - 1, pd.Index(books["isbn"]).get_indexer(loans["isbn"])] = 1
    _, strengths, vectors = np.linalg.svd(matrix, full_matrices=False)
    return (vectors[:DIMENSION].T * np.sqrt(strengths[:DIMENSION])).astype(np.float32)


class ReaderTower(nn.Module):
    """A reader's vector is the mean of the vectors of the books read last.

    The parameters of ``forward`` are named after the tensors it takes; that is all the wiring there is.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__()
        # Empty slots of a history hold the row after the last book.
        padded = np.concatenate([vectors, np.zeros((1, vectors.shape[1]), np.float32)])
        self.books = nn.Embedding.from_pretrained(torch.from_numpy(padded))

    def forward(self, history_row: Tensor, history_length: Tensor) -> Tensor:
        """``[B, L]``, ``[B, 1]`` → query ``[B, D]``."""
        mean: Tensor = self.books(history_row).sum(1) / history_length.clamp(min=1)
        return mean


class BookRanker(nn.Module):
    """Adds to the retrieval score what the last genres and the length of a book say."""

    def __init__(self) -> None:
        super().__init__()
        self.genre_weight = nn.Parameter(torch.tensor(0.5))
        self.pages_weight = nn.Parameter(torch.tensor(-0.05))

    def forward(
        self,
        history_cat: Tensor,
        history_length: Tensor,
        item_cat: Tensor,
        item_num: Tensor,
        kept_score: Tensor,
    ) -> Tensor:
        """``[B, L, 1]``, ``[B, 1]``, ``[B, K, 1]``, ``[B, K, 1]``, ``[B, K]`` → ``[B, K, 1]``."""
        same = (history_cat[:, None, :, 0] == item_cat) & (item_cat > 0)
        share = same.sum(2) / history_length.clamp(min=1)
        return (kept_score + self.genre_weight * share + self.pages_weight * item_num[..., 0])[..., None]


def build(destination: Path) -> Release:
    """Make everything, and compile it."""
    readers, books, loans = make_tables()
    vectors = train_vectors(readers, books, loans)
    with tempfile.TemporaryDirectory() as folder:
        return build_release(
            destination,
            name="books",
            workflow=fit_workflow(readers, books, loans, folder),
            retrieval={"readers_like_you": Vectors(ReaderTower(vectors), vectors)},
            ranker=BookRanker(),
            items=books,
            users=readers,
            interactions=loans,
            columns=TableColumns(item_id="isbn", user_id="reader"),
            settings=ServingSettings(
                sources=(Index("readers_like_you"), Popular(quota=5)),
                candidates=60,
                kept=40,
                k_max=20,
                history_length=10,
                history_columns=("genre",),
                rules=(Compare("in print", column="in_print", operator="==", value=True),),
                title_column="title",
            ),
            replace=True,
        )


def main(destination: Path) -> Release:
    """Build the release, verify it once more from disk alone, and ask it in this process."""
    release = build(destination)
    report = verify_release(destination)
    print(f"{sum(row.ok for row in report.rows)} of {len(report.rows)} checks passed")
    answers, _ = Chain.open(release).run({"user_id": np.array([[7], [8]])})
    for reader, ids, scores in zip((7, 8), answers["item_id"], answers["score"], strict=True):
        print(
            f"reader {reader}:", ", ".join(f"{i.decode()} {s:.2f}" for i, s in zip(ids, scores, strict=True))
        )
    print(f"serve it with: tiercel serve {destination}")
    return release


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("releases/books"))
