"""``tiercel items``: items put and withdrawn between releases; each command is a function here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from .shell import Debug, Json, shell
from .store import ReleaseArgument, Store, read_id, read_lines, split_pairs
from .tables import heading, pairs

if TYPE_CHECKING:
    from ..live_items.store import ItemStore

Item = Annotated[list[str], typer.Option("--item", help="A raw item id; may be repeated.")]


def put(
    release: ReleaseArgument,
    values: Annotated[
        list[str] | None, typer.Argument(metavar="COLUMN=VALUE...", help="Values in JSON, or plain text.")
    ] = None,
    item: Annotated[str | None, typer.Option("--item", help="The item's raw id.")] = None,
    vector: Annotated[
        list[str] | None, typer.Option("--vector", metavar="SOURCE=[...]", help="A source's vector, in JSON.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Read items from this JSON Lines file; - is standard input.")
    ] = None,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Add new items, change items of the release, or bring withdrawn ones back.

    A new item's vectors are made by the item tower of the release, unless they are given. A line of a file is
    {"item_id": 2001, "values": {"title": "New"}, "vectors": {"two_tower": [...]}}.

    Example: [bold]tiercel items put releases/movielens --item 2001 title=New --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        if (item is None) == (file is None):
            raise typer.BadParameter("give one of the two", param_hint="--item / --file")
        opened = _opened(release, store)
        if file is not None:
            with read_lines(file) as lines:
                count = opened.load(lines)
            sh.emit({"items": count}, heading(f"Put {count:,} items"))
            return
        typed = read_id(item or "", opened.release.manifest.catalogue.item_id_dtype, "--item")
        opened.put(typed, _values(opened, values or []), vectors=_vectors(vector or []))
        sh.emit({"items": 1}, heading(f"Put item {typed}"))


def withdraw(
    release: ReleaseArgument, item: Item, store: Store = None, json: Json = False, debug: Debug = False
) -> None:
    """Withdraw items: no answer contains them any more.

    Example: [bold]tiercel items withdraw releases/movielens --item 50 --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        opened = _opened(release, store)
        dtype = opened.release.manifest.catalogue.item_id_dtype
        ids = list(dict.fromkeys(read_id(one, dtype, "--item") for one in item))
        opened.withdraw(ids)
        sh.emit({"items": len(ids)}, heading(f"Withdrew {len(ids)} item{'' if len(ids) == 1 else 's'}"))
        if unknown := opened.unknown(ids):
            sh.note(f"Not in this release's catalogue, so of no effect on it: {[*unknown]}", style="yellow")


def list_items(
    release: ReleaseArgument, store: Store = None, json: Json = False, debug: Debug = False
) -> None:
    """Show items that were put or withdrawn, and those that this release can't take.

    Example: [bold]tiercel items list releases/movielens --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        opened = _opened(release, store)
        entries, notes = opened.list(), opened.notes()
        document = {"items": [msgspec.to_builtins(entry) for entry in entries], "notes": list(notes)}
        shown = {
            str(entry.item_id): "withdrawn" if entry.withdrawn else msgspec.json.encode(entry.values).decode()
            for entry in entries
        }
        sh.emit(document, heading(f"{len(entries)} items since the release"), pairs(shown))
        for note in notes:
            sh.note(note, style="yellow")


#: The commands of the group, by name.
commands: Mapping[str, Callable[..., None]] = {"put": put, "withdraw": withdraw, "list": list_items}


def _opened(release: Path, store: str | None) -> ItemStore:
    from ..live_items.store import ItemStore

    return ItemStore.open(release, store)


def _vectors(texts: list[str]) -> dict[str, Any]:
    """Return source → vector from the typed SOURCE=VECTOR pairs."""
    return {source: _decoded(source, text) for source, text in split_pairs(texts, "--vector").items()}


def _decoded(source: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except ValueError as error:
        problem = f"{source}={text[:40]}: expected numbers in JSON, such as [0.5, -1] ({error})"
        raise typer.BadParameter(problem, param_hint="--vector") from error


def _values(opened: ItemStore, texts: list[str]) -> dict[str, Any]:
    columns = opened.release.overlays.columns
    values: dict[str, Any] = {}
    for name, text in split_pairs(texts, "COLUMN=VALUE").items():
        try:
            value = msgspec.json.decode(text)
        except ValueError:
            value = text
        column = columns.get(name)
        is_text = column is not None and column.dtype == "bytes" and not column.is_list
        values[name] = text if is_text and not isinstance(value, str | None) else value
    return values
