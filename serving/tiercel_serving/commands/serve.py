"""``tiercel serve``."""

from __future__ import annotations

import json as json_module
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shell import Debug, Json, Report, Shell, Terminated, shell
from .tables import heading, pairs, seconds

if TYPE_CHECKING:
    from ..release.opened import Release
    from ..supervise import TritonServer

#: Number of slots of the users' lookup that are searched for an example user.
SLOTS = 4096

Layout = Annotated[
    str | None,
    typer.Option("--layout", metavar="fused|staged", help="Use this layout instead of the release's."),
]
Runner = Annotated[
    str | None,
    typer.Option("--runner", metavar="python|tiercel", help="Use this runner instead of the release's."),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="KIND:WHERE",
        help="Where live values of users are kept: embedded:FOLDER, redis:HOST:PORT, redis:URL, or JSON.",
    ),
]
Triton = Annotated[
    Path | None,
    typer.Option(
        "--triton",
        metavar="PATH",
        help="Use this Triton instead of the wheel's: its binary, or the folder that holds bin/tritonserver.",
    ),
]

Awake = Annotated[
    bool,
    typer.Option(
        "--awake",
        help="Keep the machine's processors from sleeping: answers come sooner, and idle processors use as "
        "much power as busy ones. Needs write access to /dev/cpu_dma_latency.",
    ),
]


def command(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Directory of a release.")],
    triton_flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FLAG", help="More flags for tritonserver, after --, such as -- --log-verbose=1."
        ),
    ] = None,
    layout: Layout = None,
    runner: Runner = None,
    triton: Triton = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[
        int, typer.Option("--grpc-port", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8001,
    http_port: Annotated[
        int, typer.Option("--http-port", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    metrics_port: Annotated[
        int, typer.Option("--metrics-port", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8002,
    store: Store = None,
    awake: Awake = False,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="File for Triton's log. Default: none.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve a release on a real Triton until Ctrl-C.

    Compares all checksums, starts Triton, waits until a real inference succeeds, and prints the URLs.
    While it serves it repeats that inference; if Triton, or a part of it, dies or no longer answers, the
    command ends with exit code 1, so that a supervisor can start it again. SIGTERM ends it with 0.

    Example: [bold]tiercel serve releases/movielens[/]
    """
    with shell(json=json, debug=debug) as sh, kept(awake):
        where: dict[str, Any] = {
            "runner": runner,
            "host": host,
            "grpc_port": grpc_port,
            "http_port": http_port,
            "metrics_port": metrics_port,
        }
        flags = triton_flags or ()
        try:
            with start(
                sh, release, layout=layout, triton=triton, triton_flags=flags, store=store, log=log, **where
            ) as server:
                document = describe(server)
                sh.emit(document, *human(document))
                try:
                    server.wait()
                except KeyboardInterrupt:
                    sh.note("Stopping …")
                    raise
        except Terminated:
            sh.note("Stopped by SIGTERM.")


def kept(awake: bool) -> AbstractContextManager[None]:
    """Keep the processors awake in the block, if wanted."""
    if not awake:
        return nullcontext()
    from ..supervise import keep_awake

    return keep_awake()


def start(
    sh: Shell,
    release: Path,
    *,
    layout: str | None = None,
    runner: str | None = None,
    triton: Path | None = None,
    triton_flags: Sequence[str] = (),
    store: str | None = None,
    log: Path | None = None,
    **where: Any,
) -> TritonServer:
    """Check a release and start a server on it, with a progress bar; for parameters see ``start_server``."""
    with sh.work(f"Starting Triton on {release}") as progress:
        from ..release.opened import open_release
        from ..repository.targets import RUNNERS
        from ..stores.chosen import read_store
        from ..supervise import start_server
        from ..supervise.launch import wrong_flag

        if (wrong := wrong_flag(triton_flags)) is not None:
            raise typer.BadParameter(wrong, param_hint="--")
        if layout not in (None, "fused", "staged"):
            raise typer.BadParameter(f"{layout!r}: the layouts are fused and staged", param_hint="--layout")
        if runner is not None and runner not in RUNNERS:
            raise typer.BadParameter(
                f"{runner!r}: the runners are {', '.join(RUNNERS)}", param_hint="--runner"
            )
        opened = open_release(release, store=None if store is None else read_store(store))
        _check_store(sh, opened)
        return start_server(
            opened,
            layout=layout,
            runner=runner,
            triton=triton,
            triton_flags=triton_flags,
            log=log,
            progress=_start_report(opened, progress),
            **where,
        )


def _check_store(sh: Shell, release: Release) -> None:
    """Check the store of live values, if there is one; only warn if it does not answer."""
    from ..errors import StoreUnavailable
    from ..stores.feature_store import FeatureStore

    records = release.open_records(release.store_kind, patient=True)
    if records is None:
        return
    try:
        FeatureStore(release, release.store_kind, records).check()
    except StoreUnavailable as error:
        sh.note(f"{error}. Until it answers, the release's own values are served.", style="yellow")


def _start_report(release: Release, progress: Report) -> Callable[[str, int], None]:
    """Return a callback for the checksums: it reports the bytes done, and then that Triton starts."""
    total = sum(entry.bytes for entry in release.manifest.files.values())
    done = 0

    def report(name: str, size: int) -> None:
        nonlocal done
        done += size
        progress("checksums", done, total)
        if done == total:
            progress("starting Triton", 0, None)

    return report


def describe(server: TritonServer) -> dict[str, Any]:
    """Return a server's addresses and what it serves, as JSON."""
    release = server.release
    assert release is not None
    user = example_user(release)
    return {
        "release": str(release.path),
        "name": release.manifest.name,
        "build_id": release.build_id,
        "layout": server.layout,
        "runner": server.runner,
        "grpc": server.grpc_url,
        "http": server.http_url,
        "metrics": server.metrics_url,
        "pid": server.pid,
        "ready_s": round(server.started_s, 3),
        "user": user,
        "curl": curl_line(server.http_url, user),
    }


def human(document: Mapping[str, Any]) -> list[Any]:
    """Return the output for people when a server is ready."""
    from rich.markup import escape

    values = {name: document[name] for name in ("grpc", "http", "metrics", "layout", "runner")}
    title = (
        f"Serving {document['name']} (build {document['build_id']}), ready in {seconds(document['ready_s'])}"
    )
    user = shlex.quote(str(document["user"]))
    recommend = f"tiercel recommend --user {user} --url {document['grpc']}"
    return [
        heading(title),
        pairs(values),
        "",
        f"  [dim]ask  [/] {escape(recommend)}",
        f"  [dim]curl [/] {escape(document['curl'])}",
        f"  [dim]probe[/] tiercel health {document['grpc']}",
        "",
        "Ctrl-C stops it.",
    ]


def curl_line(http_url: str, user: int | str) -> str:
    """Return a curl command that requests a user's recommendations over plain HTTP."""
    tensor = {
        "name": "user_id",
        "shape": [1, 1],
        "datatype": "BYTES" if isinstance(user, str) else "INT64",
        "data": [user],
    }
    body = json_module.dumps({"inputs": [tensor]}, ensure_ascii=False)
    return f"curl -s {http_url}/v2/models/recommend/infer -d {shlex.quote(body)}"


def example_user(release: Release) -> int | str:
    """Return the id of a known user: 42 if it is among the first, else the first that can be typed.

    If there is no known user whose id can be typed, return an unknown id.
    """
    known = [_as_typed(user) for user in _some_users(release)]
    for user in (42, "42", *known):
        if user in known and user is not None:
            return user
    return "nobody" if release.manifest.catalogue.user_id_dtype == "bytes" else 0


def _as_typed(user: int | bytes) -> int | str | None:
    """Return an id as it is typed on a command line; None if it can't be typed."""
    if isinstance(user, int):
        return user
    try:
        text = user.decode()
    except UnicodeDecodeError:
        return None
    return text if text and text.isprintable() else None


def _some_users(release: Release) -> list[int | bytes]:
    """Return the ids in the first slots of the users' lookup; reading millions would take seconds."""
    import numpy as np

    from ..lookups.lookup import read_keys
    from ..stores.memory_mapped import USER_LOOKUP

    arrays = dict(release.artefact("users", "users").arrays)
    for part, least in (("records", 0), ("odd_codes", 0), ("odd_offsets", 1)):
        if (name := f"{USER_LOOKUP}.{part}") in arrays:
            arrays[name] = arrays[name][: SLOTS + least]
    if (name := f"{USER_LOOKUP}.table") in arrays:
        # The last entry is not a slot, but the value of an empty slot.
        arrays[name] = np.append(arrays[name][:-1][:SLOTS], arrays[name][-1:])
    ids: list[int | bytes] = read_keys(arrays, USER_LOOKUP).tolist()
    return ids
