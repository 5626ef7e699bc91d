"""``tiercel serve``."""

from __future__ import annotations

import json as json_module
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shell import Debug, Json, Report, Shell, Terminated, shell
from .tables import heading, pairs, seconds

if TYPE_CHECKING:
    from ..release.opened import Release
    from ..supervise import TritonServer

Layout = Annotated[
    str | None,
    typer.Option("--layout", metavar="fused|staged", help="Another layout than the release was made in."),
]
Triton = Annotated[
    Path | None,
    typer.Option(
        "--triton",
        metavar="PATH",
        help="Another Triton than the wheel's: its binary, or the folder that holds bin/tritonserver.",
    ),
]


def command(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Directory of a release.")],
    layout: Layout = None,
    triton: Triton = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option("--grpc-port", help="0 takes a free one.")] = 8001,
    http_port: Annotated[int, typer.Option("--http-port", help="0 takes a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option("--metrics-port", help="0 takes a free one.")] = 8002,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="Where Triton's log goes (else nowhere).")
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
    with shell(json=json, debug=debug) as sh:
        ports = {"grpc_port": grpc_port, "http_port": http_port, "metrics_port": metrics_port}
        try:
            with start(sh, release, host=host, layout=layout, triton=triton, log=log, **ports) as server:
                document = describe(server)
                sh.emit(document, *human(document))
                try:
                    server.wait()
                except KeyboardInterrupt:
                    sh.note("Stopping …")
                    raise
        except Terminated:
            sh.note("Stopped by SIGTERM.")


def start(
    sh: Shell,
    release: Path,
    *,
    layout: str | None = None,
    triton: Path | None = None,
    log: Path | None = None,
    **where: Any,
) -> TritonServer:
    """Check a release and start a server on it, with a progress bar; parameters as of ``start_server``."""
    with sh.work(f"Starting Triton on {release}") as progress:
        from ..release.opened import open_release
        from ..supervise import start_server

        if layout not in (None, "fused", "staged"):
            raise typer.BadParameter(f"{layout!r}: the layouts are fused and staged", param_hint="--layout")
        opened = open_release(release)
        return start_server(
            opened,
            layout=layout,
            triton=triton,
            log=log,
            progress=_start_report(opened, progress),
            **where,
        )


def _start_report(release: Release, progress: Report) -> Callable[[str, int], None]:
    """Return a callback for the checksums of a start: bytes of all, and then what comes next."""
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
    """Return where a server is and what it serves, as JSON."""
    release = server.release
    assert release is not None
    return {
        "release": str(release.path),
        "name": release.manifest.name,
        "build_id": release.build_id,
        "grpc": server.grpc_url,
        "http": server.http_url,
        "metrics": server.metrics_url,
        "pid": server.pid,
        "ready_s": round(server.started_s, 3),
        "curl": curl_line(server.http_url, release),
    }


def human(document: Mapping[str, Any]) -> list[Any]:
    """Return what people see when a server is up."""
    from rich.markup import escape

    values = {name: document[name] for name in ("grpc", "http", "metrics")}
    title = (
        f"Serving {document['name']} (build {document['build_id']}), ready in {seconds(document['ready_s'])}"
    )
    recommend = f"tiercel recommend --user 42 --url {document['grpc']}"
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


def curl_line(http_url: str, release: Release) -> str:
    """Return a line for the shell that asks for recommendations over plain HTTP."""
    user = example_user(release)
    tensor = {
        "name": "user_id",
        "shape": [1, 1],
        "datatype": "BYTES" if isinstance(user, str) else "INT64",
        "data": [user],
    }
    body = json_module.dumps({"inputs": [tensor]}, ensure_ascii=False)
    return f"curl -s {http_url}/v2/models/recommend/infer -d {shlex.quote(body)}"


def example_user(release: Release) -> int | str:
    """Return the id of a user who is in the store: 42 if there is one, else the first."""
    from ..lookups.lookup import read_keys
    from ..stores.memory_mapped import USER_LOOKUP

    is_text = release.manifest.catalogue.user_id_dtype == "bytes"
    ids = read_keys(release.artefact("users", "users").arrays, USER_LOOKUP).tolist()
    favourite: int | bytes = b"42" if is_text else 42
    user = favourite if favourite in ids or not ids else ids[0]
    return user.decode(errors="replace") if isinstance(user, bytes) else int(user)
