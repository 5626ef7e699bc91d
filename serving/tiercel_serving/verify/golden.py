"""Golden vectors: a few inputs of every artefact with its oracle's outputs.

The oracles are NVTabular for the feature programs, torch for the models, and the plain reference of each kind
for sources and for whole answers. They run once, at export. Afterwards a release can be verified on a machine
without NVTabular and torch, so this module needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from ..columns import Column
from ..release.artefacts import write_artefact
from ..release.opened import Release
from ..spec import Array
from ..tables.column_store import open_column, store_column

#: Number of rows for each feature program, of users for each model and source, and of users for answers.
FEATURE_ROWS, MODEL_ROWS, ANSWER_USERS = 48, 8, 16

#: The artefact's name and kind.
GOLDEN = "golden"


class Program(msgspec.Struct, frozen=True):
    """Names of a feature program's golden columns, and their number of rows."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: int


class Tensors(msgspec.Struct, frozen=True):
    """Names of golden tensors."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Contents(msgspec.Struct, frozen=True):
    """The artefact's contents: by feature artefact, by engine stage, by source, and whole answers."""

    features: dict[str, Program]
    engines: dict[str, Tensors]
    sources: dict[str, Tensors]
    answers: Tensors


@dataclass
class Golden:
    """Golden vectors while they are collected.

    Parameters
    ----------
    arrays
        The artefact's arrays.
    features, engines, sources, answers
        As in :class:`Contents`.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    features: dict[str, Program] = field(default_factory=dict)
    engines: dict[str, Tensors] = field(default_factory=dict)
    sources: dict[str, Tensors] = field(default_factory=dict)
    answers: Tensors = field(default_factory=lambda: Tensors((), ()))

    def add_features(
        self, name: str, inputs: Mapping[str, Column], outputs: Mapping[str, Column], rows: int
    ) -> None:
        """Add rows of a feature program."""
        self.arrays |= _put_columns(f"{name}.in", inputs)
        self.arrays |= _put_columns(f"{name}.out", outputs)
        self.features[name] = Program(tuple(inputs), tuple(outputs), rows)

    def add_tensors(
        self, group: str, name: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        """Add tensors of an engine stage (``engines``), a source (``sources``) or whole ``answers``."""
        self.arrays |= _put_arrays(f"{group}.{name}.in", inputs)
        self.arrays |= _put_arrays(f"{group}.{name}.out", outputs)
        names = Tensors(tuple(inputs), tuple(outputs))
        if group == "answers":
            self.answers = names
        else:
            getattr(self, group)[name] = names

    def write(self, folder: Path, build_id: str) -> None:
        """Write the artefact."""
        contents = Contents(self.features, self.engines, self.sources, self.answers)
        write_artefact(folder / GOLDEN, GOLDEN, build_id, self.arrays, msgspec.to_builtins(contents))


class StoredGolden:
    """The golden vectors of a release.

    Parameters
    ----------
    release
        The release.
    """

    def __init__(self, release: Release) -> None:
        artefact = release.artefact(GOLDEN, GOLDEN)
        self._arrays = artefact.arrays
        self.contents = msgspec.convert(dict(artefact.meta), Contents)

    def columns(self, name: str) -> tuple[dict[str, Column], dict[str, Column]]:
        """Return the inputs and outputs of a feature program."""
        names = self.contents.features[name]
        return (
            _get_columns(self._arrays, f"{name}.in", names.inputs),
            _get_columns(self._arrays, f"{name}.out", names.outputs),
        )

    def tensors(self, group: str, name: str = "all") -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the inputs and outputs of an engine stage, a source, or of whole ``answers``."""
        found = self.contents.answers if group == "answers" else getattr(self.contents, group)[name]
        return (
            _get_arrays(self._arrays, f"{group}.{name}.in", found.inputs),
            _get_arrays(self._arrays, f"{group}.{name}.out", found.outputs),
        )


def _put_arrays(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return an artefact's arrays for named tensors; ``bytes`` become a stored column and a shape."""
    stored: dict[str, Array] = {}
    for name, array in arrays.items():
        key = f"{prefix}.{name}"
        if array.dtype == np.object_:
            stored.update(store_column(Column(array.reshape(-1)), key))
            stored[f"{key}.shape"] = np.array(array.shape, np.int64)
        else:
            stored[key] = array
    return stored


def _get_arrays(arrays: Mapping[str, Array], prefix: str, names: Sequence[str]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name in names:
        key = f"{prefix}.{name}"
        if f"{key}.shape" in arrays:
            column = open_column(arrays, key)
            shape = tuple(int(size) for size in arrays[f"{key}.shape"])
            found[name] = column.take(np.arange(len(column))).values.reshape(shape)
        else:
            found[name] = np.asarray(arrays[key])
    return found


def _put_columns(prefix: str, columns: Mapping[str, Column]) -> dict[str, Array]:
    stored: dict[str, Array] = {}
    for name, column in columns.items():
        stored.update(store_column(column, f"{prefix}.{name}"))
    return stored


def _get_columns(arrays: Mapping[str, Array], prefix: str, names: Sequence[str]) -> dict[str, Column]:
    columns = {}
    for name in names:
        stored = open_column(arrays, f"{prefix}.{name}")
        columns[name] = stored.take(np.arange(len(stored)))
    return columns
