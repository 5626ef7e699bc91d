"""A run: the directory that training leaves and an export reads.

::

    run.json                     what it is, and the size and SHA-256 of every other file; written last
    workflow/                    the fitted NVTabular workflow, as NVTabular saves it
    user_tower.safetensors       weights; the shapes are in run.json
    item_tower.safetensors
    ranker.safetensors
    users.parquet, items.parquet, train.parquet, valid.parquet, test.parquet
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tiercel_serving.release.opened import file_sha256
from tiercel_serving.settings import ServingSettings

from ..data.dataset import plain_frame
from ..errors import TrainingError
from ..families.dlrm import DLRM, DLRMConfig, build_dlrm
from ..families.layers import PackedModule
from ..families.two_tower import TwoTower, TwoTowerConfig, build_two_tower
from ..recipe.recipe import IndexSettings
from .checkpoint import load_json, load_weights, save_json, save_weights

RUN_FORMAT = 1
RUN_NAME = "run.json"
TABLES = ("users", "items", "train", "valid", "test")


@dataclass(frozen=True)
class TrainedRun:
    """An opened run.

    Parameters
    ----------
    path
        Its directory.
    info
        What ``run.json`` says.
    """

    path: Path
    info: Mapping[str, Any]

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
            If there is no run, a file is missing or changed, or a newer Tiercel wrote it.
        """
        root = Path(path)
        file = root / RUN_NAME
        if not file.is_file():
            raise TrainingError(f"{file}: no run here; make one with `tiercel train`")
        info = load_json(file)
        try:
            version, files = int(info["format"]), dict(info["files"])
            expected = [(name, int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()]
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{file}: not the description of a run ({error!r}); train again") from error
        if version > RUN_FORMAT:
            raise TrainingError(
                f"{file}: run format {version}, but this Tiercel reads up to {RUN_FORMAT}; "
                "upgrade Tiercel or train again"
            )
        for name, size, digest in expected:
            _check_file(root / name, size, digest)
        return cls(root, info)

    @property
    def recipe_name(self) -> str:
        """The recipe's name."""
        return str(self.info["recipe"]["name"])

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe's JSON form, as it was when it was trained."""
        return dict(self.info["recipe"])

    @property
    def serving(self) -> ServingSettings:
        """The recipe's limits and rules of serving."""
        return ServingSettings.from_json(self.info["recipe"]["serving"])

    @property
    def index(self) -> IndexSettings:
        """The recipe's choice of index."""
        return IndexSettings(**self.info["recipe"]["index"])

    @property
    def user_id(self) -> str:
        """The column of the user ids."""
        return str(self.info["dataset"]["user_id"])

    @property
    def item_id(self) -> str:
        """The column of the item ids."""
        return str(self.info["dataset"]["item_id"])

    @property
    def timestamp(self) -> str | None:
        """The column of the interactions' time, or None."""
        name = self.info["dataset"]["timestamp"]
        return None if name is None else str(name)

    @property
    def metrics(self) -> dict[str, Any]:
        """Offline figures: see ``docs/training.md``."""
        return dict(self.info["metrics"])

    @property
    def workflow_path(self) -> Path:
        """The fitted NVTabular workflow."""
        return self.path / "workflow"

    def load_workflow(self) -> Any:
        """Load the fitted NVTabular workflow."""
        import nvtabular

        return nvtabular.Workflow.load(str(self.workflow_path))

    def load_user_tower(self) -> PackedModule:
        """Load the user tower, in evaluation mode: packed user tensors → ``[B, D]``."""
        return self._two_tower.user_tower

    def load_item_tower(self) -> PackedModule:
        """Load the item tower, in evaluation mode: packed item tensors ``[B, …]`` → ``[B, D]``."""
        return self._two_tower.item_tower

    def load_ranker(self) -> DLRM:
        """Load the ranker, in evaluation mode: all packed tensors → ``[B, K, T]``."""
        ranker = build_dlrm(DLRMConfig.from_json(self.info["models"]["ranker"]))
        load_weights(ranker, self.path / "ranker.safetensors")
        return ranker.eval()

    @functools.cached_property
    def _two_tower(self) -> TwoTower:
        model = build_two_tower(TwoTowerConfig.from_json(self.info["models"]["two_tower"]))
        load_weights(model.user_tower, self.path / "user_tower.safetensors")
        load_weights(model.item_tower, self.path / "item_tower.safetensors")
        return model.eval()

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
    info: Mapping[str, Any],
    two_tower: TwoTower,
    ranker: DLRM,
    tables: Mapping[str, pd.DataFrame],
) -> None:
    """Fill a directory that already holds ``workflow/``; ``run.json`` comes last."""
    save_weights(two_tower.user_tower, directory / "user_tower.safetensors")
    save_weights(two_tower.item_tower, directory / "item_tower.safetensors")
    save_weights(ranker, directory / "ranker.safetensors")
    for name in TABLES:
        # The row in the original table tells the order of interactions of the same moment.
        tables[name].assign(__row__=tables[name].index).to_parquet(directory / f"{name}.parquet", index=False)
    files = {
        str(file.relative_to(directory)): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }
    models = {"two_tower": two_tower.config.to_json(), "ranker": ranker.config.to_json()}
    save_json({"format": RUN_FORMAT, **info, "models": models, "files": files}, directory / RUN_NAME)


@contextmanager
def whole_directory(destination: Path, replace_existing: bool) -> Iterator[Path]:
    """Give a directory to fill, which becomes ``destination`` only if the block ends well.

    It lies beside ``destination``, under a name that no command takes for a run, and is removed
    whatever ends the block, Ctrl-C included.

    Raises
    ------
    TrainingError
        If ``destination`` exists and may not be replaced, or is no run.
    """
    check_destination(destination, replace_existing)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
    try:
        yield partial
        partial.chmod(0o755)
        check_destination(destination, replace_existing)
        if destination.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old-", dir=destination.parent))
            os.rename(destination, old / "run")
            try:
                os.rename(partial, destination)
            except BaseException:
                os.rename(old / "run", destination)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_destination(destination: Path, replace_existing: bool) -> None:
    """Raise TrainingError if a run may not be written here."""
    if not destination.exists():
        return
    empty = destination.is_dir() and not any(destination.iterdir())
    if not replace_existing and not empty:
        raise TrainingError(
            f"{destination}: something is there already; replace it or name another directory"
        )
    if not empty and not (destination / RUN_NAME).is_file():
        raise TrainingError(
            f"{destination}: expected a run to replace, found something else; name another directory"
        )


def _check_file(file: Path, size: int, digest: str) -> None:
    if not file.is_file():
        raise TrainingError(f"{file}: listed in {RUN_NAME}, but missing; train again")
    if file.stat().st_size != size:
        raise TrainingError(f"{file}: expected {size} bytes, found {file.stat().st_size}; train again")
    found = file_sha256(file)
    if found != digest:
        raise TrainingError(
            f"{file}: expected SHA-256 {digest[:16]}…, found {found[:16]}…; "
            "the file was changed after the training: train again"
        )
