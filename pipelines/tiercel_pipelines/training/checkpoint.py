"""Checkpoints: what an interrupted training leaves beside the future run, for ``--resume``.

::

    <run>.checkpoint/
        checkpoint.json               recipe, data, finished models, the model in training, checksums
        models/<key>/                 a finished model, as its family saves it
        state-<number>.safetensors    the model in training, after some epoch

Everything else is computed again: the split, the workflow, the lists of candidates. The seed determines all
of it, so a resumed training gives the run that an uninterrupted one would have given.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tiercel_serving.columns import Column
from tiercel_serving.errors import DestinationTaken
from tiercel_serving.machine_faults import machine_faults
from tiercel_serving.release.manifest import File, encode
from tiercel_serving.release.opened import check_file, file_sha256
from tiercel_serving.release.writing import list_files

from ..arrays.inputs import ModelInputs
from ..arrays.packed import Packed
from ..arrays.pairs import Array, Pairs
from ..errors import TrainingError
from ..families.table import Course, State
from ..recipe.recipe import Recipe
from .record import RecipeRecord

FORMAT = 2
_HEAD = "checkpoint.json"
#: Includes the build, such as ``+cpu``: builds differ in random draws and in the order of sums.
_TORCH = str(torch.__version__)


@contextlib.contextmanager
def sole_training(destination: Path) -> Iterator[None]:
    """Hold a lock beside the future run; it is released even if the process is killed.

    Raises
    ------
    DestinationTaken
        If another process is training this run.
    """
    lock = destination.parent / f".{destination.name}.lock"
    with machine_faults(destination.parent, f"training {destination.name}"):
        destination.parent.mkdir(parents=True, exist_ok=True)
        file = _locked_file(lock, destination)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


def _locked_file(lock: Path, destination: Path) -> int:
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            who = os.read(file, 20).decode() or "unknown"
            os.close(file)
            raise DestinationTaken(
                f"{destination}: another training is writing this run (process {who}); wait for it, end it, "
                "or name another directory (--run)"
            ) from error
        # The former holder of the lock may have removed the file in between.
        if lock.exists() and os.path.samestat(os.fstat(file), lock.stat()):
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
            return file
        os.close(file)


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """Return everything of a recipe that a training depends on, except its graph, which the data reflect."""
    training = msgspec.structs.replace(recipe.training, checkpoint_s=0)
    parts = {
        "recipe": msgspec.structs.replace(RecipeRecord.of(recipe), origin="", training=training),
        "retrieval": {family.name: family for family in recipe.models},
        "ranking": recipe.ranking,
    }
    document: dict[str, Any] = json.loads(encode(parts))
    return document


def data_digest(packed: Packed, pairs: Pairs, folds: Array) -> str:
    """Return a digest of all data that a training reads."""
    digest = hashlib.blake2b(digest_size=16)
    context = {} if packed.contexts is None else packed.contexts.columns
    parts: list[Mapping[str, Any]] = [packed.user, packed.item, context]
    parts.append({"users": pairs.users, "items": pairs.items, "weights": pairs.weights, "folds": folds})
    parts += [pairs.numbers, {} if pairs.times is None else {"times": pairs.times}]
    if pairs.targets is not None:
        parts.append({"targets": pairs.targets})
    parts += [_arrays_of(name, column) for name, column in sorted(packed.raw.items())]
    for part in parts:
        for name in sorted(part):
            array = np.ascontiguousarray(part[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _arrays_of(name: str, column: Column) -> dict[str, Array]:
    """Return the arrays that make up a raw column; texts become their lengths and their bytes."""
    arrays = {"values": column.values, "valid": column.valid}
    arrays |= {"offsets": column.offsets, "row_valid": column.row_valid}
    if column.values.dtype == object:
        texts = column.values.tolist()
        arrays["lengths"] = np.array([len(text) for text in texts], np.int64)
        arrays["values"] = np.frombuffer(b"".join(texts), np.uint8)
    return {f"raw {name} {part}": array for part, array in arrays.items() if array is not None}


class AtWork(msgspec.Struct, frozen=True):
    """The model in training: its key, the number of its state, the state's JSON facts, and its file."""

    key: str
    number: int
    facts: dict[str, Any]
    files: dict[str, File]


class Head(msgspec.Struct):
    """The contents of ``checkpoint.json``.

    Parameters
    ----------
    format, document, data
        The checkpoint format, the recipe, and a digest of the data; None if not known yet.
    models, files
        Finished models by key, and their files.
    at
        The model in training.
    torch
        Each version of torch that trained, in order.
    """

    format: int
    document: dict[str, Any]
    data: str | None = None
    models: dict[str, Course] = {}
    files: dict[str, File] = {}
    at: AtWork | None = None
    torch: tuple[str, ...] = ()


class Checkpoint:
    """The checkpoint of one training, in a folder of its own; nothing is written before ``every_s`` seconds.

    Parameters
    ----------
    folder, every_s
        The folder, and the minimum number of seconds between two states. A state is written after an epoch.
    document
        What :func:`recipe_document` returns.
    resume
        Whether to continue from an existing checkpoint.

    Raises
    ------
    DestinationTaken
        If there is a checkpoint and ``resume`` is False.
    TrainingError
        If the checkpoint is of another recipe or format, or ``checkpoint.json`` is damaged.
    ReleaseError
        If another file of the checkpoint is missing or changed.
    """

    def __init__(self, folder: Path, every_s: float, document: Mapping[str, Any], *, resume: bool) -> None:
        self.folder, self._every_s, self._written_at = folder, every_s, time.monotonic()
        self._head = Head(FORMAT, dict(document), torch=(_TORCH,))
        #: Models finished since the last write: key → model and course.
        self._fresh: dict[str, tuple[Any, Course]] = {}
        self._number = 0
        if not folder.exists() or (folder.is_dir() and not (folder / _HEAD).exists()):
            # Without a head no checkpoint was ever complete: a kill or a full disk stopped the first write.
            return
        if not resume:
            raise DestinationTaken(
                f"{folder}: an interrupted training left this; go on with it (resume=True, --resume), or "
                "begin anew (replace=True, --replace)"
            )
        self._head = self._read(document)
        self._number = 0 if self._head.at is None else self._head.at.number
        if self._head.torch[-1:] != (_TORCH,):
            self._head.torch = (*self._head.torch, _TORCH)

    def notes(self) -> tuple[str, ...]:
        """Return a note if several versions of torch trained: their random draws and sums may differ.

        The models are no worse for it and hours of work are at stake, so this is noted and not refused.
        """
        if len(self._head.torch) < 2:
            return ()
        first, *later = self._head.torch
        return (
            f"torch {first} began this training and {', then '.join(later)} went on with it: the models may "
            "differ from an uninterrupted training's; for the same, train anew with one version",
        )

    def _read(self, document: Mapping[str, Any]) -> Head:
        """Read the head, and compare every file with it, since changed weights look like any others."""
        file, anew = self.folder / _HEAD, f"remove {self.folder} and begin anew"
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            version = told["format"]
            head = msgspec.convert(told, Head) if version == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{file}: no checkpoint can be read ({error}); {anew}") from error
        if head is None:
            raise TrainingError(
                f"{file}: checkpoint format {version}, but this Tiercel reads {FORMAT}; {anew}"
            )
        differs = _difference(head.document, document)
        if differs:
            raise TrainingError(
                f"{file}: the checkpoint is of another recipe: {differs}; give the recipe as it was, "
                f"or {anew}"
            )
        for name, entry in {**head.files, **({} if head.at is None else head.at.files)}.items():
            check_file(self.folder / name, entry, _HEAD, anew)
        return head

    def check_data(self, digest: str) -> None:
        """Raise TrainingError if the checkpoint is of other data, or another graph, than ``digest``."""
        if self._head.data not in (None, digest):
            raise TrainingError(
                f"{self.folder / _HEAD}: the checkpoint is of other data: the tables, or the recipe's "
                f"features, are not those that it was begun with; give them as they were, or remove "
                f"{self.folder} and begin anew"
            )
        self._head.data = digest

    def finished(self, key: str, family: Any, inputs: ModelInputs) -> tuple[Any, Course] | None:
        """Return a model that was finished before, with its course; None if it was not."""
        course = self._head.models.get(key)
        return None if course is None else (family.load(self.folder / "models" / key, inputs), course)

    def finish(self, key: str, model: Any, course: Course) -> None:
        """Keep a finished model; it is written with the next state, or now if a write is due."""
        self._fresh[key] = (model, course)
        if self._due:
            self._write(None)

    def states(self, key: str) -> KeptStates:
        """Return where the model ``key`` keeps its state."""
        return KeptStates(self, key)

    def remove(self) -> None:
        """Remove the folder, once the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _due(self) -> bool:
        return time.monotonic() - self._written_at >= self._every_s

    def offer(self, key: str, state: Callable[[], State]) -> None:
        """Write the state of the model in training if a write is due."""
        if self._due:
            self._write((key, state()))

    def read(self, key: str) -> State | None:
        """Return the state of the model in training if it is ``key``, else None."""
        at = self._head.at
        if at is None or at.key != key:
            return None
        return load_file(self.folder / self._state_name(at.number)), at.facts

    def _write(self, at: tuple[str, State] | None) -> None:
        """Write what is new, then replace the head, then remove the states that only the old head named."""
        with machine_faults(self.folder.parent, f"writing the checkpoint {self.folder.name}", self.folder):
            for key, (model, course) in self._fresh.items():
                folder = self.folder / "models" / key
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                model.save(folder)
                self._head.models[key] = course
                listed = list_files(folder, _HEAD)
                self._head.files |= {f"models/{key}/{name}": entry for name, entry in listed.items()}
            self.folder.mkdir(parents=True, exist_ok=True)
            self._head.at = None if at is None else self._kept(*at)
            partial = self.folder / f".{_HEAD}.partial"
            partial.write_text(json.dumps(msgspec.to_builtins(self._head)), encoding="utf-8")
            os.replace(partial, self.folder / _HEAD)
            current = None if at is None else self._state_name(self._number)
            for file in self.folder.glob("state-*.safetensors"):
                if file.name != current:
                    file.unlink()
        self._fresh.clear()
        self._written_at = time.monotonic()

    def _kept(self, key: str, state: State) -> AtWork:
        """Write the state of the model in training, under a new name."""
        arrays, facts = state
        self._number += 1
        file = self.folder / self._state_name(self._number)
        # safetensors refuses arrays that are not contiguous, and NumPy's scalars.
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)
        return AtWork(key, self._number, facts, {file.name: File(file.stat().st_size, file_sha256(file))})

    @staticmethod
    def _state_name(number: int) -> str:
        return f"state-{number}.safetensors"


@dataclass(frozen=True)
class KeptStates:
    """The state of one model in a checkpoint; see :class:`~tiercel_pipelines.families.table.EpochStates`."""

    checkpoint: Checkpoint
    key: str

    def read(self) -> State | None:
        """Return the state that was written, if this is the model that was in training."""
        return self.checkpoint.read(self.key)

    def offer(self, state: Callable[[], State]) -> None:
        """Write the state if a write is due."""
        self.checkpoint.offer(self.key, state)


def _difference(kept: Any, now: Any, where: str = "") -> str:
    """Say where two JSON values first differ; empty if nowhere."""
    if isinstance(kept, dict) and isinstance(now, dict):
        for name in [*kept, *(name for name in now if name not in kept)]:
            found = _difference(kept.get(name), now.get(name), f"{where}.{name}".lstrip("."))
            if found:
                return found
        return ""
    return "" if kept == now else f"{where} was {kept!r}, now it is {now!r}"
