"""``tiercel health``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from .shell import FAILED, Debug, Json, checked_url, shell


def command(
    url: Annotated[
        str, typer.Argument(metavar="URL", callback=checked_url, help="Address of the server's gRPC.")
    ] = "localhost:8001",
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.001, help="Deadline in seconds.")] = 2.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one real inference with a deadline; exit with 0 if it is answered, else with 1.

    A server can report that it is ready and still not answer, so this asks it for recommendations.

    Example: [bold]tiercel health localhost:8001 --timeout-s 2[/]
    """
    with shell(json=json, debug=debug) as sh:
        from tiercel_client import Recommender

        begun = time.perf_counter()
        try:
            with Recommender(url) as recommender:
                health = recommender.health(timeout_s=timeout_s)
        except Exception as error:
            took_ms = (time.perf_counter() - begun) * 1000
            failure = {"type": type(error).__name__, "message": str(error)}
            sh.emit({"url": url, "healthy": False, "took_ms": round(took_ms, 3), "error": failure})
            if debug:
                raise
            sh.note(f"✗ {error}" if url in str(error) else f"✗ {url}: {error}", style="red")
            raise typer.Exit(FAILED) from None
        took_ms = health.latency_s * 1000
        document = {"url": url, "healthy": True, "took_ms": round(took_ms, 3), "build_id": health.build_id}
        sh.emit(document, f"[green]✓[/] {url} answered in {took_ms:.1f} ms (build {health.build_id})")
