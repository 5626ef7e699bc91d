"""Where data sets are looked for."""

from __future__ import annotations

import os
from pathlib import Path

DATA_DIR_VARIABLE = "TIERCEL_DATA_DIR"
#: What messages about a missing file say about relative paths.
STARTS = f"a relative path starts at --data-dir, else ${DATA_DIR_VARIABLE}, ./data or the current directory"


def data_dirs(data_dir: str | Path | None) -> list[Path]:
    """Return the folders of data sets in order of preference: ``data_dir``, the variable's, ``./data``."""
    variable = os.environ.get(DATA_DIR_VARIABLE)
    return [*(Path(folder) for folder in (data_dir, variable) if folder), Path("data")]


def find_data(path: str, data_dir: str | Path | None) -> Path:
    """Return the location of a recipe's path.

    Parameters
    ----------
    path
        An absolute path is returned as it is.
    data_dir
        Where a relative one starts; None is the first of ``$TIERCEL_DATA_DIR``, ``data`` and the current
        directory that has it.

    Returns
    -------
    pathlib.Path
        If nothing exists at any place, the path in the first folder.
    """
    starts = [Path(data_dir)] if data_dir is not None else [*data_dirs(None), Path()]
    return next((start / path for start in starts if (start / path).exists()), starts[0] / path)
