"""Start a real Triton, wait until it answers, watch it, and stop it without leaving anything behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ..errors import ServerError, ServerFailed
from ..release.manifest import MANIFEST_NAME
from ..release.opened import Release, check_files, open_release
from . import guard
from .drain import drain
from .http_front import HttpFront
from .installation import Installation, find_installation, find_libpython
from .launch import Launch, check_runner, model_repository, wrong_flag
from .log import exit_text, failure_reasons, port_in_use, tail
from .ports import held_ports, port_taken, resolve_host

#: Makes one real inference at a gRPC address within a timeout in seconds, or raises.
Canary = Callable[[str, float], None]

_CANARY_ATTEMPTS = 3
_CANARY_START_S = 10.0
#: How long to wait for the exit status of a Triton whose first thread has ended.
_ENDING_S = 1.0


def start_server(
    release_or_repository: str | Path | Release,
    *,
    host: str = "127.0.0.1",
    grpc_port: int | None = None,
    http_port: int | None = None,
    metrics_port: int | None = None,
    layout: str | None = None,
    runner: str | None = None,
    triton: str | Path | None = None,
    triton_flags: Sequence[str] = (),
    canary: Canary | None = None,
    timeout_s: float = 60.0,
    log: str | Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> TritonServer:
    """Start Triton on a release and return when it has answered a real inference.

    Parameters
    ----------
    release_or_repository
        A release, its directory, or a plain Triton model repository (for tests and the bench).
    host
        Where gRPC, HTTP and metrics listen: an IPv4 address, or a name that has one.
    grpc_port, http_port, metrics_port
        Ports; None or 0 takes a free one, reserved until Triton has bound it.
    layout
        ``staged`` or ``fused``; None is the release's own.
    runner
        What runs the stages: a row of :data:`~tiercel_serving.repository.targets.RUNNERS`; None is the
        release's own.
    triton
        A Triton other than the wheel's, see :func:`~.installation.find_installation`.
    triton_flags
        More flags for ``tritonserver``, each with its value.
    canary
        The first inference; None calls the ensemble ``recommend``, or checks only readiness if the
        repository has none.
    timeout_s
        How long Triton may take to become ready; the first inference may take 10 s more, three times.
    log
        File for Triton's log, which is appended to; None keeps the log only if the server fails.
    progress
        Called with a file's name and size in bytes as the release's checksums are compared.

    Raises
    ------
    ReleaseError
        The release is missing, damaged or of another build or format.
    PortTaken, TritonMissing, LibPythonMissing
        Something that the server needs is not available.
    ServerFailed
        Triton exited, did not become ready in time, or its first inference failed.
    ServerError
        A flag is invalid or set by this function itself, or the host has no IPv4 address.
    """
    if (wrong := wrong_flag(triton_flags)) is not None:
        raise ServerError(f"triton_flags: {wrong}")
    installation = find_installation(triton)
    address = resolve_host(host)
    source = _as_source(release_or_repository)
    if isinstance(source, Release):
        check_runner(source.manifest.runner if runner is None else runner)
        check_files(source, progress)
    ports = {"grpc": grpc_port or None, "http": http_port or None, "metrics": metrics_port or None}
    with held_ports(address, ports) as held:
        server = TritonServer(installation, address, held, source, Path(log) if log else None, triton_flags)
        try:
            server._start(layout, runner, canary, timeout_s)
        except BaseException:
            server.stop(grace_s=0.0)
            raise
    return server


class TritonServer:
    """A running Triton, returned by :func:`start_server`. Leaving its ``with`` block stops it.

    If the process that started it ends in any other way, including SIGKILL, a small guard process stops
    Triton and removes its shared memory and its temporary directory.

    Attributes
    ----------
    grpc_url
        ``host:port``, as ``tiercel_client`` takes it.
    http_url, metrics_url
        URLs with scheme; the second is the full URL of the metrics page.
    release
        The served release, or None for a plain repository.
    layout, runner
        Its layout and runner; empty for a plain repository.
    pid
        Triton's process id, which is also its process group.
    started_s
        Seconds from the start of the process to the first answer.
    """

    def __init__(
        self,
        installation: Installation,
        host: str,
        ports: Mapping[str, int],
        source: Release | Path,
        log: Path | None,
        flags: Sequence[str] = (),
    ) -> None:
        self.release = source if isinstance(source, Release) else None
        self.layout = self.runner = ""
        self.host = host
        self.ports = dict(ports)
        near = "127.0.0.1" if host == "0.0.0.0" else host
        self.grpc_url = f"{near}:{ports['grpc']}"
        self.http_url = f"http://{near}:{ports['http']}"
        self.metrics_url = f"http://{near}:{ports['metrics']}/metrics"
        self.pid = 0
        self.started_s = 0.0
        self._workdir = Path(tempfile.mkdtemp(prefix="tiercel-server-"))
        self._shm_prefix = f"tiercel_{os.getpid()}_{secrets.token_hex(4)}_"
        self._launch = Launch(installation, self._workdir, host, self.ports, self._shm_prefix, flags)
        self._source = source if isinstance(source, Release) else source.resolve()
        self._mirror = self._workdir / "mirror"
        self.log_path = log if log is not None else self._workdir / "triton.log"
        self._guard = _start_guard(self._workdir, self._shm_prefix)
        self._process: subprocess.Popen[bytes] | None = None
        self._front: HttpFront | None = None
        self._spawned = 0.0
        self._canary: Canary | None = None
        self._members: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._stopped = threading.Event()

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def check(self) -> None:
        """Raise if Triton or one of its Python stubs has died; this costs a few reads of ``/proc``.

        Raises
        ------
        ServerFailed
            A process died, or the server was stopped. Triton never restarts a stub.
        """
        if self._stopped.is_set() or self._process is None:
            raise ServerFailed("this server was stopped; start another")
        gone = self._members.difference(guard.group_members(self.pid)) if self._members else ()
        status = self._process.poll()  # after the members, because Triton is one and may die in between
        if status is None and self.pid in gone:  # its first thread has ended, others are still running
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(_ENDING_S)
        if status is not None:
            raise self._failure(f"Triton {exit_text(status)} while it was serving")
        if gone:
            what = "" if self.pid in gone else f"'s Python stub process {min(gone)}"
            raise self._failure(f"Triton{what} died while it was serving; start the server again")

    def wait(self, *, canary_interval_s: float = 10.0, canary_timeout_s: float = 5.0) -> None:
        """Block while the server runs, and return when another thread has stopped it.

        Parameters
        ----------
        canary_interval_s, canary_timeout_s
            How often a real inference is made, and how long it may take. A failed one is repeated at
            once; after two failures in a row the server counts as failed.

        Raises
        ------
        ServerFailed
            Triton or a stub died, or the canary failed; stop, and let a supervisor restart the server.
        """
        due = time.monotonic() + canary_interval_s
        while not self._stopped.wait(0.5):
            now = time.monotonic()
            try:
                self.check()
                if self._canary is not None and now >= due:
                    self._repeat_canary(self._canary, canary_timeout_s)
                    due = time.monotonic() + canary_interval_s
            except ServerFailed:
                if not self._stopping.is_set():  # a stop by another thread looks like a failure here
                    raise

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop Triton and remove its processes, shared memory and temporary files; idempotent.

        Parameters
        ----------
        grace_s
            How long requests in flight may take before the processes are killed.
        """
        with self._lock:
            if self._stopped.is_set():
                return
            self._stopping.set()
            try:
                self._end_process(grace_s)
            finally:
                self._stopped.set()
                self._clean()

    def _start(self, layout: str | None, runner: str | None, canary: Canary | None, timeout_s: float) -> None:
        repository = model_repository(self._source, layout, runner, self._workdir, self._mirror)
        if self.release is not None:
            own = self.release.manifest
            self.layout, self.runner = layout or own.layout, runner or own.runner
        if canary is None and (repository / "recommend").is_dir():
            canary = recommend_canary
        libpython = find_libpython()
        environment = self._launch.environment(libpython)
        command = self._launch.command(repository, libpython)
        begun = time.monotonic()
        self._spawned = time.time()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._workdir,
                start_new_session=True,
            )
        self.pid = self._process.pid
        _tell(self._guard, str(self.pid))
        self._wait_ready(begun + timeout_s, timeout_s)
        self._members = frozenset(guard.group_members(self.pid))
        if canary is not None:
            self._repeat_canary(canary, _CANARY_START_S, _CANARY_ATTEMPTS)
        self._canary = canary
        self._front = self._open_front()
        self.started_s = time.monotonic() - begun

    def _wait_ready(self, deadline: float, timeout_s: float) -> None:
        assert self._process is not None
        while not self._ready():
            status = self._process.poll()
            if status is not None:
                text = self._log_text()
                port = port_in_use(text)
                for name, mine in self.ports.items():
                    if mine == port:
                        raise port_taken(self.host, name, mine, "taken while Triton started")
                raise self._failure(f"Triton {exit_text(status)} before it was ready")
            if time.monotonic() > deadline:
                raise self._failure(f"Triton was not ready within {timeout_s:g} s")
            time.sleep(0.02)

    def _ready(self) -> bool:
        # A separate subchannel pool, because a shared one retries a refused connection only after a second.
        with grpc.insecure_channel(self.grpc_url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=2.0).ready)
            except grpc.RpcError:
                return False

    def _open_front(self) -> HttpFront:
        try:
            return HttpFront(self.host, self.ports["http"], self.grpc_url)
        except OSError as error:
            raise port_taken(self.host, "http", self.ports["http"], str(error)) from error

    def _repeat_canary(self, canary: Canary, timeout_s: float, attempts: int = 2) -> None:
        failed: Exception | None = None
        for _ in range(attempts):
            try:
                canary(self.grpc_url, timeout_s)
                return
            except Exception as error:
                failed = error
            self.check()
            time.sleep(0.1)
        raise self._failure(
            f"Triton at {self.grpc_url} says that it is ready, but a real inference failed "
            f"{attempts} times: {failed}"
        ) from failed

    def _end_process(self, grace_s: float) -> None:
        process = self._process
        if process is None:
            return
        try:
            if self._front is not None:
                grace_s = min(grace_s, max(self._front.close(grace_s), 1.0))  # at least a second for Triton
            if grace_s > 0 and process.poll() is None:
                drain(process, self.log_path, grace_s, whole=bool(self._launch.flags))
        finally:
            # A second Ctrl-C gets here too. The group may still contain stubs that outlived the server.
            if process.poll() is None or guard.group_members(self.pid):
                guard.kill_group(self.pid)
            process.wait()
            if process.returncode < 0:
                guard.remove_environments(self._spawned)

    def _clean(self) -> None:
        guard.remove_shared_memory(self._shm_prefix)
        shutil.rmtree(self._workdir, ignore_errors=True)
        _tell(self._guard, guard.DONE)
        with contextlib.suppress(OSError):
            if self._guard.stdin is not None:
                self._guard.stdin.close()
        self._guard.wait()

    def _log_text(self) -> str:
        with contextlib.suppress(OSError):
            text = self.log_path.read_text(errors="replace")
            source = self._source.path.resolve() if isinstance(self._source, Release) else self._source
            return text.replace(str(self._mirror), str(source))
        return ""

    def _failure(self, what: str) -> ServerFailed:
        """Return the error for a failure, with Triton's own messages, and keep its log."""
        text = self._log_text()
        kept = self.log_path
        if self._workdir in kept.parents:
            handle, name = tempfile.mkstemp(prefix="tiercel-triton-", suffix=".log")
            with os.fdopen(handle, "w") as file:
                file.write(text)
            kept = Path(name)
        reasons = failure_reasons(text)
        lines = [what, *(f"  {reason}" for reason in reasons)]
        if not reasons:
            lines += ["Triton's last words:", *(f"  {line}" for line in tail(text))]
        return ServerFailed("\n".join([*lines, f"The whole log: {kept}"]))


def recommend_canary(url: str, timeout_s: float) -> None:
    """Make one real inference with the ``recommend`` ensemble, as ``tiercel health`` does."""
    from tiercel_client import Recommender

    with Recommender(url) as recommender:
        recommender.health(timeout_s=timeout_s)


def _as_source(source: str | Path | Release) -> Release | Path:
    if isinstance(source, Release):
        return source
    path = Path(source)
    if not (path / MANIFEST_NAME).is_file() and any(path.glob("*/config.pbtxt")):
        return path
    return open_release(path)


def _start_guard(workdir: Path, prefix: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(workdir), prefix],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
