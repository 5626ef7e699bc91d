"""``tiercel transform``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercel_serving.commands.shell import Debug, Json, Refused, Shell, shell
from tiercel_serving.commands.tables import heading, pairs, seconds

if TYPE_CHECKING:
    from rich.table import Table

    from ..features.origin import FeatureOrigin
    from ..features.transform import Transformed

CHOICES = ("user", "item", "both")

TargetEncoding = Annotated[
    str | None,
    typer.Option(
        "--target-encoding",
        metavar="no_fold",
        help="Compile a workflow's TargetEncoding over all folds; without this it is refused.",
    ),
]

KeepRows = Annotated[
    bool,
    typer.Option(
        "--keep-rows",
        help="Compile a workflow's Filter and Dropna so that they pass every row unchanged; "
        "without this they are refused.",
    ),
]


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A release, a run, or the folder of a saved NVTabular workflow."
        ),
    ],
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT…", help="Parquet files, or folders of them, in this order.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The Parquet file to write.")],
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="user|item|both",
            help="Part to compute. Default: every part whose columns are there.",
        ),
    ] = None,
    packed: Annotated[
        bool, typer.Option("--packed", help="Write the models' tensors instead of named features.")
    ] = False,
    list_length: Annotated[
        list[str] | None,
        typer.Option(
            "--list-length",
            metavar="NAME=N",
            help="Length of a packed list, for a run or workflow (may be repeated).",
        ),
    ] = None,
    target_encoding: TargetEncoding = None,
    keep_rows: KeepRows = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="NAME[=AS]",
            help="Also copy this column of the files, under this or another name (may be repeated).",
        ),
    ] = None,
    batch_rows: Annotated[
        int | None,
        typer.Option("--batch-rows", min=1, help="Rows at a time; fewer need less memory. Default: 65,536."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing OUTPUT.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compute the features of Parquet files with the program that is served, in bounded memory.

    Writes what NVTabular's `Workflow.transform` gives, to the last bit, row for row. The output appears
    under its name only when it is whole.

    Example: [bold]tiercel transform releases/movielens users.parquet features.parquet[/]
    """
    with shell(json=json, debug=debug) as sh:
        with sh.work(f"Transforming with {source}") as progress:
            from ..features.origin import kind_of
            from ..features.parquet_files import check_output, parquet_files
            from ..features.transform import BATCH_ROWS, Transform, transform_files

            kind = kind_of(source)
            if kind is None:
                raise Refused(
                    f"{source}: expected a release, a run, or the folder of a saved NVTabular workflow, and "
                    "it is none of them; make a run with `tiercel train`, or save one with Workflow.save"
                )
            if part is not None and part not in CHOICES:
                raise Refused(f"--part {part}: the parts are {', '.join(CHOICES)}")
            with refused():
                files = parquet_files(inputs)
                check_output(output, files, overwrite)
            opened = origin_of(kind, source, list_length or [], target_encoding, keep_rows)
            chosen = chosen_parts(opened, part, files, sh)
            build = opened.build_id
            transform = Transform(
                [opened.program(name) for name in chosen],
                packed=packed,
                keep=dict(kept(name) for name in keep or []),
                batch_rows=batch_rows or BATCH_ROWS,
                metadata={} if build is None else {"tiercel.build_id": build},
            )
            done = transform_files(transform, files, output, overwrite=overwrite, progress=progress)
        document = describe(done, source, kind, chosen, packed)
        title = f"{document['rows']:,} rows in {seconds(document['seconds'])} → {output}"
        sh.emit(document, heading(title), summary(document))


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Turn an error about the named files into a usage error."""
    from ..errors import DataError

    try:
        yield
    except DataError as error:
        raise Refused(str(error)) from error


def origin_of(
    kind: str, path: Path, list_lengths: Sequence[str], target_encoding: str | None, keep_rows: bool
) -> FeatureOrigin:
    """Return the origin of the programs, which compiles a workflow as the options say."""
    from ..features.origin import FeatureOrigin

    check_target_encoding(target_encoding)
    rows = "keep" if keep_rows else None
    source = FeatureOrigin(kind, path, target_encoding=target_encoding, rows=rows)
    options = {
        "--list-length": list_lengths,
        "--target-encoding": target_encoding,
        "--keep-rows": keep_rows,
    }
    for option, given in options.items():
        if given and not source.has_workflow:
            raise Refused(f"{option}: {path} is compiled already; leave the option out")
    return replace(source, list_lengths=lengths_of(list_lengths, source)) if list_lengths else source


def check_target_encoding(given: str | None) -> None:
    """Refuse any value other than ``no_fold``."""
    if given not in (None, "no_fold"):
        raise Refused(f"--target-encoding {given}: expected no_fold")


def lengths_of(list_lengths: Sequence[str], source: FeatureOrigin) -> dict[str, int]:
    """Return the list lengths given as ``NAME=N``."""
    lengths: dict[str, int] = {}
    for text in list_lengths:
        name, _, length = text.rpartition("=")
        if not name or not length.isdigit() or int(length) < 1:
            raise Refused(f"--list-length {text}: expected NAME=N with N of at least 1")
        lengths[name] = int(length)
    lists = {column.name for column in source.workflow.workflow.output_schema if column.is_list}
    unknown = sorted(set(lengths) - lists)
    if unknown:
        raise Refused(
            f"--list-length {unknown[0]}: there is no such list; there are {', '.join(sorted(lists))}"
        )
    return lengths


def kept(text: str) -> tuple[str, str]:
    """Return the name of a column to keep, and the name under which it is written."""
    old, _, new = text.partition("=")
    return old, new or old


def chosen_parts(
    source: FeatureOrigin, part: str | None, files: Sequence[Path], sh: Shell
) -> tuple[str, ...]:
    """Return the parts to transform: the requested ones, else those whose columns the first file has."""
    from ..errors import DataMissing
    from ..features.parquet_files import read_footer

    if part == "both":
        return source.parts
    if part is not None:
        if part not in source.parts:
            raise Refused(f"--part {part}: {source.path} has only {', '.join(source.parts)}")
        return (part,)
    names = set(read_footer(files[0])[0].names)
    missing = {name: [c for c in source.input_names(name) if c not in names] for name in source.parts}
    found = tuple(name for name, lacking in missing.items() if not lacking)
    if not found:
        lines = [f"  {name}: {', '.join(lacking)}" for name, lacking in missing.items()]
        raise DataMissing(
            "\n".join([f"{files[0]}: it has the columns of no part; these are missing:", *lines])
            + "\nadd the missing columns, null where they are not known"
        )
    for name, lacking in missing.items():
        if lacking and len(lacking) < len(source.input_names(name)):
            sh.note(f"Without the {name} part, for which {', '.join(lacking)} would be needed.")
    return found


def describe(
    done: Transformed, source: Path, kind: str, parts: Sequence[str], packed: bool
) -> dict[str, Any]:
    """Return a description of the transform as JSON."""
    asked = {"source": source, "kind": kind, "parts": parts, "packed": packed}
    return {**asked, **vars(done), "bytes": done.output.stat().st_size, "rows_per_s": done.rows_per_s}


def summary(document: Mapping[str, Any]) -> Table:
    """Return a summary of the transform."""
    files = document["files"]
    values = {
        "part": " and ".join(document["parts"]),
        "read": files[0] if len(files) == 1 else f"{len(files):,} files, the first {files[0]}",
        "columns": ", ".join(document["columns"]),
        "ignored columns": ", ".join(document["ignored"]) or "none",
        "size": f"{document['bytes'] / 1e6:.1f} MB, row groups: {document['row_groups']:,}",
        "speed": f"{document['rows_per_s']:,.0f} rows/s",
    }
    return pairs(values)
