"""A run: the directory that training leaves and an export reads.

::

    run.json                     what it is, and the size and SHA-256 of every other file; written last
    workflow/                    the fitted NVTabular workflow, as NVTabular saves it
    retrieval/<name>/            each retrieval model, as its family saves it
    ranking/                     the ranker, if there is one
    users.parquet, items.parquet, train.parquet, valid.parquet, test.parquet
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from tiercel_serving.release.manifest import encode
from tiercel_serving.release.opened import check_file
from tiercel_serving.release.writing import list_files
from tiercel_serving.settings import ServingSettings

from ..data.dataset import plain_frame
from ..errors import TrainingError
from ..families.table import FittedRanking, FittedRetrieval
from .record import RUN_NAME, RunRecord, read_record

TABLES = ("users", "items", "train", "valid", "test")

_RETRIEVAL, _RANKING = "retrieval", "ranking"


@dataclass(frozen=True)
class TrainedRun:
    """An opened run.

    Parameters
    ----------
    path
        Its directory.
    record
        What ``run.json`` says.
    """

    path: Path
    record: RunRecord

    @classmethod
    def open(cls, path: str | Path) -> TrainedRun:
        """Open a run after comparing every file with its checksum.

        Parameters
        ----------
        path
            The run's directory.

        Raises
        ------
        TrainingError
            If there is no run, or a Tiercel of another format wrote it.
        ReleaseError
            If a file is missing or changed.
        """
        root = Path(path)
        record = read_record(root / RUN_NAME)
        for name, entry in record.files.items():
            check_file(root / name, entry, RUN_NAME, "train again")
        return cls(root, record)

    @property
    def recipe_name(self) -> str:
        """The recipe's name."""
        return self.record.recipe.name

    @property
    def serving(self) -> ServingSettings:
        """The recipe's limits and rules of serving."""
        return self.record.recipe.serving

    @property
    def user_id(self) -> str:
        """The column of the user ids."""
        return self.record.data.user_id

    @property
    def item_id(self) -> str:
        """The column of the item ids."""
        return self.record.data.item_id

    @property
    def timestamp(self) -> str | None:
        """The column of the interactions' time, or None."""
        return self.record.data.timestamp

    @property
    def metrics(self) -> dict[str, Any]:
        """Offline figures: see ``docs/training.md``."""
        return self.record.metrics

    @property
    def workflow_path(self) -> Path:
        """The fitted NVTabular workflow."""
        return self.path / "workflow"

    def load_workflow(self) -> Any:
        """Load the fitted NVTabular workflow."""
        import nvtabular

        return nvtabular.Workflow.load(str(self.workflow_path))

    def load_retrieval(self) -> dict[str, FittedRetrieval]:
        """Load the retrieval models by name."""
        models = self.record.models.retrieval
        return {
            name: family.load(self.path / _RETRIEVAL / name, self.record.inputs)
            for name, family in models.items()
        }

    def load_ranking(self) -> FittedRanking | None:
        """Load the ranker, if there is one."""
        family = self.record.models.ranking
        return None if family is None else family.load(self.path / _RANKING, self.record.inputs)

    @functools.cached_property
    def users(self) -> pd.DataFrame:
        """The raw user table."""
        return self._table("users")

    @functools.cached_property
    def items(self) -> pd.DataFrame:
        """The raw item table; a row's position is the catalogue row."""
        return self._table("items")

    @functools.cached_property
    def train(self) -> pd.DataFrame:
        """Interactions of the training part."""
        return self._table("train")

    @functools.cached_property
    def valid(self) -> pd.DataFrame:
        """Interactions of the validation part."""
        return self._table("valid")

    @functools.cached_property
    def test(self) -> pd.DataFrame:
        """Interactions of the test part, which nothing was trained on."""
        return self._table("test")

    @property
    def interactions(self) -> pd.DataFrame:
        """Everything that serving may know: training and validation part in their original order."""
        return pd.concat([self.train, self.valid]).sort_index().reset_index(drop=True)

    def _table(self, name: str) -> pd.DataFrame:
        file = self.path / f"{name}.parquet"
        try:
            frame = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise TrainingError(f"{file}: expected a Parquet table ({error}); train again") from error
        index = frame.pop("__row__").to_numpy()
        return plain_frame(frame, str(file)).set_index(pd.Index(index))


def write_run(
    directory: Path,
    record: RunRecord,
    retrieval: Mapping[str, FittedRetrieval],
    ranking: FittedRanking | None,
    tables: Mapping[str, pd.DataFrame],
) -> None:
    """Fill a directory that already holds ``workflow/``; ``run.json`` comes last.

    Parameters
    ----------
    directory
        The directory.
    record
        What ``run.json`` shall say; the files are listed here.
    retrieval, ranking
        The models.
    tables
        A frame for each of :data:`TABLES`.
    """
    for name, model in retrieval.items():
        folder = directory / _RETRIEVAL / name
        folder.mkdir(parents=True)
        model.save(folder)
    if ranking is not None:
        (directory / _RANKING).mkdir()
        ranking.save(directory / _RANKING)
    for name in TABLES:
        # The row in the original table tells the order of interactions of the same moment.
        tables[name].assign(__row__=tables[name].index).to_parquet(directory / f"{name}.parquet", index=False)
    files = list_files(directory, RUN_NAME)
    (directory / RUN_NAME).write_bytes(encode(msgspec.structs.replace(record, files=files)))
