"""``embedded``: live values in an LMDB file, shared by all processes of a machine.

LMDB (Chu 2011, "MDB: A Memory-Mapped Database and Backend for OpenLDAP") reads from memory that all processes
share, without locks or system calls. It writes to copies of pages, which a commit makes valid. So a process
that dies at any moment leaves the last commit in place, or one that was written but not yet reported, which
becomes visible with the next write. A commit is on the disk when it returns.

One batched read on a slow core, with 100,000 records of 560 bytes, compared with SQLite (write-ahead log,
`WITHOUT ROWID`): 83 against 524 microseconds for 64 users, 1.7 against 12 for one user, 3 against 15 for one
user without a record.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb

from ..errors import StoreDamaged, StoreUnavailable
from ..machine_faults import fault_of
from ..problems import COUNT, Problem, out_of_range
from .table import Change, LiveSettings, StorePlace

#: Largest number of concurrent readers over all processes; each takes 64 bytes of the lock file.
_READERS = 1024

#: The opened stores of this process by folder: LMDB's locks break if a process opens a file twice.
_OPENED: weakref.WeakValueDictionary[Path, Overlay] = weakref.WeakValueDictionary()
#: Several models of one server may open a store at once, on different threads.
_OPENING = threading.Lock()

_DATA, _LOCK = "data.mdb", "lock.mdb"

#: After a failed write, a disk with less free space than this many bytes counts as full.
_LITTLE = 16_000_000


class Embedded(LiveSettings, frozen=True, tag="embedded"):
    """Live values in a folder on this machine.

    Parameters
    ----------
    path
        The folder, absolute or relative to the folder that contains the release; it is created if it does
        not exist. It outlives releases, and several releases may use it at once.
    most_mb
        Largest size of the file, in megabytes. The file only takes the space that it needs.
    """

    path: str
    most_mb: int = 16_000

    @classmethod
    def of_text(cls, text: str) -> Embedded:
        """Return a store in the folder that the text names, relative to the working directory."""
        return cls(path=str(Path(text).absolute()) if text else "")

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        wrong = super().problems() or list(out_of_range(self, {"most_mb": COUNT}))
        if not wrong and (not self.path or "\0" in self.path):
            wrong.append(Problem("path", f"expected a folder, got {self.path!r}", "name one"))
        return wrong

    def open(self, place: StorePlace) -> Overlay:
        """Open the store; create it if it does not exist."""
        folder = (place.folder / self.path).resolve()
        with _OPENING:
            opened = _OPENED.get(folder)
            if opened is None:
                opened = _OPENED[folder] = Overlay(folder, self.most_mb)
        return opened


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; if the block fails, remove what was created."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    fresh = not (folder / _DATA).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        if fresh:
            with contextlib.suppress(OSError):  # another process may have opened a store there meanwhile
                _discard(folder)
        for path in missing:
            with contextlib.suppress(OSError):  # as above
                path.rmdir()
        raise


def _discard(folder: Path) -> None:
    """Remove the files of a store that was never written to; raise OSError if some process has it open."""
    with (folder / _LOCK).open("rb+") as lock:
        # Every process that has it open holds LMDB's shared lock on the first byte.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        data = folder / _DATA
        if not data.exists() or data.stat().st_size <= 2 * mmap.PAGESIZE:  # what LMDB itself needs
            data.unlink(missing_ok=True)
            (folder / _LOCK).unlink()


def _take_room(lock: Path) -> None:
    """Allocate the lock file's blocks: LMDB maps it sparse, and a full disk would then raise SIGBUS."""
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(file, 0, (_READERS - 1) * 64)
    finally:
        os.close(file)


class Overlay:
    """Records in an LMDB file.

    Parameters
    ----------
    folder
        The store's folder.
    most_mb
        Largest size of the file, in megabytes.

    Raises
    ------
    StoreDamaged, MachineFault, StoreUnavailable
        It can't be opened.
    """

    def __init__(self, folder: Path, most_mb: int) -> None:
        self._folder, self._most_mb = folder, most_mb
        with self._faults("opening"), _made(folder):
            _take_room(folder / _LOCK)
            size = most_mb * 1_000_000 // 4096 * 4096
            self._env = lmdb.open(str(folder), map_size=size, max_readers=_READERS, max_spare_txns=4)
            # Frees the reader slots of killed processes, which would keep old pages in use.
            self._env.reader_check()
        if self._is_short():
            # Reading a page beyond the file's end raises SIGBUS, so the check runs in another process.
            _walk_apart(folder)

    def _is_short(self) -> bool:
        pages = self._env.info()["last_pgno"] + 1
        return bool((self._folder / _DATA).stat().st_size < pages * self._env.stat()["psize"])

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the record of each key from one snapshot; None if there is none."""
        try:
            # The transaction ends when its last reference is dropped, here at once; faster than a with block.
            return [*map(self._env.begin().get, keys)]
        except lmdb.MapResizedError:  # by a process with a larger most_mb
            self._env.set_mapsize(0)
            return self.read(keys)
        except lmdb.Error as error:
            raise self._error(error, "reading") from error

    def change(self, changes: Sequence[tuple[bytes, Change]]) -> None:
        """Apply all changes in one transaction, which is on the disk when this returns."""
        with self._faults("writing"), self._env.begin(write=True) as transaction:
            for key, change in changes:
                record = change(transaction.get(key))
                if record is None:
                    transaction.delete(key)
                else:
                    transaction.put(key, record)

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key with its record, by key, from one snapshot."""
        with self._faults("reading"), self._env.begin() as transaction:
            yield from transaction.cursor()

    def check(self) -> str:
        """Read the whole file in another process, since a damaged file may kill its reader."""
        records = _walk_apart(self._folder)
        size_mb = (self._folder / _DATA).stat().st_size / 1_000_000
        return f"{self._folder}: {records:,} records in {size_mb:.1f} MB, none damaged"

    @contextlib.contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            raise self._error(error, doing) from error

    def _error(self, error: Exception, doing: str) -> Exception:
        """Return the Tiercel error for an error of LMDB or of the operating system."""
        what = f"store {self._folder}: {doing} failed"
        if isinstance(error, lmdb.MapFullError):
            return StoreUnavailable(
                f"{what}: it has reached most_mb ({self._most_mb}); raise it in the settings of the store"
            )
        if isinstance(error, lmdb.InvalidError | lmdb.CorruptedError | lmdb.PageNotFoundError):
            return damaged(self._folder, str(error))
        found = _as_os_error(error)
        if isinstance(found, OSError) and found.errno == errno.EIO and self._is_full():
            # LMDB reports a page that was written only in part as EIO.
            found = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fault = fault_of(found, self._folder, f"{doing} the store")
        return fault or StoreUnavailable(f"{what}: {error}; check the folder, and that it is on a local disk")

    def _is_full(self) -> bool:
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        try:
            return limited or shutil.disk_usage(self._folder).free < _LITTLE
        except OSError:  # the disk does not answer
            return False


def _as_os_error(error: Exception) -> Exception:
    """Return the OSError that the text of an LMDB error names; else the error itself."""
    if isinstance(error, OSError):
        return error
    words = {os.strerror(n): n for n in (*errno.errorcode,)}
    number = next((words[text] for text in words if str(error).endswith(text)), None)
    return error if number is None else OSError(number, os.strerror(number))


def damaged(folder: Path, why: str) -> StoreDamaged:
    """Return the error for a file that differs from what was written."""
    return StoreDamaged(
        f"store {folder}: it is not what was written ({why}); move the folder away, and load the latest "
        "export (`tiercel store load`), or begin with an empty one: the release's own values are not touched"
    )


def _walk_apart(folder: Path) -> int:
    """Read a whole store in another process, and return its number of records."""
    command = [sys.executable, "-m", "tiercel_serving.stores.walk", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return int(done.stdout)
    if done.returncode < 0:
        raise damaged(folder, f"a process that read it was ended by signal {-done.returncode}")
    said = done.stderr.strip().splitlines() or ["it cannot be read"]
    raise damaged(folder, said[-1])
