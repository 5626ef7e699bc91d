"""Sequences of items, a user a line, as research on sequential recommendation hands them round."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from tiercel_serving.machine import fault_of

from ..errors import DataCorrupt, DataMissing
from .dataset import Dataset, Progress
from .places import STARTS, find_data
from .plain import Array
from .specs import Sequences

#: What the column of an item's place in its line is called; it stands for the time.
PLACE = "place"

#: After how many lines progress is told.
_TOLD = 10_000
#: What an integer looks like that is written in one way alone, and fits 64 bits.
_PLAIN = re.compile("0|[1-9][0-9]{0,17}")


def load_sequences(
    spec: Sequences, *, data_dir: str | Path | None = None, progress: Progress | None = None
) -> Dataset:
    """Read a file of sequences; where a relative path starts, :func:`~.places.find_data` says.

    Ids are integers if all of their kind are, else strings.

    Raises
    ------
    DataMissing
        There is no such file.
    DataCorrupt
        It is no text, holds nothing, or has a line without items or with a user of a line before.
    """
    path = find_data(spec.path, data_dir)
    if not path.is_file():
        raise DataMissing(
            f"sequences: {path.absolute()}: expected a file, found none; correct `path` in the recipe's "
            f"data set ({STARTS})"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        corrupt = DataCorrupt(f"{path}: not readable as UTF-8 text ({error}); write it again")
        raise fault_of(error, path, "reading sequences") or corrupt from error
    users, items = [], []
    for user, sequence in _lines(text, path, progress):
        users.append(user)
        items.append(sequence)
    if not users:
        raise DataCorrupt(f"{path}: expected a line for each user, found none; write it again")
    lengths = [len(sequence) for sequence in items]
    user_ids = _ids(users)
    item_ids = _ids([item for sequence in items for item in sequence])
    interactions = pd.DataFrame(
        {
            "user_id": np.repeat(user_ids, lengths),
            "item_id": item_ids,
            PLACE: np.concatenate([np.arange(length) for length in lengths]),
        }
    )
    dataset = Dataset(
        name=spec.name,
        users=pd.DataFrame({"user_id": user_ids}),
        items=pd.DataFrame({"item_id": pd.unique(interactions["item_id"])}),
        interactions=interactions,
        timestamp=PLACE,
        source=str(path),
    )
    return dataset.check()


def _lines(text: str, path: Path, progress: Progress | None) -> Iterator[tuple[str, list[str]]]:
    """Yield each user and the items behind; blank lines are none."""
    seen: dict[str, int] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if progress is not None and (number % _TOLD == 0 or number == len(lines)):
            progress("reading lines", number, len(lines))
        user, *sequence = line.split() or [""]
        if not user:
            continue
        if not sequence:
            raise DataCorrupt(
                f"{path}, line {number}: expected a user and items in the order of time, found "
                f"{line.strip()!r}; drop the line or name items"
            )
        if user in seen:
            raise DataCorrupt(
                f"{path}, line {number}: user {user} has a line already ({seen[user]}); join them in one"
            )
        seen[user] = number
        yield user, sequence


def _ids(words: list[str]) -> Array:
    """Return ids as integers if all are plain ones, else as strings."""
    if all(_PLAIN.fullmatch(word) for word in set(words)):
        return np.array(words, dtype=np.int64)
    return np.array(words, dtype=object)
