"""Item sequences in the text forms of research on sequential recommendation: one user per line, or pairs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tiercel_serving.kinds import Settings
from tiercel_serving.machine_faults import fault_of

from ..errors import DataCorrupt, DataMissing
from .dataset import Dataset, Progress
from .places import STARTS, find_data
from .plain import Array

#: Column of an item's position in its user's sequence, which stands for the time.
PLACE = "place"

#: Number of lines between progress reports.
_TOLD = 10_000
#: Integers in canonical form that fit 64 bits.
_PLAIN = re.compile("0|[1-9][0-9]{0,17}")


class Sequences(Settings, frozen=True, tag="Sequences"):
    """A text file with a line for each user: the user's id, then item ids in the order of time.

    Or a text file with a line for each pair of user and item, which is assumed if every line has two words. A
    user's lines are then in the order of time, and users may alternate.

    That order is the only time: interactions have a column ``place``, which is their timestamp.

    Parameters
    ----------
    path
        The file; :class:`Parquet` describes where a relative path starts.
    name
        Name of the data set.
    """

    path: str
    name: str = "sequences"

    def load(self, data_dir: str | Path | None, progress: Progress | None) -> Dataset:
        """Read the file: ids are integers if all of their kind are, else strings.

        Raises
        ------
        DataMissing
            There is no such file.
        DataCorrupt
            It is not text, holds nothing, has a line without items, or has a second line of a user.
        """
        path = find_data(self.path, data_dir)
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
        lines = list(_lines(text, path, progress))
        if not lines:
            raise DataCorrupt(f"{path}: expected a line for each user, found none; write it again")
        sequences = _joined(lines, path)
        lengths = [len(sequence) for sequence in sequences.values()]
        user_ids = _ids(list(sequences))
        item_ids = _ids([item for sequence in sequences.values() for item in sequence])
        interactions = pd.DataFrame(
            {
                "user_id": np.repeat(user_ids, lengths),
                "item_id": item_ids,
                PLACE: np.concatenate([np.arange(length) for length in lengths]),
            }
        )
        dataset = Dataset(
            name=self.name,
            users=pd.DataFrame({"user_id": user_ids}),
            items=pd.DataFrame({"item_id": pd.unique(interactions["item_id"])}),
            interactions=interactions,
            timestamp=PLACE,
            source=str(path),
        )
        return dataset.check()


def _lines(text: str, path: Path, progress: Progress | None) -> Iterator[tuple[int, str, list[str]]]:
    """Yield number, user and items of each line that is not blank."""
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
        yield number, user, sequence


def _joined(lines: Sequence[tuple[int, str, list[str]]], path: Path) -> dict[str, list[str]]:
    """Return each user's items, with users in the order in which they appear."""
    pairs = all(len(items) == 1 for _, _, items in lines)
    sequences: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    for number, user, items in lines:
        if user in sequences and not pairs:
            raise DataCorrupt(
                f"{path}, line {number}: user {user} has a line already ({first[user]}); join them in one, "
                "or write one pair of user and item in every line"
            )
        first.setdefault(user, number)
        sequences.setdefault(user, []).extend(items)
    return sequences


def _ids(words: list[str]) -> Array:
    """Return ids as integers if all are in canonical form, else as strings."""
    if all(_PLAIN.fullmatch(word) for word in set(words)):
        return np.array(words, dtype=np.int64)
    return np.array(words, dtype=object)
