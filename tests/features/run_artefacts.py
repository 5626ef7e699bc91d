"""Run feature artefacts in a process that has no NVTabular and no pandas.

``python run_artefacts.py FOLDER …`` opens ``FOLDER/artefact``, runs it on ``FOLDER/inputs.npz`` and writes
``FOLDER/outputs.npz``. Tests import this module to read and write these files.
"""

from __future__ import annotations

import importlib.abc
import sys
from pathlib import Path
from typing import Any

BLOCKED = ("pandas", "nvtabular", "merlin", "dask", "distributed", "pyarrow", "cloudpickle", "torch")
BUILD = "b1"


class Block(importlib.abc.MetaPathFinder):
    """Hides the blocked packages, as if they were not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not there")


def save_columns(file: Path, columns: dict[str, Any], n: int) -> None:
    """Write columns as plain arrays; strings as their bytes and end offsets."""
    import numpy as np

    arrays: dict[str, Any] = {"n": np.array(n)}
    for name, column in columns.items():
        values = column.values
        if values.dtype == object:
            arrays[f"{name}|ends"] = np.cumsum([len(value) for value in values], dtype=np.int64)
            values = np.frombuffer(b"".join(values.tolist()), np.uint8)
        arrays[f"{name}|values"] = values
        for part in ("valid", "offsets", "row_valid"):
            if getattr(column, part) is not None:
                arrays[f"{name}|{part}"] = getattr(column, part)
    np.savez(file, **arrays)


def load_columns(file: Path) -> tuple[dict[str, Any], int]:
    """Read what :func:`save_columns` wrote."""
    import numpy as np

    from tiercel_serving.columns import Column

    given = dict(np.load(file, allow_pickle=False))
    columns = {}
    for name in dict.fromkeys(key.rsplit("|", 1)[0] for key in given if "|" in key):
        values, ends = given[f"{name}|values"], given.get(f"{name}|ends")
        if ends is not None:
            blob, begins = values.tobytes(), [0, *ends[:-1].tolist()]
            values = np.empty(len(ends), object)
            values[:] = [blob[begin:end] for begin, end in zip(begins, ends.tolist(), strict=False)]
        parts = (given.get(f"{name}|{part}") for part in ("valid", "offsets", "row_valid"))
        columns[name] = Column(values, *parts)
    return columns, int(given["n"])


def main(folders: list[str]) -> None:
    """Run each folder's artefact."""
    sys.meta_path.insert(0, Block())
    from tiercel_serving.features import FeatureProgram
    from tiercel_serving.release.artefacts import open_artefact

    for folder in map(Path, folders):
        program = FeatureProgram.open(open_artefact(folder / "artefact", "features", BUILD))
        columns, n = load_columns(folder / "inputs.npz")
        save_columns(folder / "outputs.npz", program.run(columns, n), n)
    loaded = {name.split(".")[0] for name in sys.modules}
    assert not loaded & set(BLOCKED), loaded & set(BLOCKED)


if __name__ == "__main__":
    main(sys.argv[1:])
