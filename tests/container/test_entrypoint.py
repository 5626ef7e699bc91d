"""The entry point of the images, run outside of a container."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

from container.entry_point import Container, entrypoint

ROOT = Path(__file__).parents[2]


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for its end, and until nobody holds its output open: not the follower of Triton's log either."""
    process.wait(30)  # first, since the follower takes a process that nobody has waited for to live
    return process.communicate(timeout=30)


def test_it_serves_a_release(container: Container, text_release: Path) -> None:
    """Checked as by the container's probe; Triton's own log is in the container's output."""
    from tiercel_client import Recommender

    assert container.document["release"] == str(text_release)
    with Recommender(container.document["grpc"]) as recommender:
        assert recommender.health(timeout_s=10).build_id == container.document["build_id"]
    assert "Started GRPCInferenceService" in container.log


def test_triton_has_the_flags_of_the_guide(container: Container) -> None:
    running = Path("/proc", str(container.document["pid"]), "cmdline").read_text().split("\0")
    given = {flag.partition("=")[0] for flag in running}
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = guide.split("## Flags in production")[1].split("\n\n## ")[0]
    named = set(re.findall(r"^\| `(--[a-z-]+)", table, flags=re.M))
    assert len(named) > 6
    # Triton's own HTTP is off, so there is nothing to restrict.
    assert named - given == {"--http-restricted-api"}
    assert "--allow-http=false" in running
    assert "--log-verbose=0" in running


def test_latencies_come_in_quantiles(container: Container) -> None:
    assert (
        'nv_inference_request_summary_us{model="recommend",version="1",quantile="0.99"}'
        in container.metrics()
    )


def test_it_tells_why_it_does_not_serve(tmp_path: Path) -> None:
    with entrypoint(tmp_path, str(tmp_path / "no-release")) as process:
        _, said = ended(process)
    assert process.returncode == 2
    assert "no-release" in said
    assert "Traceback" not in said


def test_the_callers_arguments_come_first_and_its_flags_reach_triton(tmp_path: Path) -> None:
    for given, flags in ((["--grpc-port", "0"], []), (["--", "--log-verbose=1"], ["--log-verbose=1"])):
        with entrypoint(tmp_path, "/release", *given, tiercel='printf "%s\\n" "$@"') as process:
            said = ended(process)[0].splitlines()
        assert said[:4] == ["serve", "/release", "--host", "0.0.0.0"]
        assert said[said.index("--") + 1 :] == [*flags, "--metrics-config=summary_latencies=true"]


def test_plans_are_built_and_verified_before_triton_starts(tmp_path: Path) -> None:
    release, cache = tmp_path / "release", tmp_path / "tiercel-cache"
    release.mkdir()
    (release / "manifest.json").write_text('{\n  "target": "tensorrt"\n}')
    # In an image the folder is /var/cache.
    asked = 'echo "$1" "$2"; test "$1" = serve || { echo "$3 $4 $5 $6"; exit ${code:-0}; }'
    place = {"tiercel": asked, "XDG_CACHE_HOME": str(cache)}
    with entrypoint(tmp_path, str(release), **place) as process:
        said = ended(process)[0].splitlines()
    build = [f"build-engines {release}", f"--to {cache}/tiercel/release --cache {cache}/tiercel/plans"]
    assert said == [*build, f"serve {cache}/tiercel/release"]
    with entrypoint(tmp_path, str(release), **place, code="1") as process:
        assert ended(process)[0].splitlines() == build
    assert process.returncode == 1


def test_a_signal_ends_it_with_0_and_all_that_it_started(tmp_path: Path) -> None:
    """`docker stop` sends SIGTERM to the first process, by then no longer the shell but `tiercel`."""
    with entrypoint(
        tmp_path, "/release", tiercel="trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        ended(process)
    assert process.returncode == 0
