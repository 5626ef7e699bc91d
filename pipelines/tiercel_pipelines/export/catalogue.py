"""Tables that an export uses instead of a run's own: a new catalogue for the same models.

They have the run's schema. What the workflow, the rules and the title read determines the required columns;
the run's tables determine the types, since the workflow was fitted on those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from tiercel_export.errors import ExportInputError
from tiercel_export.release.given import raw_ids, unique_ids
from tiercel_export.workflow.cut import cut_workflow
from tiercel_serving.rules.table import asked

from ..data.parquet import read_table
from ..data.plain import plain_frame
from ..errors import DataCorrupt, DataMissing
from ..features.graph_columns import packed_columns
from ..training import TrainedRun

#: Kind of the run's column → other kinds that can be converted to it without loss.
CONVERTIBLE: Mapping[str, tuple[str, ...]] = {
    # Numbers and booleans with nulls are floats: see `plain_frame`.
    "integers": ("floats",),
    "floats": ("integers", "booleans"),
    "booleans": ("floats",),
    "lists of floats": ("lists of integers",),
}

#: Columns that pandas and a run write beside the data: a nameless index, and the row in the data set.
_NO_DATA = re.compile(r"__index_level_\d+__|__row__")

_ELEMENTS = {str: "strings", bool: "booleans", int: "integers", float: "floats"}


@dataclass(frozen=True)
class Catalogue:
    """The tables of an export, in the run's schema.

    Parameters
    ----------
    items, users, interactions
        With plain dtypes (see :class:`~tiercel_pipelines.data.Dataset`).
    origin
        For each table ``{"from": "run"}`` or ``{"from": "given"}``. Given items and users also have
        ``new``, how many ids the run's table does not have, and ``gone``, how many of its ids are missing.
    """

    items: pd.DataFrame
    users: pd.DataFrame
    interactions: pd.DataFrame
    origin: dict[str, dict[str, Any]]


def catalogue_of(
    run: TrainedRun,
    workflow: Any,
    *,
    items: pd.DataFrame | None = None,
    users: pd.DataFrame | None = None,
    interactions: pd.DataFrame | None = None,
) -> Catalogue:
    """Return a run's tables, with the given ones instead of its own.

    A given table may lack columns that the export does not read, and its columns may be in any order.
    Integers may be floats because of nulls.

    Raises
    ------
    ExportInputError
        If a table has no rows or no id column, an id is null or repeated, or a column is missing, unknown or
        of another type than the run's. One message names all such columns of a table.
    """
    tables = {"items": run.items, "users": run.users, "interactions": run.interactions}
    origin: dict[str, dict[str, Any]] = {name: {"from": "run"} for name in tables}
    read = _columns_read(run, workflow, tables)
    for name, frame in (("items", items), ("users", users), ("interactions", interactions)):
        if frame is None:
            continue
        own, ids = tables[name], _ids(run, name)
        tables[name] = _conformed(name, frame, own, read[name], ids)
        origin[name] = {"from": "given"}
        if name != "interactions":
            _check_raw_categories(run, workflow, name, tables[name])
            origin[name] |= _difference(tables[name][ids[0]], own[ids[0]])
    return Catalogue(**tables, origin=origin)


def load_table(path: str | Path, name: str, run: TrainedRun) -> pd.DataFrame:
    """Read a table that replaces a run's, from a Parquet file or a folder of them, with plain dtypes.

    Files of a run, and files that pandas wrote with an index, are accepted; messages call the table ``name``.

    Raises
    ------
    DataMissing
        If nothing is there.
    DataCorrupt
        If it is not Parquet, a column holds something that has no plain dtype, or ids are dates.
    """
    file = Path(path)
    if not file.exists():
        raise DataMissing(f"{name}: {file.absolute()} does not exist; name a Parquet file")
    ids = _ids(run, name)
    return read_table(file, name, keep=lambda column: _NO_DATA.fullmatch(column) is None, ids=ids)


# ---------------------------------------------------------------------------------------------- schema


def _ids(run: TrainedRun, name: str) -> tuple[str, ...]:
    user, item = run.record.data.user_id, run.record.data.item_id
    return {"items": (item,), "users": (user,), "interactions": (user, item)}[name]


def _columns_read(run: TrainedRun, workflow: Any, own: Mapping[str, pd.DataFrame]) -> dict[str, set[str]]:
    """Return the columns of each table that an export reads."""
    cut, timestamp = cut_workflow(workflow, rows=run.record.recipe.rows), run.record.data.timestamp
    inputs = {*cut.input_names("user"), *cut.input_names("item")}
    read = {name: set(_ids(run, name)) | (inputs & set(table.columns)) for name, table in own.items()}
    read["items"] |= set(run.record.recipe.serving.raw_columns())
    read["users"] |= {name for name in asked(run.record.recipe.serving.rules).users if name in own["users"]}
    read["interactions"] |= set() if timestamp is None else {timestamp}
    return read


def _conformed(
    name: str, frame: pd.DataFrame, own: pd.DataFrame, read: set[str], ids: tuple[str, ...]
) -> pd.DataFrame:
    """Return a table in the schema of the run's own, in its order of columns."""
    came = [str(column) for column in frame.columns]
    columns = [str(column) for column in own.columns]
    missing = [f"no column {column!r}" for column in columns if column in read and column not in came]
    extra = [f"the run has no column {column!r}" for column in came if column not in columns]
    if missing or extra:
        raise ExportInputError(
            f"{name}: {'; '.join(missing + extra)}. The run's table has {', '.join(columns)}, of which the "
            f"export reads {', '.join(column for column in columns if column in read)}: name, add or drop "
            "columns accordingly"
        )
    try:
        plain = plain_frame(frame, name)
    except DataCorrupt as error:
        raise ExportInputError(str(error)) from error
    wrong = {column: _problem(plain[column], own[column]) for column in columns if column in came}
    for column in ids:
        # The given columns, since integers with nulls are floats in ``plain``.
        raw_ids(frame, column, name) if name == "interactions" else unique_ids(frame, column, name)
    problems = [f"column {column!r} {problem}" for column, problem in wrong.items() if problem]
    if problems:
        raise ExportInputError(f"{name}: {'; '.join(problems)}; convert what differs, or train again")
    return pd.DataFrame({column: _converted(plain[column], own[column]) for column in wrong})


def _problem(values: pd.Series, own: pd.Series) -> str | None:
    """Return why a plain column cannot have the type of the run's, or None."""
    expected, came = kind_of(own), kind_of(values)
    differs = f"holds {came}, the run's holds {expected}"
    if "nulls" in (expected, came) or came == expected:
        return None
    if "lists" in (expected, came):
        return None if expected.startswith("lists") and came.startswith("lists") else differs
    if came not in CONVERTIBLE.get(expected, ()):
        return differs
    if expected == "integers":
        # The run's integers may be floats in the given table because of nulls.
        within = (values >= -(2.0**63)) & (values < 2.0**63)
        stray = values[values.notna() & ~(within & (values % 1 == 0))]
        return f"holds {stray.iloc[0]!r}, the run's holds integers" if len(stray) else None
    if came.endswith("integers"):
        dtype = np.dtype(np.float64) if own.dtype == object else own.dtype
        known = (value for value in _elements(values) if value is not None)
        stray = next((value for value in known if int(dtype.type(value)) != value), None)
        return None if stray is None else f"holds {stray}, which the run's {dtype} would change"
    if "booleans" in (expected, came):
        # A column of booleans with nulls holds floats 0 and 1.
        both = pd.concat([values.dropna(), own.dropna()]).astype(np.float64)
        return None if both.isin((0, 1)).all() else differs
    return None


def _converted(values: pd.Series, own: pd.Series) -> pd.Series:
    """Return a plain column in the type of the run's; integers and booleans with nulls stay floats."""
    expected = kind_of(own)
    if expected.startswith("lists"):
        number = float if expected == "lists of floats" else None
        rows = [[] if row is None else row for row in values.astype(object).where(values.notna(), None)]
        if number is not None:
            rows = [[None if value is None else number(value) for value in row] for row in rows]
        return pd.Series(rows, index=values.index, dtype=object)
    if own.dtype == object:
        return values.astype(object).where(values.notna(), None)
    if values.isna().any():
        return values.astype(own.dtype if own.dtype.kind == "f" else np.float64)
    return values.astype(own.dtype)


def kind_of(values: pd.Series) -> str:
    """Return what a plain column holds: ``integers``, ``strings``, ``lists of floats``, ….

    ``nulls`` and ``lists`` are columns whose values, or whose lists' elements, are all missing.
    """
    if values.isna().all():
        return "nulls"
    if values.dtype.kind in "bif":
        return {"b": "booleans", "i": "integers", "f": "floats"}[values.dtype.kind]
    elements = _elements(values)
    first = next((value for value in elements if value is not None), None)
    held = "" if first is None else _ELEMENTS[type(first)]
    if isinstance(values[values.notna()].iloc[0], list):
        return f"lists of {held}" if held else "lists"
    return held


def _elements(values: pd.Series) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


# -------------------------------------------------------------------------------------------- what is new


def _difference(ids: pd.Series, own: pd.Series) -> dict[str, int]:
    return {"new": int((~ids.isin(own)).sum()), "gone": int((~own.isin(ids)).sum())}


def _check_raw_categories(run: TrainedRun, workflow: Any, name: str, frame: pd.DataFrame) -> None:
    """Refuse category ids for which the models have no embedding.

    A vocabulary or buckets take any value; a raw column of numbers that is used as a category does not.
    """
    part: Literal["user", "item"] = "item" if name == "items" else "user"
    sizes = (run.record.inputs.item if part == "item" else run.record.inputs.user).cardinalities
    for column in packed_columns(workflow, part):
        raw = next(iter(column.inputs), "")
        if column.kind != "cat" or column.operators or raw not in frame.columns:
            continue
        known = (value for value in _elements(frame[raw]) if not pd.isna(value))
        stray = [value for value in known if not 0 <= value < sizes[column.name]]
        if stray:
            raise ExportInputError(
                f"{name}: column {raw!r} holds the category {stray[0]!r}, but the models were trained on "
                f"0 to {sizes[column.name] - 1}; put ops.Categorify() into its chain and train again"
            )
