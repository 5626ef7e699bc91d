"""``tiercel data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercel_serving.commands.shell import Debug, Json, shell
from tiercel_serving.commands.tables import heading, number, pairs, table

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from ..data import Dataset

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Folder of data sets, also for downloads. Default: $TIERCEL_DATA_DIR, else ./data.",
    ),
]


def command(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="ml-100k, synthetic, or a recipe, for that recipe's data set."
        ),
    ],
    data_dir: DataDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find or download a data set, check it, and describe it.

    Example: [bold]tiercel data ml-100k[/]
    """
    with shell(json=json, debug=debug) as sh:
        with sh.work(f"Loading {dataset}") as progress:
            from ..data import NAMED, load_dataset

            if dataset in NAMED:
                spec = NAMED[dataset]
            else:
                from ..recipe.load import load_recipe

                spec = load_recipe(dataset).dataset
            loaded = load_dataset(spec, data_dir=data_dir, progress=progress)
        document = describe(loaded)
        sh.emit(document, heading(f"Data set {document['name']}"), summary(document), "", columns(document))


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return a description of a data set as JSON."""
    users, items, pairs_ = len(dataset.users), len(dataset.items), len(dataset.interactions)
    return {
        "name": dataset.name,
        "source": dataset.source,
        "users": users,
        "items": items,
        "interactions": pairs_,
        "density": pairs_ / (users * items) if users and items else 0.0,
        "columns": {
            part: [_column(frame, name) for name in frame.columns]
            for part, frame in (
                ("users", dataset.users),
                ("items", dataset.items),
                ("interactions", dataset.interactions),
            )
        },
    }


def summary(document: dict[str, Any]) -> Table:
    """Return the first table: how much there is, and where it came from."""
    names = ("source", "users", "items", "interactions")
    values = {name: document[name] for name in names}
    values["density"] = f"{document['density']:.2%}"
    return pairs(values)


def columns(document: dict[str, Any]) -> Table:
    """Return the second table: every column with its type and an example."""
    made = table("table", "column", "type", "nulls", "distinct", "example", right=("nulls", "distinct"))
    for part, listed in document["columns"].items():
        for position, column in enumerate(listed):
            made.add_row(
                part if position == 0 else "",
                column["name"],
                column["type"],
                number(column["nulls"]) if column["nulls"] else "",
                number(column["distinct"]) if column["distinct"] is not None else "",
                _short(column["example"]),
            )
        made.add_section()
    return made


def _column(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    values = frame[name]
    real = values[values.notna()]
    example = real.iloc[0] if len(real) else None
    is_list = isinstance(example, list | tuple) or getattr(example, "ndim", 0) > 0
    kind = "list" if is_list else "string" if isinstance(example, str) else str(values.dtype)
    return {
        "name": str(name),
        "type": kind,
        "nulls": int(values.isna().sum()),
        "distinct": None if is_list else int(real.nunique()),
        "example": list(example) if is_list and example is not None else example,
    }


def _short(value: Any) -> str:
    from rich.markup import escape

    text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else f"{value}"
    return escape(text if len(text) <= 40 else text[:39] + "…")
