"""``tiercel health``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from .shell import FAILED, Debug, Json, shell


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="host:port of gRPC.")] = "localhost:8001",
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.001, help="Deadline in seconds.")] = 2.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one real inference with a deadline; exit 0 if it is answered and 1 if not.

    A server can call itself ready and not answer, so this asks it for recommendations.

    Example: [bold]tiercel health localhost:8001 --timeout-s 2[/]
    """
    with shell(json=json, debug=debug) as sh:
        from tiercel_client import Recommender

        begun = time.perf_counter()
        error: Exception | None = None
        try:
            with Recommender(url) as recommender:
                recommender.health(timeout_s=timeout_s)
        except Exception as caught:
            error = caught
        took_ms = (time.perf_counter() - begun) * 1000
        document = {"url": url, "healthy": error is None, "took_ms": round(took_ms, 3)}
        if error is None:
            sh.emit(document, f"[green]✓[/] {url} answered in {took_ms:.1f} ms")
            return
        document["error"] = {"type": type(error).__name__, "message": str(error)}
        sh.emit(document)
        sh.note(f"✗ {url}: {error}", style="red")
        if debug:
            raise error
        raise typer.Exit(FAILED)
