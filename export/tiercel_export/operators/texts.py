"""Operators on text: slices, case, lengths and counts. In all of them, a null stays null."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tiercel_serving.features.texts import CHANGES, changed, sliced, split_counts, stripped

from ..errors import WorkflowError
from .base import OwnOperator, made, made_text, one_of, texts


class TextSlice(OwnOperator):
    """``["place"] >> TextSlice(0, 2)``: ``text[start:stop:step]``, by characters (Unicode code points).

    Parameters
    ----------
    start, stop, step
        As in a Python slice.

    Raises
    ------
    WorkflowError
        One of them is neither an integer nor None, or the step is 0; or, at fit, a column is not text.
    """

    def __init__(self, start: int | None = None, stop: int | None = None, step: int | None = None) -> None:
        super().__init__()
        for name, value in (("start", start), ("stop", stop), ("step", step)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise WorkflowError(f"TextSlice: {name}: expected a whole number or None, got {value!r}")
        if step == 0:
            raise WorkflowError("TextSlice: step: expected a number other than 0, got 0")
        self.start, self.stop, self.step = start, stop, step

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Slice."""
        values, valid = texts(series, self)
        return made_text(sliced(values, self.start, self.stop, self.step), valid, series)


class TextCase(OwnOperator):
    """``["name"] >> TextCase("lower")``.

    Parameters
    ----------
    case
        ``lower``, ``upper``, ``title``, ``capitalize`` or ``casefold``: the method of Python's ``str``.

    Raises
    ------
    WorkflowError
        The case is unknown; or, at fit, a column is not text.
    """

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = one_of(case, CHANGES, "TextCase")

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Change."""
        values, valid = texts(series, self)
        return made_text(changed(values, self.case), valid, series)


class TextStrip(OwnOperator):
    """``["name"] >> TextStrip()``: text without white space, or ``characters``, at its ends.

    Parameters
    ----------
    characters
        The characters to remove; None removes white space.

    Raises
    ------
    WorkflowError
        ``characters`` is neither text nor None; or, at fit, a column is not text.
    """

    def __init__(self, characters: str | None = None) -> None:
        super().__init__()
        if characters is not None and not isinstance(characters, str):
            raise WorkflowError(f"TextStrip: expected characters or None, got {characters!r}")
        self.characters = characters

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Strip."""
        values, valid = texts(series, self)
        return made_text(stripped(values, self.characters), valid, series)


class TextLength(OwnOperator):
    """``["title"] >> TextLength()``: the number of characters (Unicode code points) of a text, as int64.

    Raises
    ------
    WorkflowError
        At fit, a column is not text.
    """

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Count."""
        values, valid = texts(series, self)
        return made(np.fromiter(map(len, values), np.int64, len(values)), valid, series)


class TextSplitCount(OwnOperator):
    """``["genres"] >> TextSplitCount("|")``: the number of parts between separators, as int64.

    Parameters
    ----------
    separator
        Text of at least one character. An empty text counts as one part, as with ``"".split("|")``.

    Raises
    ------
    WorkflowError
        The separator is empty or not text; or, at fit, a column is not text.
    """

    def __init__(self, separator: str) -> None:
        super().__init__()
        if not isinstance(separator, str) or not separator:
            raise WorkflowError(
                f"TextSplitCount: expected a separator of at least one character, got {separator!r}"
            )
        self.separator = separator

    def make(self, series: pd.Series, suffix: str, other: pd.Series | None) -> pd.Series:
        """Count."""
        values, valid = texts(series, self)
        return made(split_counts(values, self.separator), valid, series)
